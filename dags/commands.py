"""A task of this project is one command line: a job writes a table, a gate reads one, a listing says which jobs follow.

Every command can be pasted into a terminal at the root of the repository, with LTE_SETTINGS set. A pool of one
slot per table (infra/airflow/pools.json) keeps it to one writer, whichever DAG, date or backfill asks.
"""

import datetime
import json
from pathlib import Path
from typing import Any

import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import Asset, XComArg
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.mappedoperator import MappedOperator

REPOSITORY = Path(__file__).resolve().parent.parent

DATE = "{{ (dag_run.logical_date or dag_run.run_after) | ds }}"
"""The logical date, YYYY-MM-DD. A run that a person starts without one is a run of the day it is started on."""

OWNER = {"owner": "personalisation"}

CHALLENGER = Asset("lte_challenger")
"""Updated when a training registers a model; `lte_promotion` waits for it."""

REPORTS_URL = conf.get("lte", "reports_url", fallback="")
"""Where people open the reports. `[lte]` is our section of airflow.cfg; see infra/airflow/README.md."""

WRITTEN_TOGETHER = {
    "events": "quarantine",
    "items": "quarantine",
    "ingested_days": "quarantine",
    "snapshot_accounts": "lte_snapshots",
    "publications": "lte_live",
    "test_accounts": "test_measurements",
    "checkpoints": "gpu",
}


def pool_of(table: str) -> str:
    """The pool of what a job writes: its own name, or that of what is written with it, or of the machine it needs."""
    return WRITTEN_TOGETHER.get(table, table)


def feed_end() -> datetime.datetime | None:
    """The last logical date that the shop's feed reaches; None where the feed is live.

    A shop of the past, as the demo's, has no rows for today: without this, its schedules would start runs that
    find an empty day.
    """
    day = conf.get("lte", "feed_end", fallback="")
    return pendulum.parse(day, tz="UTC") if day else None


def job(
    task_id: str,
    command: str,
    *,
    writes: str,
    on_failure: str,
    outlets: tuple[Asset, ...] = (),
    environment: dict[str, str] | None = None,
) -> BashOperator:
    """A task that writes. `writes` names its pool: its table. It may be repeated, and a stop of Airflow may cost a try.

    What a person typed reaches the command by the `environment`, where no shell reads it. A command that ends with 99 had
    nothing to do: Airflow shows its task as skipped.
    """
    return BashOperator(
        **_job(task_id, command, writes, on_failure),
        outlets=list(outlets),
        env=environment,
        append_env=True,
    )


def job_for_each(environments: XComArg, task_id: str, command: str, *, writes: str, on_failure: str) -> MappedOperator:
    """A job for each of the `environments` that a `listing` found. The command quotes what it takes from there."""
    return BashOperator.partial(
        **_job(task_id, command, writes, on_failure),
        append_env=True,
        map_index_template="{{ task.env.values() | join(' ') }}",
    ).expand(env=environments)


def listing(task_id: str, command: str, *, on_failure: str, pool: str) -> BashOperator:
    """A task whose last line is a list in JSON; its output is an environment for each entry, in capitals. No retry."""
    return BashOperator(
        task_id=task_id,
        bash_command=f"python -m {command}",
        cwd=str(REPOSITORY),
        pool=pool,
        retries=0,
        output_processor=environments,
        doc_md=f"Reads, and says which tasks there are to run.\n\n**When it fails:** {on_failure}",
    )


def environments(line: str) -> list[dict[str, str]]:
    """`[{"variant": "none", "seed": 0}]` as `[{"VARIANT": "none", "SEED": "0"}]`."""
    return [{name.upper(): str(value) for name, value in entry.items()} for entry in json.loads(line)]


def _job(task_id: str, command: str, writes: str, on_failure: str) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "bash_command": f"python -m {command}",
        "cwd": str(REPOSITORY),
        "pool": pool_of(writes),
        "retries": 2,
        "retry_delay": datetime.timedelta(seconds=20),
        "doc_md": f"Writes **{writes}**. Safe to clear and run again.\n\n**When it fails:** {on_failure}",
    }


def gate(task_id: str, command: str, *, on_failure: str, pool: str = "data_docs") -> BashOperator:
    """A task that decides whether the next table may be written. The same rows fail again: there is no retry.

    Its pool is what it does write: the page that shows its result.
    """
    return BashOperator(
        task_id=task_id,
        bash_command=f"python -m {command}",
        cwd=str(REPOSITORY),
        pool=pool,
        retries=0,
        doc_md=f"Reads, and lets the run pass or stops it.\n\n**When it fails:** {on_failure}",
    )

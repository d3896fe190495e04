"""A task of this project is one command line: a job writes a table, a gate reads one, a listing says which jobs follow.

Every command can be pasted into a terminal at the root of the repository, with LTE_SETTINGS set; runners.py says where
Airflow runs it. A pool of one slot per table (infra/airflow/pools.json) keeps it to one writer, whichever DAG, date or
backfill asks.
"""

import datetime
import json
from typing import Any

import pendulum
from airflow.sdk import Asset, BaseOperator, XComArg
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.mappedoperator import MappedOperator

from runners import runner

DATE = "{{ (dag_run.logical_date or dag_run.run_after) | ds }}"
"""The logical date, YYYY-MM-DD. A run that a person starts without one is a run of the day it is started on."""

NOTIFIER = conf.getimport("lte", "notifier", fallback="")
"""Which of the notifiers of Airflow's providers tells a person of a task that failed for good; None: nobody is told."""


def tell_somebody(context: dict[str, Any]) -> None:
    """Sends the notification. The notifier is made anew: it keeps the texts that it rendered for one task."""
    # The DAG processor, which tells of a task whose worker was killed, leaves it out.
    context["ti"].state = "failed"
    NOTIFIER(**conf.getjson("lte", "notifier_arguments", fallback={}))(context)


OWNER = {"owner": "personalisation", "on_failure_callback": tell_somebody if NOTIFIER else None}
"""The default arguments of every task: whose it is, and who hears of its failure."""

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
) -> BaseOperator:
    """A task that writes. `writes` names its pool: its table. It may be repeated, and a stop of Airflow may cost a try.

    What a person typed reaches the command by the `environment`, where no shell reads it. A command that ends with 99
    had nothing to do: Airflow shows its task as skipped.
    """
    operator, how = runner(command)
    return operator(task_id=task_id, **how, **_writing(writes, on_failure), outlets=list(outlets), env=environment)


def job_for_each(environments: XComArg, task_id: str, command: str, *, writes: str, on_failure: str) -> MappedOperator:
    """A job for each of the `environments` that a `listing` found. The command quotes what it takes from there."""
    operator, how = runner(command)
    named = "{{ task.env.values() | join(' ') }}"
    tasks = operator.partial(task_id=task_id, **how, **_writing(writes, on_failure), map_index_template=named)
    return tasks.expand(env=environments)


def listing(task_id: str, command: str, *, on_failure: str, pool: str) -> BaseOperator:
    """A task whose last line is a list in JSON; its output is an environment for each entry, in capitals. No retry."""
    operator, how = runner(command)
    doc = f"Reads, and says which tasks there are to run.\n\n**When it fails:** {on_failure}"
    return operator(task_id=task_id, **how, pool=pool, retries=0, output_processor=environments, doc_md=doc)


def environments(line: str) -> list[dict[str, str]]:
    """`[{"variant": "none", "seed": 0}]` as `[{"VARIANT": "none", "SEED": "0"}]`."""
    return [{name.upper(): str(value) for name, value in entry.items()} for entry in json.loads(line)]


def _writing(writes: str, on_failure: str) -> dict[str, Any]:
    return {
        "pool": pool_of(writes),
        "retries": 2,
        "retry_delay": datetime.timedelta(seconds=20),
        "doc_md": f"Writes **{writes}**. Safe to clear and run again.\n\n**When it fails:** {on_failure}",
    }


def gate(
    task_id: str, command: str, *, on_failure: str, pool: str = "data_docs", is_quoted: bool = False
) -> BaseOperator:
    """A task that decides whether the next table may be written. The same rows fail again: there is no retry.

    Its pool is what it does write: the page that shows its result. Where it `is_quoted`, a later task reads its last
    line.
    """
    operator, how = runner(command)
    if is_quoted:
        how["output_processor"] = str
    doc = f"Reads, and lets the run pass or stops it.\n\n**When it fails:** {on_failure}"
    return operator(task_id=task_id, **how, pool=pool, retries=0, doc_md=doc)

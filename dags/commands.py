"""Builds tasks, each one command line: a job writes a table, a gate checks one, a listing says which jobs follow.

Every command can be pasted into a terminal at the root of the repository, with LTE_SETTINGS set; runners.py says where
Airflow runs it. Each table has a pool of one slot (infra/airflow/pools.json), so that it has one writer at a time
across all DAGs, dates and backfills.
"""

import datetime
import json
from typing import Any

import pendulum
from airflow.sdk import Asset, BaseOperator, CronTriggerTimetable, XComArg
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.mappedoperator import MappedOperator

from runners import runner

DATE = "{{ (dag_run.logical_date or dag_run.run_after) | ds }}"
"""The logical date, YYYY-MM-DD. For a manual run without one it is the day on which the run starts."""

NOTIFIER = conf.getimport("lte", "notifier", fallback="")
"""The notifier class of an Airflow provider that reports a task's final failure; None reports to nobody."""


def tell_somebody(context: dict[str, Any]) -> None:
    """Sends the notification. Each call makes a new notifier: one keeps the texts rendered for its first task."""
    # The DAG processor, which reports a task whose worker was killed, doesn't set the state.
    context["ti"].state = "failed"
    NOTIFIER(**conf.getjson("lte", "notifier_arguments", fallback={}))(context)


OWNER = {"owner": "personalisation", "on_failure_callback": tell_somebody if NOTIFIER else None}
"""The default arguments of every task: its owner, and the notification of its failure."""

CHALLENGER = Asset("lte_challenger")
"""Updated when a training registers a model; `lte_promotion` waits for it."""

REPORTS_URL = conf.get("lte", "reports_url", fallback="")
"""The address of the reports. `[lte]` is this project's section of airflow.cfg; see infra/airflow/README.md."""

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
    """The pool for a table: its own name, or that of a table written together with it, or `gpu`."""
    return WRITTEN_TOGETHER.get(table, table)


def in_utc(cron: str) -> CronTriggerTimetable:
    """A schedule by the clock of UTC, as snapshot dates are, whatever `core.default_timezone` says.

    The logical date of a run is the time that it starts at, whatever `scheduler.create_cron_data_intervals` says.
    """
    return CronTriggerTimetable(cron, timezone="UTC")


def feed_end() -> datetime.datetime | None:
    """The last logical date of the shop's feed; None if the feed is live.

    The demo's feed ends in the past. Without this date, the schedules would start runs for days without rows.
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
    """A task that writes the table `writes`, which also names its pool.

    Idempotent; a restart of Airflow may use up a retry. Text typed by a person is passed in `environment`, so that no
    shell parses it, and as `--option="$NAME"`: after a space, words that begin with a dash would be an option. Exit
    code 99 means that there was nothing to do: Airflow shows the task as skipped.
    """
    operator, how = runner(command)
    return operator(task_id=task_id, **how, **_writing(writes, on_failure), outlets=list(outlets), env=environment)


def job_for_each(environments: XComArg, task_id: str, command: str, *, writes: str, on_failure: str) -> MappedOperator:
    """A mapped job: one task per environment in a `listing`'s output. The command must quote variables from there."""
    operator, how = runner(command)
    named = "{{ task.env.values() | join(' ') }}"
    tasks = operator.partial(task_id=task_id, **how, **_writing(writes, on_failure), map_index_template=named)
    return tasks.expand(env=environments)


def listing(task_id: str, command: str, *, on_failure: str, pool: str) -> BaseOperator:
    """A task that prints a JSON list as its last line. Its output is an environment per entry. It has no retries."""
    operator, how = runner(command)
    doc = f"Reads, and says which tasks there are to run.\n\n**When it fails:** {on_failure}"
    return operator(task_id=task_id, **how, pool=pool, retries=0, output_processor=environments, doc_md=doc)


def environments(line: str) -> list[dict[str, str]]:
    """Converts `[{"variant": "none", "seed": 0}]` to `[{"VARIANT": "none", "SEED": "0"}]`."""
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
    """A task that decides whether the next table may be written. It has no retries: the same rows would fail again.

    Its pool is what it writes: the page that shows its result. With `is_quoted`, a later task reads its last line.
    """
    operator, how = runner(command)
    if is_quoted:
        how["output_processor"] = str
    doc = f"Reads, and lets the run pass or stops it.\n\n**When it fails:** {on_failure}"
    return operator(task_id=task_id, **how, pool=pool, retries=0, doc_md=doc)

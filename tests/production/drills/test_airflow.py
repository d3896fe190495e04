"""Airflow loses its scheduler or its database, or its DAG files change: tasks and approvals must survive."""

import datetime
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from mlflow.tracking import MlflowClient

from infra.local.airflow_api import FINISHED
from infra.local.stack import LocalStack
from infra.runs.airflow_runs import ANSWER_AFTER
from lte_model.domain.windows import ONE_DAY
from lte_model.registry.promotion import APPROVAL_TAG
from lte_model.settings import load_settings
from tests.jobs.kills import STEPS, difference, rows_of, run_undisturbed
from tests.lte_model.conftest import write_shop
from tests.lte_model.registry.test_promotion import registered_of_shop
from tests.lte_model.small_shop import TRAINING_DATE
from tests.mailbox import mailbox
from tests.repository import REPOSITORY

pytestmark = [pytest.mark.production, pytest.mark.e2e, pytest.mark.timeout(1800)]

SCHEDULER = [sys.executable, "-m", "airflow", "scheduler", "--skip-serve-logs"]


class BreakableStack(LocalStack):
    """A stack whose scheduler can be killed and restarted."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._orphans: list[psutil.Process] = []
        self.is_supervised = False
        """Whether ended components are restarted, as Compose and Kubernetes do."""
        self.restarted: list[str] = []

    def kill_scheduler(self, alone: bool = False) -> None:
        """Sends SIGKILL to the scheduler and its forked workers, as when its machine is lost.

        With `alone` the workers and their commands survive, as when the machine runs out of memory.
        """
        process = self._components.pop("scheduler")
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        if alone:
            self._orphans += family
        else:
            _kill(family)

    def stop(self) -> None:
        super().stop()
        _kill(self._orphans)

    def kill_worker_of(self, command: str) -> None:
        """Sends SIGKILL to the task process that runs this command, and to all processes up to the scheduler."""
        found = self.suspend(command)
        scheduler = self._components["scheduler"].pid
        for process in (*(one for one in found.parents() if _is_below(one, scheduler)), found):
            process.kill()

    def suspend(self, command: str) -> psutil.Process:
        """Sends SIGSTOP to the task process that runs this command, which would end quickly otherwise."""
        deadline, found = time.monotonic() + 120, None
        while found is None:
            assert time.monotonic() < deadline, f"nobody runs {command}"
            found = next((one for one in self._processes() if command in " ".join(_words_of(one))), None)
        found.suspend()
        return found

    def start_scheduler(self) -> None:
        self._start("scheduler", SCHEDULER)

    def supervise(self) -> None:
        for name, process in list(self._components.items()) if self.is_supervised else []:
            if process.poll() is not None:
                self.restarted.append(name)
                self._start(name, process.args)

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """{task id: the run's task instance}."""
        return {task["task_id"]: task for task in self.api.tasks(dag_id, run_id)}

    def state(self, dag_id: str, run_id: str, task_id: str) -> str | None:
        return self.tasks(dag_id, run_id)[task_id]["state"]

    def wait_for(self, dag_id: str, run_id: str, task_id: str, *states: str) -> None:
        """Waits until the task is in one of the states. Raises if it ends in another one."""
        deadline = time.monotonic() + 600
        while (state := self.state(dag_id, run_id, task_id)) not in states:
            assert state not in FINISHED or state in states, f"{task_id} is {state}"
            assert time.monotonic() < deadline, f"{task_id} is {state}"
            self.supervise()
            time.sleep(0.3)

    def wait_for_run(self, dag_id: str, run_id: str) -> str:
        """Waits until the run ends; returns its final state."""
        deadline = time.monotonic() + 900
        while True:
            run = next(run for run in self.api.runs(dag_id) if run["dag_run_id"] == run_id)
            if run["state"] in FINISHED:
                return run["state"]
            assert time.monotonic() < deadline, self.api.tasks(dag_id, run_id)
            self.supervise()
            time.sleep(0.5)


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_below(process: psutil.Process, ancestor: int) -> bool:
    return any(parent.pid == ancestor for parent in process.parents())


@contextmanager
def breaking_scheduler(stack: BreakableStack) -> Iterator[None]:
    stack.kill_scheduler()
    yield
    stack.start_scheduler()


@pytest.fixture(params=["scheduler", "PostgreSQL"])
def promotable(request, tmp_path, monkeypatch) -> Iterator[tuple[BreakableStack, Callable, str]]:
    """(a stack with a challenger, a context manager that breaks the stack, the name of that fault)."""
    settings = write_shop(tmp_path, "unused", users=150, seed=0)
    settings = load_settings(tmp_path / "settings.toml")
    registered_of_shop(settings, scale=1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if request.param == "scheduler":
        with BreakableStack(tmp_path / "settings.toml", mlflow_ui=False) as stack:
            yield stack, lambda: breaking_scheduler(stack), "Airflow's scheduler killed"
        return
    from tests.production import postgres_server

    if not postgres_server.installed():
        pytest.skip(postgres_server.MISSING)
    with postgres_server.PostgresServer("airflow") as server:
        monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", server.url("airflow"))

        @contextmanager
        def breaking_database() -> Iterator[None]:
            server.kill()
            server.start()
            yield
            server.restart(seconds_down=2)

        with BreakableStack(tmp_path / "settings.toml", mlflow_ui=False) as stack:
            stack.is_supervised = True
            yield stack, breaking_database, "Airflow's PostgreSQL killed and restarted"


def test_an_approval_outlives_what_waits_for_it(promotable, outcome):
    """The stack breaks while the gate runs and while it waits for a person; the answer then takes effect once."""
    stack, breaking, what = promotable
    api, settings = stack.api, stack.settings
    run_id = api.trigger("lte_promotion", TRAINING_DATE)
    stack.wait_for("lte_promotion", run_id, "gate", "running")
    with breaking():
        time.sleep(1)
    stack.wait_for("lte_promotion", run_id, "approve", "awaiting_input")
    time.sleep(ANSWER_AFTER)
    with breaking():
        api.answer("lte_promotion", run_id, "approve", "Approve", "it was down, and I said yes")
    assert stack.wait_for_run("lte_promotion", run_id) == "success"
    print(f"ended by themselves, and started again: {stack.restarted}")

    client = MlflowClient(settings.mlflow.tracking_uri)
    (version,) = client.search_model_versions(f"name = '{settings.mlflow.model_name}'")
    approved = version.tags.get(APPROVAL_TAG, "")
    lost = int(not (approved.startswith("Approve by admin") and approved.endswith("it was down, and I said yes")))
    aliases = client.get_registered_model(settings.mlflow.model_name).aliases
    half = int({alias: str(number) for alias, number in aliases.items()} != {"challenger": "1", "champion": "1"})
    outcome(what, times=2, lost=lost + half, of="approvals, or models half promoted")
    assert not lost and not half, (version.tags, aliases)
    assert version.tags["promotion"] == "won"
    assert len(api.runs("lte_promotion")) == 1


def test_a_scheduler_killed_in_a_daily_run_loses_and_doubles_nothing(spark, tmp_path, outcome):
    """The scheduler is killed during a Spark job; the tables equal those of undisturbed jobs.

    If the scheduler dies alone, the job goes on.
    """
    undisturbed = run_undisturbed(spark, tmp_path / "undisturbed")
    first = next(number for number, step in enumerate(STEPS) if step.date != STEPS[0].date)
    date = STEPS[first].date
    settings_file = undisturbed.copy(first, tmp_path / "home")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    generator, kills = random.Random(7), (("ingest_events", False), ("snapshot_lte", True), ("publish_lte", False))
    with BreakableStack(settings_file, mlflow_ui=False) as stack:
        stack.api.unpause("lte_daily")
        run_id = stack.api.trigger("lte_daily", date)
        for task_id, alone in kills:
            stack.wait_for("lte_daily", run_id, task_id, "running")
            deadline = time.monotonic() + 120
            while not stack.spark_drivers():
                assert time.monotonic() < deadline, f"{task_id} starts no driver"
                time.sleep(0.2)
            time.sleep(generator.uniform(0, 10))
            stack.kill_scheduler(alone)
            stack.start_scheduler()
        assert stack.wait_for_run("lte_daily", run_id) == "success", stack.api.tasks("lte_daily", run_id)
        tries = {task_id: stack.tasks("lte_daily", run_id)[task_id]["try_number"] for task_id, _ in kills}
    print(f"tries: {tries}")
    found = rows_of(tmp_path / "home" / "warehouse")
    monitored = found.pop("lte_monitoring")
    differs = difference(found, rows_of(undisturbed.states[-1]))
    what = "Airflow's scheduler killed in a run, alone or with its workers"
    outcome(what, times=len(kills), lost=int(bool(differs)), of="tables")
    assert not differs and len(set(monitored)) == len(monitored)


def test_a_task_whose_worker_is_killed_is_told_of(tmp_path, monkeypatch, outcome):
    """The DAG processor reports the failure, once the scheduler misses the worker's heartbeat."""
    (tmp_path / "settings.toml").write_text("", encoding="utf-8")
    monkeypatch.setenv("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "15")
    monkeypatch.setenv("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL", "2")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with mailbox() as box:
        for name, value in box.environment.items():
            monkeypatch.setenv(name, value)
        with BreakableStack(tmp_path / "settings.toml", mlflow_ui=False) as stack:
            run_id = stack.api.trigger("lte_promotion", TRAINING_DATE)
            stack.kill_worker_of("lte_model.registry.promotion challenger")
            assert stack.wait_for_run("lte_promotion", run_id) == "failed"
            deadline = time.monotonic() + 60
            while not (told := [message["Subject"] for message in box.messages if run_id in message["Subject"]]):
                assert time.monotonic() < deadline, "nobody was told"
                time.sleep(0.5)
    outcome("Airflow's worker killed under a task", times=1, lost=int(not told), of="failures that nobody was told of")
    # Airflow reports it twice: for the missed heartbeat, and for the executor's event on the same task.
    assert set(told) == {f"DAG lte_promotion - Task challenger - Run ID {run_id} in State failed"}


def test_a_dag_that_changes_during_a_backfill(tmp_path, monkeypatch, outcome):
    """A task is added to the DAG while a backfill runs.

    Each unfinished run gets the new task, even if one of its tasks runs or waits. The running task goes on unchanged,
    the finished run stays as it was, and nothing runs twice.
    """
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY / "dags", repository / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("jobs", "lte_model", "infra"):
        (repository / folder).symlink_to(REPOSITORY / folder)
    home = tmp_path / "home"
    home.mkdir()
    (home / "settings.toml").write_text("", encoding="utf-8")
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(repository / "dags"))
    dates = [datetime.date(2024, 6, day) for day in (1, 2, 3)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with BreakableStack(home / "settings.toml", mlflow_ui=False) as stack:
        _publish(stack.settings, dates)
        api, dag, task = stack.api, "lte_watch", "check_freshness"
        api.unpause(dag)
        api.backfill(dag, dates[0], dates[-1] + ONE_DAY)  # its runs are at noon
        runs = _runs_of(api, dag, len(dates))
        running = stack.suspend(f"jobs.check_freshness --date {dates[1]}")  # the third waits for its pool
        assert stack.wait_for_run(dag, runs[0]) == "success"
        before = [stack.state(dag, run_id, task) for run_id in runs]
        _add_a_task(repository / "dags" / "lte_watch.py")
        deadline = time.monotonic() + 120
        while not all("look_again" in stack.tasks(dag, run_id) for run_id in runs[1:]):
            assert time.monotonic() < deadline, "the changed file was not read"
            time.sleep(0.5)
        during = stack.tasks(dag, runs[1])
        running.resume()
        ended = [stack.wait_for_run(dag, run_id) for run_id in runs]
        tasks = [stack.tasks(dag, run_id) for run_id in runs]
    print(f"{task} was {before} as the DAG changed; the second run's tasks were {_states(during)} then")
    print(f"the runs ended as {ended}: {[_states(of_run) for of_run in tasks]}")
    twice = sum(one["try_number"] > 1 for of_run in tasks for one in of_run.values())
    failed = sum(state != "success" for state in ended)
    outcome("A DAG changed during a backfill", times=1, lost=failed + twice, of="runs failed, tasks run twice")
    assert before == ["success", "running", "scheduled"]
    assert during[task]["state"] == "running" and during["look_again"]["state"] is None
    assert not failed and not twice, tasks
    assert [sorted(of_run) for of_run in tasks] == [[task], [task, "look_again"], [task, "look_again"]]
    assert during[task]["start_date"] == tasks[1][task]["start_date"]


def _publish(settings, dates):
    rows = pl.DataFrame({"snapshot_date": dates}).with_columns(representation=pl.lit("uniform"), basis_id=pl.lit("b"))
    for table in ("publications", "snapshot_accounts"):
        rows.write_delta(settings.table_path(table))


def _states(tasks):
    return {task_id: task["state"] for task_id, task in tasks.items()}


def _runs_of(api, dag, count):
    """Waits for the backfill's `count` runs; returns their ids, sorted by date."""
    deadline = time.monotonic() + 60
    while len(runs := [run for run in api.runs(dag) if run["run_type"] == "backfill"]) < count:
        assert time.monotonic() < deadline, runs
        time.sleep(0.3)
    return [run["dag_run_id"] for run in sorted(runs, key=lambda run: run["logical_date"])]


def _add_a_task(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    added = re.sub(r'    gate\(\n        "check_freshness"', '    first = gate(\n        "check_freshness"', text)
    assert added != text
    added += (
        '    first >> gate(\n        "look_again",\n        f"jobs.check_freshness --date {DATE}",\n'
        '        on_failure="As above.",\n        pool="freshness",\n    )\n'
    )
    file.write_text(added, encoding="utf-8")

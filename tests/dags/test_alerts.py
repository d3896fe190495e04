"""A task's final failure is reported by the notifier in airflow.cfg, through its connection's mail server."""

import os
import subprocess
import sys

from tests.mailbox import mailbox
from tests.repository import REPOSITORY

FAIL_ALL = """
import types, sys
from airflow.dag_processing.dagbag import BundleDagBag
bag = BundleDagBag(sys.argv[1], bundle_path=sys.argv[1])
assert not bag.import_errors, bag.import_errors
tasks = [task for dag in bag.dags.values() for task in dag.tasks]
assert all(task.on_failure_callback for task in tasks)
for task in sorted(tasks, key=lambda task: task.task_id == "check_freshness")[-2:]:
    for tell in task.on_failure_callback:
        run = types.SimpleNamespace(dag_id=task.dag_id, task_id=task.task_id, run_id="a run", state=None)
        run.try_number, run.max_tries, run.hostname, run.log_url = 1, 0, "here", "a page"
        tell({"dag": task.dag, "task": task, "ti": run})
"""


def test_every_task_tells_of_its_failure_and_each_message_is_of_its_task():
    """Reports two tasks in one process, as a DAG processor does for tasks whose workers were killed."""
    with mailbox() as box:
        environment = os.environ | box.environment
        done = subprocess.run(
            [sys.executable, "-c", FAIL_ALL, REPOSITORY / "dags"],
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = box.messages
    assert second["Subject"] == "DAG lte_watch - Task check_freshness - Run ID a run in State failed"
    assert first["Subject"].startswith("DAG lte_") and first["Subject"] != second["Subject"]
    assert second["To"] == "team@shop.example"


def test_without_a_notifier_nobody_is_told():
    program = "import commands; assert commands.OWNER['on_failure_callback'] is None"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__LTE__")}
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY / "dags", env=environment, check=True)

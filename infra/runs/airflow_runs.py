"""Starts DAG runs in a real Airflow and follows them to their end."""

import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager

from infra.local.airflow_api import FINISHED
from infra.local.stack import LocalStack
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError

POLL_SECONDS = 1.0

ANSWER_AFTER = 10.0
"""Seconds before the demo answers a question.

If the scheduler has not recorded yet that the task waits, an answer looks like a worker that lost its task. An idle
scheduler records states every five seconds.
"""


class FollowedRuns:
    """Follows runs to their end and prints a line as each task starts and ends.

    `jvms` collects the process ids of all Spark drivers seen in the stack.
    """

    def __init__(self, stack: LocalStack):
        self.stack = stack
        self.jvms: set[int] = set()
        self._seen: dict[tuple[str, str, str, int], tuple[str, int]] = {}
        self._begin = time.monotonic()

    def follow(self, dag_id: str, runs: dict[str, str]) -> None:
        """Waits until all runs ({run id: label}) have succeeded. Raises `TaskFailed` for the first task that fails."""
        approved: set[str] = set()
        waits_since: dict[str, float] = {}
        open_runs = dict(runs)
        for run_id in runs:
            for task in self.stack.api.tasks(dag_id, run_id):
                if task["state"] == "success":
                    self._seen[dag_id, run_id, task["task_id"], task["map_index"]] = (task["state"], task["try_number"])
        while open_runs:
            self.stack.check()
            self.jvms |= self.stack.spark_drivers()
            for run_id, label in list(open_runs.items()):
                tasks = self.stack.api.tasks(dag_id, run_id)
                for task in tasks:
                    self._report(dag_id, run_id, label, task)
                    if task["state"] == "awaiting_input" and run_id not in approved:
                        since = waits_since.setdefault(run_id, time.monotonic())
                        if time.monotonic() - since >= ANSWER_AFTER:
                            self._approve(dag_id, run_id, task["task_id"])
                            approved.add(run_id)
                states = {task["state"] for task in tasks}
                if tasks and states <= FINISHED and states <= {"success", "skipped"}:
                    del open_runs[run_id]
            time.sleep(POLL_SECONDS)

    def _approve(self, dag_id: str, run_id: str, task_id: str) -> None:
        question = self.stack.api.question(dag_id, run_id, task_id)
        print(f"        {question['subject']}")
        for line in (question["body"] or "").splitlines():
            print(f"        {line}" if line else "")
        print("        → Approve: given by this demo, through Airflow's API; in earnest a person answers.", flush=True)
        self.stack.api.answer(dag_id, run_id, task_id, "Approve")

    def _report(self, dag_id: str, run_id: str, label: str, task: dict) -> None:
        key = (dag_id, run_id, task["task_id"], task["map_index"])
        now = (task["state"], task["try_number"])
        if self._seen.get(key) == now:
            return
        self._seen[key] = now
        name = f"{task['task_id']} {task['rendered_map_index'] or ''}".rstrip()  # a mapped task's index is its label
        words = {
            "running": "starts",
            "up_for_retry": "failed, will be tried again",
            "awaiting_input": "waits for a person",
        }
        if task["state"] == "success":
            self._line(label, name, f"done in {task['duration'] or 0:.0f} s")
        elif task["state"] == "failed":
            self._line(label, name, "FAILED")
            raise TaskFailed(self.stack, dag_id, run_id, task)
        elif task["state"] in words:
            self._line(label, name, words[task["state"]])

    def _line(self, label: str, task_id: str, what: str) -> None:
        print(f"{time.monotonic() - self._begin:6.0f} s  {label:<24} {task_id:<24} {what}", flush=True)


class TaskFailed(LTEError):
    """A task failed after its last retry. Holds its command's output (`log`) and the log file (`file`)."""

    def __init__(self, stack: LocalStack, dag_id: str, run_id: str, task: dict):
        self.dag_id, self.task_id = dag_id, task["task_id"]
        log = stack.api.log(dag_id, run_id, task["task_id"], task["try_number"], task["map_index"])
        # The command's output stands between two lines that Airflow writes.
        ends = [n for n, line in enumerate(log) if line.startswith("Command exited")] or [len(log)]
        self.log = log[log.index("Output:") + 1 if "Output:" in log else 0 : ends[0]]
        self.file = stack.task_log(dag_id, run_id, task["task_id"], task["try_number"], task["map_index"])
        super().__init__(
            f"task {task['task_id']} of {dag_id} failed; its log: {self.file}; correct the cause, then run this again"
        )


class Steps:
    """The duration of each step in seconds, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times the block and stores the result under `name`."""
        begin = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begin


def run_once(progress: FollowedRuns, dag_id: str, date: datetime.date, conf: dict | None = None) -> None:
    """Runs the DAG for `date` unless that run has succeeded already; a failed run resumes at its failed tasks."""
    api = progress.stack.api
    api.unpause(dag_id)
    known = api.run_of(dag_id, date)
    if known is not None and known["state"] == "success":
        print(f"          {dag_id} {date}: succeeded before, not run again", flush=True)
        return
    if known is not None and known["state"] == "failed":
        api.clear(dag_id, known["dag_run_id"])
    run_id = known["dag_run_id"] if known is not None else api.trigger(dag_id, date, conf)
    progress.follow(dag_id, {run_id: f"{dag_id} {date}"})


def backfill_daily(progress: FollowedRuns, first: datetime.date, last: datetime.date) -> None:
    """Runs `lte_daily` for [first, last], both included, as one backfill."""
    api = progress.stack.api
    api.unpause("lte_daily")
    dates = [first + ONE_DAY * k for k in range((last - first).days + 1)]
    states = {date: (api.run_of("lte_daily", date) or {}).get("state") for date in dates}
    for date in dates:
        if states[date] == "success":
            print(f"          lte_daily {date}: succeeded before, not run again", flush=True)
    if any(state in (None, "failed") for state in states.values()):
        api.backfill("lte_daily", first, last)
    runs = {date: api.run_of("lte_daily", date) for date in dates if states[date] != "success"}
    progress.follow("lte_daily", {found["dag_run_id"]: f"lte_daily {date}" for date, found in runs.items() if found})


def follow_promotion(progress: FollowedRuns, training_before: bool) -> str | None:
    """Follows the promotion that the new challenger started. Returns why it was refused, or None if it wasn't."""
    api = progress.stack.api
    deadline = time.monotonic() + 60
    while not (runs := api.runs("lte_promotion")):
        if time.monotonic() > deadline:
            raise LTEError("the challenger was registered, but lte_promotion didn't start; see scheduler.log")
        time.sleep(POLL_SECONDS)
    newest = runs[0]
    if newest["state"] == "success":
        print("          lte_promotion: succeeded before, not run again", flush=True)
        return None
    if newest["state"] == "failed" and training_before:
        api.clear("lte_promotion", newest["dag_run_id"])
    try:
        progress.follow("lte_promotion", {newest["dag_run_id"]: "lte_promotion"})
    except TaskFailed as failure:
        if failure.task_id != "gate":
            raise
        # A gate that refuses is a result, not an error: the demo goes on and prints its reason.
        return next((line for line in reversed(failure.log) if line.startswith("error:")), f"see {failure.file}")
    return None

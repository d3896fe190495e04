"""The whole pipeline on one machine, through Airflow, from a feed to an approved model: `make demo`.

1. A feed: the demo shop, or your own with `--data FOLDER` (events.parquet and items.parquet).
2. An installation for it under `.lte/`: settings.toml is written once, from the options and the data's own dates.
3. Airflow runs `lte_bootstrap`, a backfill of `lte_daily` over the last three dates, and `lte_training`; the
   challenger that it registers starts `lte_promotion`, whose approval the demo gives itself.
4. A table of what came out.

What succeeded before isn't run again: a second call goes on where the first one stopped.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from infra.airflow_api import FINISHED
from infra.local_stack import REPOSITORY, LocalStack
from lte_model import verdict
from lte_model.errors import LTEError, run
from lte_model.settings import Settings, TrainingSet, load_settings
from lte_model.verdict import Evaluation
from lte_model.windows import ONE_DAY, parse_date, training_dates

DAILY_DATES = 3
SHOP_USERS, SHOP_ITEMS, SHOP_LAG = 2000, 600, 30
LAGS = (7, 30, 90, 365)
MOST_ANCHORS = 12
MOST_EPOCHS = 12
TRAINING_SHARE = 0.9
"""The test days are those after this quantile of the events' times."""

POLL_SECONDS = 1.0
ANSWER_AFTER = 10.0
"""Seconds before the demo answers a question. To a scheduler that has not booked yet that the task waits, an answer looks
like a worker that lost its task; a scheduler without other work books every five seconds."""

LOG_LINES = 15
SIDES = {"prefix": "prefix", "none": "none", "popularity_30d": "popularity"}


@dataclass(frozen=True)
class Feed:
    """The days of a feed: of the first and the last event, and of the quantile `TRAINING_SHARE` of event time."""

    first: datetime.date
    last: datetime.date
    cut: datetime.date


def read_feed(events: Path) -> Feed:
    """The days of the feed in a Parquet file. Times that aren't times are left to the ingest to refuse."""
    if not events.is_file():
        raise LTEError(f"there is no file {events}; give a folder with events.parquet and items.parquet")
    days = (
        past_events(events)
        .select(
            pl.col("time").min().alias("first"),
            pl.col("time").max().alias("last"),
            pl.col("time").quantile(TRAINING_SHARE, "nearest").alias("cut"),
        )
        .collect()
    )
    if days["first"][0] is None:
        raise LTEError(f"{events} holds no event with a time in the past; is event_ts right?")
    return Feed(*(days[name][0].date() for name in ("first", "last", "cut")))


def past_events(events: Path) -> pl.LazyFrame:
    """The events of a feed that have happened, with their `time`. Raises `LTEError` where the feed has no times."""
    rows = pl.scan_parquet(events)
    schema = rows.collect_schema()
    if "event_ts" not in schema:
        raise LTEError(f"{events} has no column event_ts; its columns: {', '.join(schema.names())}")
    times = pl.col("event_ts")
    if schema["event_ts"] == pl.String:
        times = times.str.to_datetime(strict=False, time_zone="UTC")
    # A feed may hold a stray time of the far past or future; an event must have happened by now.
    now = datetime.datetime.now(datetime.UTC)
    return rows.with_columns(time=times.cast(pl.Datetime("us", "UTC"))).filter(pl.col("time") <= now)


def sensible_lag(feed: Feed) -> int:
    """A tenth of the feed's span, as the nearest (by ratio) of a week, a month, a quarter and a year."""
    tenth = max((feed.last - feed.first).days, 1) / 10
    return min(LAGS, key=lambda lag: max(lag / tenth, tenth / lag))


def sensible_window(lag_days: int) -> int:
    """A year, as in the paper, or five lags where that is longer."""
    return max(365, 5 * lag_days)


def sensible_anchors(feed: Feed, date: datetime.date, lag_days: int, test_days: int) -> int:
    """As many anchors, a lag apart, as leave the oldest a lag's worth of events in the window of its LTE."""
    newest = training_dates(date, TrainingSet(anchors=1, test_days=test_days)).anchors[0]
    room = (newest - feed.first).days - 2 * lag_days
    if room < 0:
        raise LTEError(
            f"the feed from {feed.first} to {feed.last} is too short for lag {lag_days} and {test_days} test days; "
            "give a smaller LAG or TEST_DAYS"
        )
    return min(MOST_ANCHORS, room // lag_days + 1)


def demo_training(epochs: int = MOST_EPOCHS) -> str:
    """How a demo trains, as a section of settings."""
    return f"""\
[training]
# A demo is for looking; the defaults train on until nothing gets better.
epochs = {epochs}
patience = 2
"""


def settings_text(
    source: Path, lag_days: int, window_days: int, test_days: int, anchors: int, model: str = demo_training()
) -> str:
    """The settings of an installation for a feed; `model` are the sections on the model and its training.

    Paths start at its folder, but for what lies elsewhere.
    """
    return f"""\
# Written for the feed by `make`. Every key: lte_model/settings.py.
[sources]
events = {json.dumps(str(source / "events.parquet"))}
items = {json.dumps(str(source / "items.parquet"))}

[window]
lag_days = {lag_days}
window_days = {window_days}

[training_set]
anchors = {anchors}
anchor_every_days = {lag_days}
test_days = {test_days}

{model}
[spark]
jars = {json.dumps(str(REPOSITORY / ".cache/jars"))}
class_data_archive = {json.dumps(str(REPOSITORY / ".cache/classes.jsa"))}

[spark.conf]
# The jobs are short here; without the optimising compiler they end sooner.
"spark.driver.defaultJavaOptions" = "-XX:TieredStopAtLevel=1"
"""


def settle(
    arguments: argparse.Namespace,
    home: Path,
    source: Path,
    feed: Feed,
    date: datetime.date,
    model: str = demo_training(),
) -> Settings:
    """Writes settings.toml where there is none, and holds the options against it where there is one."""
    file = home / "settings.toml"
    if not file.exists():
        lag_days = arguments.lag or (sensible_lag(feed) if arguments.data else SHOP_LAG)
        test_days = arguments.test_days or max((date - feed.cut).days, 1)
        text = settings_text(
            source,
            lag_days,
            arguments.window or sensible_window(lag_days),
            test_days,
            sensible_anchors(feed, date, lag_days, test_days),
            model,
        )
        home.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    settings = load_settings(file)
    for name, asked, there in (
        ("LAG", arguments.lag, settings.window.lag_days),
        ("WINDOW", arguments.window, settings.window.window_days),
        ("TEST_DAYS", arguments.test_days, settings.training_set.test_days),
    ):
        if asked and asked != there:
            raise LTEError(f"{name}={asked}, but {file} says {there}; leave it out, or remove {home} to start anew")
    return settings


class Progress:
    """Follows runs to their end and prints a line as each task starts and ends.

    `jvms` is every Spark driver that was seen among the stack's processes.
    """

    def __init__(self, stack: LocalStack):
        self.stack = stack
        self.jvms: set[int] = set()
        self._seen: dict[tuple[str, str, str, int], tuple[str, int]] = {}
        self._begin = time.monotonic()

    def follow(self, dag_id: str, runs: dict[str, str]) -> None:
        """Returns when every run (run id → what to call it) succeeded. Raises `TaskFailed` for the first that fails."""
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
        name = f"{task['task_id']} {task['rendered_map_index'] or ''}".rstrip()  # of a mapped task, what it is for
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
    """A task failed for good. Says which, with the end of its log and the log's file."""

    def __init__(self, stack: LocalStack, dag_id: str, run_id: str, task: dict):
        self.dag_id, self.task_id = dag_id, task["task_id"]
        log = stack.api.log(dag_id, run_id, task["task_id"], task["try_number"], task["map_index"])
        # What the command printed stands between two lines of Airflow's own.
        ends = [n for n, line in enumerate(log) if line.startswith("Command exited")] or [len(log)]
        self.log = log[log.index("Output:") + 1 if "Output:" in log else 0 : ends[0]]
        self.file = stack.task_log(dag_id, run_id, task["task_id"], task["try_number"], task["map_index"])
        super().__init__(
            f"task {task['task_id']} of {dag_id} failed; its log: {self.file}; correct the cause, then run this again"
        )


class Steps:
    """How long each step took, seconds, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begin


def run_once(progress: Progress, dag_id: str, date: datetime.date, conf: dict | None = None) -> None:
    """Runs the DAG for `date`, unless that succeeded before; a run that failed goes on from its failed tasks."""
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


def backfill_daily(progress: Progress, first: datetime.date, last: datetime.date) -> None:
    """Runs `lte_daily` for [first, last] by one backfill, as the form in the UI does."""
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


def follow_promotion(progress: Progress, training_before: bool) -> str | None:
    """Follows the promotion that the new challenger started. Returns why it was refused, or None where it wasn't."""
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
        # A gate that says no has done its work: the figures below say why.
        return next((line for line in reversed(failure.log) if line.startswith("error:")), f"see {failure.file}")
    return None


def rows_per_table(settings: Settings) -> dict[str, int]:
    """Rows of each Delta table of the warehouse, counted without a JVM."""
    tables = sorted(path.parent for path in Path(settings.warehouse).glob("*/_delta_log"))
    return {table.name: pl.scan_delta(str(table)).select(pl.len()).collect().item() for table in tables}


def print_outcome(
    settings: Settings,
    evaluation: Evaluation,
    rows: dict[str, int],
    steps: dict[str, float],
    jvms: int,
    refused: str | None,
) -> None:
    """The closing table."""
    from lte_model import registry  # MLflow takes seconds to import, and is needed at the end alone

    metric = verdict.headline_metric(evaluation)
    print("\nrows")
    for table, count in rows.items():
        print(f"  {table:<20} {count:>12,}")
    print(
        f"\n{verdict.metric_label(metric)}, 95 % intervals: {evaluation['test_users']:,} users, "
        f"{evaluation['catalogue_items']:,} items, test days [{evaluation['test'][0]}, {evaluation['test'][1]})"
    )
    names = {"prefix": "with LTE", "none": "without LTE", "popularity_30d": "popularity, 30 days"}
    for side, name in names.items():
        figure = evaluation["sides"][side]["metrics"][metric]
        print(f"  {name:<34} {verdict.number(figure['value'])}  {verdict.interval(figure)}")
    for rival, name in ((verdict.OVER_NONE, "without LTE"), (verdict.OVER_POPULARITY, "popularity")):
        figure = evaluation["uplift"][rival][metric]
        print(f"  with LTE over {name:<20} {verdict.percent(figure['value'])}  {verdict.percent_interval(figure)}")
    print("\nmodels")
    for line in registry.status(settings):
        print(f"  {line}")
    if refused:
        print(f"  not promoted: {refused}")
    print("\nseconds")
    for step, seconds in steps.items():
        print(f"  {step:<20} {seconds:>12.0f}")
    print(f"  {'in all':<20} {sum(steps.values()):>12.0f}   {jvms} JVMs started")
    report = verdict.report_path(settings, datetime.date.fromisoformat(evaluation["training_date"]))
    print(f"\nreport  {os.path.relpath(report)}")
    print(f"next    make up SETTINGS={os.path.relpath(settings.home)}/settings.toml")
    print("        Airflow, MLflow, the Data Docs and the report in the browser; backfill lte_daily over other dates")


def write_json(file: Path, evaluation: Evaluation, rows: dict[str, int], steps: dict[str, float]) -> None:
    """The closing table in the form of every measuring command: a list of measure, side, value, unit."""
    sides = evaluation["sides"]
    measures = [("ndcg@500", as_, sides[side]["metrics"]["ndcg@500"]["value"], "") for side, as_ in SIDES.items()]
    measures += [("rows", table, count, "rows") for table, count in rows.items()]
    measures += [("seconds", step, round(seconds, 1), "s") for step, seconds in steps.items()]
    content = [dict(zip(("measure", "side", "value", "unit"), measure, strict=True)) for measure in measures]
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def make_shop(folder: Path, users: int, items: int) -> None:
    command = [
        sys.executable,
        "-m",
        "jobs.demo_shop",
        "--out",
        str(folder),
        "--users",
        str(users),
        "--items",
        str(items),
    ]
    if subprocess.run(command, cwd=REPOSITORY, check=False).returncode != 0:
        raise LTEError(f"the demo shop was not made in {folder}; see above")


def demonstrate(arguments: argparse.Namespace, steps: Steps) -> None:
    """The demo, for the options of the command line."""
    if arguments.data:
        source = Path(arguments.data).resolve()
        home = REPOSITORY / ".lte" / source.name
    else:
        users, items = arguments.users or SHOP_USERS, arguments.items or SHOP_ITEMS
        default = (users, items) == (SHOP_USERS, SHOP_ITEMS)
        home = REPOSITORY / ".lte" / ("demo" if default else f"demo-{users}x{items}")
        source = home / "source"
        with steps.step("demo shop"):
            make_shop(source, users, items)
    home = Path(arguments.home).resolve() if arguments.home else home
    feed = read_feed(source / "events.parquet")
    date = parse_date(arguments.date) if arguments.date else feed.last + ONE_DAY
    settings = settle(arguments, home, source, feed, date)
    print(
        f"events from {feed.first} to {feed.last}; "
        f"lag {settings.window.lag_days}, window {settings.window.window_days}, "
        f"test days {settings.training_set.test_days}, anchors {settings.training_set.anchors}; training date {date}"
    )

    with ExitStack() as opened:
        with steps.step("Airflow start"):
            stack = opened.enter_context(LocalStack(home / "settings.toml", mlflow_ui=False, feed_end=date))
        print(f"Airflow: {stack.airflow_url}, user admin, password {stack.password}\n", flush=True)
        progress = Progress(stack)
        first_daily = date - ONE_DAY * (DAILY_DATES - 1)
        with steps.step("lte_bootstrap"):
            run_once(progress, "lte_bootstrap", first_daily - ONE_DAY, {"since": feed.first.isoformat()})
        with steps.step("lte_daily"):
            backfill_daily(progress, first_daily, date)
        with steps.step("lte_training"):
            trained = stack.api.run_of("lte_training", date)
            run_once(progress, "lte_training", date)
        with steps.step("lte_promotion"):
            refused = follow_promotion(progress, training_before=trained is not None and trained["state"] == "success")

    evaluation = verdict.read_evaluation(settings, date)
    rows = rows_per_table(settings)
    print_outcome(settings, evaluation, rows, steps.seconds, len(progress.jvms), refused)
    if arguments.json:
        write_json(Path(arguments.json), evaluation, rows, steps.seconds)


def options(values: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="your feed; without it the demo shop is made")
    parser.add_argument("--users", type=int, help=f"users of the demo shop (default {SHOP_USERS})")
    parser.add_argument("--items", type=int, help=f"items of the demo shop (default {SHOP_ITEMS})")
    add_installation(parser, f"from the feed's span; the demo shop: {SHOP_LAG}", ".lte/<name of the feed>")
    return parser.parse_args(values)


def add_installation(parser: argparse.ArgumentParser, lag: str, home: str) -> None:
    """The options of an installation for a feed, as `settle` reads them; `lag` and `home` describe the defaults."""
    parser.add_argument("--lag", type=int, help=f"days (default: {lag})")
    parser.add_argument("--window", type=int, help="days (default: a year, or five lags)")
    parser.add_argument("--date", help="training date, YYYY-MM-DD (default: the day after the last event)")
    parser.add_argument("--test-days", type=int, help="days (default: the last tenth of the events)")
    parser.add_argument("--home", help=f"folder of the installation (default: {home})")
    parser.add_argument("--json", metavar="FILE", help="write the closing table there, too")


def main() -> None:
    # Both ways to be stopped unwind the stack, so that no process is left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        demonstrate(options(), Steps())
    except TaskFailed as failure:
        print(f"\nthe end of the log of {failure.task_id}:", *failure.log[-LOG_LINES:], sep="\n  ")
        raise
    except KeyboardInterrupt:
        raise LTEError("stopped; run it again to go on from here") from None


if __name__ == "__main__":
    run(main)

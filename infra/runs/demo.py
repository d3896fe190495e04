"""Runs the whole pipeline through Airflow on one machine, from a feed to an approved model: `make demo`.

1. Makes the demo shop's feed, or takes yours with `--data FOLDER` (events.parquet and items.parquet).
2. Writes an installation under `.lte/`. Its settings.toml is written once, from the options and the feed's dates.
3. Airflow runs `lte_bootstrap`, a backfill of `lte_daily` over the last three dates, and `lte_training`. The
   challenger that `lte_training` registers starts `lte_promotion`; the demo gives the approval itself.
4. Prints a table of the results.

Runs that succeeded before are skipped: a second call resumes where the first one stopped.
"""

import argparse
import datetime
import json
import os
import signal
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import polars as pl

from infra.local.stack import LocalStack
from infra.repository import REPOSITORY
from infra.runs.airflow_runs import (
    FollowedRuns,
    Steps,
    TaskFailed,
    backfill_daily,
    follow_promotion,
    run_once,
)
from infra.runs.commands import LOG_LINES
from infra.runs.installation import (
    SHOP_ITEMS,
    SHOP_LAG,
    SHOP_USERS,
    add_installation,
    make_shop,
    measure_rows,
    read_feed,
    settle,
)
from lte_model import figures
from lte_model.command_line import run
from lte_model.domain.windows import ONE_DAY, parse_date
from lte_model.errors import LTEError
from lte_model.evaluation import results
from lte_model.evaluation.results import Evaluation
from lte_model.settings import Settings

DAILY_DATES = 3
RECORDED_SIDES = {"prefix": "prefix", "none": "none", "popularity_30d": "popularity"}


def rows_per_table(settings: Settings) -> dict[str, int]:
    """The number of rows in each Delta table of the warehouse, counted without a JVM."""
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
    """Prints the results."""
    from lte_model.registry import versions  # imports MLflow, which takes seconds and is needed only here

    metric = results.headline_metric(evaluation)
    print("\nrows")
    for table, count in rows.items():
        print(f"  {table:<20} {count:>12,}")
    print(
        f"\n{figures.metric_label(metric)}, 95 % intervals: {evaluation['test_users']:,} users, "
        f"{evaluation['catalogue_items']:,} items, test days [{evaluation['test'][0]}, {evaluation['test'][1]})"
    )
    for side in RECORDED_SIDES:
        figure = evaluation["sides"][side]["metrics"][metric]
        print(f"  {figures.SIDE_NAMES[side]:<34} {figure.number()}  {figure.interval()}")
    for rival, name in ((results.OVER_NONE, "without LTE"), (results.OVER_POPULARITY, "popularity")):
        figure = evaluation["uplift"][rival][metric]
        print(f"  with LTE over {name:<20} {figure.percent()}  {figure.percent_interval()}")
    print("\nmodels")
    for line in versions.status(settings):
        print(f"  {line}")
    if refused:
        print(f"  not promoted: {refused}")
    print("\nseconds")
    for step, seconds in steps.items():
        print(f"  {step:<20} {seconds:>12.0f}")
    print(f"  {'in all':<20} {sum(steps.values()):>12.0f}   {jvms} JVMs started")
    report = results.report_path(settings, datetime.date.fromisoformat(evaluation["training_date"]))
    print(f"\nreport  {os.path.relpath(report)}")
    print(f"next    make up SETTINGS={os.path.relpath(settings.home)}/settings.toml")
    print("        Airflow, MLflow, the Data Docs and the report in the browser; backfill lte_daily over other dates")


def write_json(file: Path, evaluation: Evaluation, rows: dict[str, int], steps: dict[str, float]) -> None:
    """Writes the results as rows of measure, side, value and unit, the format of every `--json` option."""
    sides = evaluation["sides"]
    measures = [("ndcg@500", as_, sides[side]["metrics"]["ndcg@500"].value, "") for side, as_ in RECORDED_SIDES.items()]
    measures += [("rows", table, count, "rows") for table, count in rows.items()]
    measures += [("seconds", step, round(seconds, 1), "s") for step, seconds in steps.items()]
    file.write_text(json.dumps(measure_rows(measures), indent=1) + "\n", encoding="utf-8")


def demonstrate(arguments: argparse.Namespace, steps: Steps) -> None:
    """Runs the demo with the options of the command line."""
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
        progress = FollowedRuns(stack)
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

    evaluation = results.read_evaluation(settings, date)
    rows = rows_per_table(settings)
    print_outcome(settings, evaluation, rows, steps.seconds, len(progress.jvms), refused)
    if arguments.json:
        write_json(Path(arguments.json), evaluation, rows, steps.seconds)


def options(values: Iterable[str] | None = None) -> argparse.Namespace:
    """Parses the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="your feed; without it the demo shop is made")
    parser.add_argument("--users", type=int, help=f"users of the demo shop (default {SHOP_USERS})")
    parser.add_argument("--items", type=int, help=f"items of the demo shop (default {SHOP_ITEMS})")
    add_installation(parser, f"from the feed's span; the demo shop: {SHOP_LAG}", ".lte/<name of the feed>")
    return parser.parse_args(values)


def main() -> None:
    """Reads the command line and runs the command."""
    # SIGTERM, like Ctrl-C, must unwind the stack, so that no process is left.
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

"""Runs the drill of a feed on one machine, without Airflow: `make drill [DATA=folder]`.

1. Writes an installation for the feed under `.lte/`, like the ablation's; without a feed it makes the demo shop. If the
   feed has no `known_date`, an item's first event gives it, so that version 2 has items that version 1 lacks.
2. Runs the jobs that make the tables. The basis is fitted on version 1's items; items new in version 2 are embedded in
   the same basis.
3. Trains both versions in every space, as many at once as an ablation does, and writes the report.

Version 2 is trained on `--date`, version 1 `--gap` days before. A command that succeeded before is skipped.
"""

import argparse
import dataclasses
import datetime
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from infra.repository import REPOSITORY
from infra.runs.commands import TRAININGS_AT_ONCE, Commands
from infra.runs.installation import (
    SHOP_ITEMS,
    SHOP_LAG,
    SHOP_USERS,
    STUDY_TRAINING,
    FeedDays,
    add_installation,
    make_shop,
    measure_rows,
    past_events,
    read_feed,
    sensible_lag,
    settle,
)
from lte_model.command_line import run
from lte_model.domain.windows import ONE_DAY, parse_date
from lte_model.errors import LTEError
from lte_model.settings import Settings
from lte_model.studies.drill_page import judged_change
from lte_model.studies.results import Drill, drill_path, read_drill
from lte_model.studies.spaces import MATRIX, SKEWED, SPACES
from lte_model.studies.variants import SEEDS

ENCODER_LAGS = 2
"""Version 1's encoder is fitted on the days before its oldest anchor: this many lags, plus one."""


def dated_feed(source: Path, folder: Path) -> Path:
    """The folder of a feed with items' `known_date`: `source`, or a copy in `folder` that adds the column.

    An item's first event gives its `known_date`. Raises `LTEError` if there is no items.parquet.
    """
    items, events = source / "items.parquet", source / "events.parquet"
    if not items.is_file():
        raise LTEError(f"there is no file {items}; give a folder with events.parquet and items.parquet")
    if "known_date" in pl.read_parquet_schema(items):
        return source
    folder.mkdir(parents=True, exist_ok=True)
    since = (
        past_events(events).group_by(pl.col("item_id").cast(pl.String)).agg(known_date=pl.col("time").min().dt.date())
    )
    frame = pl.scan_parquet(items).with_columns(pl.col("item_id").cast(pl.String)).join(since, on="item_id", how="left")
    frame.collect().write_parquet(folder / "items.parquet")
    copy = folder / "events.parquet"
    copy.unlink(missing_ok=True)
    copy.symlink_to(events.resolve())
    return folder


def with_room(feed: FeedDays, gap_days: int, lag_days: int) -> FeedDays:
    """The feed with a later first day, so that `settle` places the anchors after the days of version 1's encoder."""
    return dataclasses.replace(feed, first=feed.first + ONE_DAY * (gap_days + ENCODER_LAGS * lag_days))


def table_commands(earlier: datetime.date, later: datetime.date, since: datetime.date) -> list[str]:
    """The command lines that make both versions' tables, in order. The drill's trainings compute the LTEs."""
    return [
        f"jobs.ingest_items --date {later}",
        f"jobs.ingest_events --date {later} --since {since}",
        f"jobs.fit_basis --date {earlier}",
        f"jobs.embed_items --date {later}",
        f"jobs.build_training_set --date {earlier}",
        f"jobs.build_training_set --date {later}",
    ]


def training_commands(earlier: datetime.date, later: datetime.date, seeds: int) -> list[str]:
    """The command lines that train both versions in every space, seed by seed."""
    return [
        f"lte_model.studies.drill train --date {date} --space {space} --seed {seed}"
        for seed in range(seeds)
        for space in SPACES
        for date in (earlier, later)
    ]


def measures_of(drill: Drill) -> list[dict[str, Any]]:
    """The figures as rows of measure, side, value and unit, the format of every `--json` option."""
    headline = drill["headline"]
    return measure_rows(
        (f"drill_{space}", cell, of_space["cells"][cell]["metrics"][headline].value, "ndcg")
        for space, of_space in drill["spaces"].items()
        for cell in MATRIX
    )


def print_outcome(drill: Drill) -> None:
    """Prints the results."""
    headline = drill["headline"]
    print(
        f"\n{headline}, 95 % intervals, means over {drill['seeds']} seeds: {drill['test_users']:,} users, "
        f"{drill['catalogue_items']:,} items, {drill['new_items']:,} of them new; v1 of {drill['earlier_date']}, "
        f"v2 of {drill['training_date']}"
    )
    for space, of_space in drill["spaces"].items():
        for cell, of_cell in of_space["cells"].items():
            figure = of_cell["metrics"][headline]
            lte = "no LTE" if cell.endswith("none") else f"LTE {cell[2:]}"
            print(f"  {space:<9} ranker {cell[:2]}, {lte:<7} {figure.number()}  {figure.interval()}")
    print()
    for space in drill["spaces"]:
        for name, change in SKEWED.items():
            found = judged_change(drill, space, name)
            uplift = f"{found['uplift'].percent(digits=2):>9}  {found['uplift'].percent_interval(2):<24}"
            print(f"  {space:<9} {change.text:<20} {uplift} {found['finding']}")


def make_tables(arguments: argparse.Namespace) -> tuple[Commands, Settings, datetime.date, datetime.date]:
    """Settles the installation and makes its tables.

    Returns the installation's `Commands`, its settings, and the training dates of versions 1 and 2.
    """
    source = Path(arguments.data).resolve() if arguments.data else None
    name = f"{source.name}-drill" if source else "demo-drill"
    home = Path(arguments.home).resolve() if arguments.home else REPOSITORY / ".lte" / name
    if not source:
        source = home / "shop"
        make_shop(source, SHOP_USERS, SHOP_ITEMS)
    feed = read_feed(source / "events.parquet")
    later = parse_date(arguments.date) if arguments.date else feed.last + ONE_DAY
    lag_days = arguments.lag or (sensible_lag(feed) if arguments.data else SHOP_LAG)
    room = with_room(feed, arguments.gap or lag_days, lag_days)
    settings = settle(arguments, home, dated_feed(source, home / "source"), room, later, STUDY_TRAINING)
    earlier = later - ONE_DAY * (arguments.gap or settings.window.lag_days)
    commands = Commands(home)
    for command in table_commands(earlier, later, feed.first):
        commands.run(command)
    return commands, settings, earlier, later


def drill(arguments: argparse.Namespace) -> Drill:
    """Runs the drill with the options of the command line; returns its results."""
    commands, settings, earlier, later = make_tables(arguments)
    at_once = min(TRAININGS_AT_ONCE, os.cpu_count() or 1)
    commands.run_all(training_commands(earlier, later, arguments.seeds), at_once)
    commands.output(f"lte_model.studies.drill report --date {later} --earlier {earlier} --seeds {arguments.seeds}")
    found = read_drill(settings, later)
    print_outcome(found)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(measures_of(found), indent=1) + "\n", encoding="utf-8")
    print(f"\nreport  {os.path.relpath(drill_path(settings, later).with_suffix('.html'))}")
    return found


def options(values: Iterable[str] | None = None) -> argparse.Namespace:
    """Parses the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="your feed; without it the demo shop is made")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each training (default: %(default)s)")
    parser.add_argument("--gap", type=int, help="days from version 1 to version 2 (default: the lag)")
    add_installation(parser, f"from the feed's span; the demo shop: {SHOP_LAG}", ".lte/<name of the feed>-drill")
    return parser.parse_args(values)


def main() -> None:
    """Reads the command line and runs the command."""
    # SIGTERM, like Ctrl-C, must end the running commands.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        drill(options())
    except KeyboardInterrupt:
        raise LTEError("stopped; run it again to go on from here") from None


if __name__ == "__main__":
    run(main)

"""Sets up an installation for a feed: reads the feed's days, derives settings, makes the demo shop."""

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from infra.repository import REPOSITORY
from lte_model.errors import LTEError
from lte_model.settings import Settings, TrainingSetSettings, load_settings

SHOP_USERS, SHOP_ITEMS, SHOP_LAG = 2000, 600, 30
"""The demo shop's defaults; the lag is in days."""

LAGS = (7, 30, 90, 365)
"""The candidates of `sensible_lag`, in days."""

MOST_ANCHORS = 12
MOST_EPOCHS = 12

STUDY_TRAINING = """\
[training]
# Dozens of trainings: each ends two epochs after its best.
patience = 2
"""
"""The `[training]` section of an ablation's or a drill's settings."""

TRAINING_SHARE = 0.9
"""The test days start at this quantile of the event times."""


@dataclass(frozen=True)
class FeedDays:
    """The days of a feed's first event, its last event, and the `TRAINING_SHARE` quantile of its event times."""

    first: datetime.date
    last: datetime.date
    cut: datetime.date


def read_feed(events: Path) -> FeedDays:
    """The days of a feed in a Parquet file. Ignores invalid times, which the ingest will refuse.

    Raises `LTEError` if there is no file, or no event in the past.
    """
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
    return FeedDays(*(days[name][0].date() for name in ("first", "last", "cut")))


def past_events(events: Path) -> pl.LazyFrame:
    """The feed's events up to now, with column `time`. Raises `LTEError` if the feed has no column `event_ts`."""
    rows = pl.scan_parquet(events)
    schema = rows.collect_schema()
    if "event_ts" not in schema:
        raise LTEError(f"{events} has no column event_ts; its columns: {', '.join(schema.names())}")
    times = pl.col("event_ts")
    if schema["event_ts"] == pl.String:
        times = times.str.to_datetime(strict=False, time_zone="UTC")
    # A feed may hold stray times in the future; an event must have happened by now.
    now = datetime.datetime.now(datetime.UTC)
    return rows.with_columns(time=times.cast(pl.Datetime("us", "UTC"))).filter(pl.col("time") <= now)


def sensible_lag(feed: FeedDays) -> int:
    """The lag nearest (by ratio) to a tenth of the feed's span: a week, a month, a quarter or a year, in days."""
    tenth = max((feed.last - feed.first).days, 1) / 10
    return min(LAGS, key=lambda lag: max(lag / tenth, tenth / lag))


def sensible_window(lag_days: int) -> int:
    """The window in days: a year, as in the paper, or five lags if that is longer."""
    return max(365, 5 * lag_days)


def sensible_anchors(feed: FeedDays, date: datetime.date, lag_days: int, test_days: int) -> int:
    """The most anchors, a lag apart, such that the oldest anchor's LTE still sees a lag's worth of events.

    Raises `LTEError` if the feed is too short for one anchor.
    """
    newest = TrainingSetSettings(anchors=1, test_days=test_days).dates(date).anchors[0]
    room = (newest - feed.first).days - 2 * lag_days
    if room < 0:
        raise LTEError(
            f"the feed from {feed.first} to {feed.last} is too short for lag {lag_days} and {test_days} test days; "
            "give a smaller LAG or TEST_DAYS"
        )
    return min(MOST_ANCHORS, room // lag_days + 1)


def demo_training(epochs: int = MOST_EPOCHS) -> str:
    """The `[training]` section of a demo's settings."""
    return f"""\
[training]
# A demo is for looking; the defaults train on until nothing gets better.
epochs = {epochs}
patience = 2
"""


def settings_text(
    source: Path, lag_days: int, window_days: int, test_days: int, anchors: int, model: str = demo_training()
) -> str:
    """The text of settings.toml for a feed; `model` gives the sections on the model and its training.

    The paths that it leaves to their defaults are relative to the installation's folder.
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
    feed: FeedDays,
    date: datetime.date,
    model: str = demo_training(),
) -> Settings:
    """Writes settings.toml if there is none, and returns the settings.

    Raises `LTEError` if an option contradicts an existing settings.toml.
    """
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


def make_shop(folder: Path, users: int, items: int) -> None:
    """Writes a demo shop's feed into `folder`, unless it is there. Raises `LTEError` if that fails."""
    command = [sys.executable, "-m", "jobs.demo_shop", "--out", str(folder)]
    sizes = ["--users", str(users), "--items", str(items)]
    if subprocess.run([*command, *sizes], cwd=REPOSITORY, check=False).returncode != 0:
        raise LTEError(f"the demo shop was not made in {folder}; see above")


def measure_rows(rows: Iterable[tuple[str, str, float | None, str]]) -> list[dict[str, Any]]:
    """Rows of (measure, side, value, unit) in the format of every `--json` option."""
    return [dict(zip(("measure", "side", "value", "unit"), row, strict=True)) for row in rows]


def add_installation(parser: argparse.ArgumentParser, lag: str, home: str) -> None:
    """Adds the options that `settle` reads, plus `--home` and `--json`; `lag` and `home` describe the defaults."""
    parser.add_argument("--lag", type=int, help=f"days (default: {lag})")
    parser.add_argument("--window", type=int, help="days (default: a year, or five lags)")
    parser.add_argument("--date", help="training date, YYYY-MM-DD (default: the day after the last event)")
    parser.add_argument("--test-days", type=int, help="days (default: the last tenth of the events)")
    parser.add_argument("--home", help=f"folder of the installation (default: {home})")
    parser.add_argument("--json", metavar="FILE", help="write the closing table there, too")

"""An installation for a feed: what the feed holds, the settings it suggests, the demo shop."""

import argparse
import datetime
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from infra.repository import REPOSITORY
from lte_model.errors import LTEError
from lte_model.settings import Settings, TrainingSetSettings, load_settings

SHOP_USERS, SHOP_ITEMS, SHOP_LAG = 2000, 600, 30
"""The demo shop, unless told otherwise."""

LAGS = (7, 30, 90, 365)
"""The lags that a feed's span chooses from, days."""

MOST_ANCHORS = 12
MOST_EPOCHS = 12

STUDY_TRAINING = """\
[training]
# Dozens of trainings: each ends two epochs after its best.
patience = 2
"""
"""How an ablation or a drill trains, as a section of settings."""

TRAINING_SHARE = 0.9
"""The test days are those after this quantile of the events' times."""


@dataclass(frozen=True)
class FeedDays:
    """The days of a feed: of the first and the last event, and of the quantile `TRAINING_SHARE` of event time."""

    first: datetime.date
    last: datetime.date
    cut: datetime.date


def read_feed(events: Path) -> FeedDays:
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
    return FeedDays(*(days[name][0].date() for name in ("first", "last", "cut")))


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


def sensible_lag(feed: FeedDays) -> int:
    """A tenth of the feed's span, as the nearest (by ratio) of a week, a month, a quarter and a year."""
    tenth = max((feed.last - feed.first).days, 1) / 10
    return min(LAGS, key=lambda lag: max(lag / tenth, tenth / lag))


def sensible_window(lag_days: int) -> int:
    """A year, as in the paper, or five lags where that is longer."""
    return max(365, 5 * lag_days)


def sensible_anchors(feed: FeedDays, date: datetime.date, lag_days: int, test_days: int) -> int:
    """As many anchors, a lag apart, as leave the oldest a lag's worth of events in the window of its LTE."""
    newest = TrainingSetSettings(anchors=1, test_days=test_days).dates(date).anchors[0]
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
    feed: FeedDays,
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


def make_shop(folder: Path, users: int, items: int) -> None:
    """Writes the feed of a demo shop into `folder`, unless it is there. Raises `LTEError` where that fails."""
    command = [sys.executable, "-m", "jobs.demo_shop", "--out", str(folder)]
    sizes = ["--users", str(users), "--items", str(items)]
    if subprocess.run([*command, *sizes], cwd=REPOSITORY, check=False).returncode != 0:
        raise LTEError(f"the demo shop was not made in {folder}; see above")


def add_installation(parser: argparse.ArgumentParser, lag: str, home: str) -> None:
    """The options of an installation for a feed, as `settle` reads them; `lag` and `home` describe the defaults."""
    parser.add_argument("--lag", type=int, help=f"days (default: {lag})")
    parser.add_argument("--window", type=int, help="days (default: a year, or five lags)")
    parser.add_argument("--date", help="training date, YYYY-MM-DD (default: the day after the last event)")
    parser.add_argument("--test-days", type=int, help="days (default: the last tenth of the events)")
    parser.add_argument("--home", help=f"folder of the installation (default: {home})")
    parser.add_argument("--json", metavar="FILE", help="write the closing table there, too")

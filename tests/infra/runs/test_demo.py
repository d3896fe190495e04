"""The settings that the demo derives from a feed, and what it refuses. tests/e2e runs the demo's steps."""

import argparse
import datetime

import polars as pl
import pytest

from infra.runs.demo import write_json
from infra.runs.installation import FeedDays, read_feed, sensible_anchors, sensible_lag, sensible_window, settle
from lte_model.domain.windows import ONE_DAY, lte_window
from lte_model.errors import LTEError
from lte_model.figures import Figure
from lte_model.settings import load_settings

ONLINE_RETAIL = FeedDays(datetime.date(2010, 12, 1), datetime.date(2011, 12, 9), datetime.date(2011, 11, 20))
XWINES = FeedDays(datetime.date(2012, 4, 19), datetime.date(2021, 12, 31), datetime.date(2021, 4, 20))
NO_OPTIONS = argparse.Namespace(data="feed", lag=None, window=None, test_days=None)


@pytest.mark.parametrize(("feed", "lag", "window"), [(ONLINE_RETAIL, 30, 365), (XWINES, 365, 1825)])
def test_lag_and_window_suit_the_span(feed, lag, window):
    assert sensible_lag(feed) == lag
    assert sensible_window(lag) == window


@pytest.mark.parametrize("feed", [ONLINE_RETAIL, XWINES])
def test_the_oldest_anchor_has_a_lag_of_events_in_its_window(feed, tmp_path):
    date = feed.last + ONE_DAY
    settings = settle(NO_OPTIONS, tmp_path / "home", tmp_path, feed, date)
    oldest = settings.training_set.dates(date).anchors[0]
    lag = settings.window.lag_days
    assert (lte_window(oldest, lag, settings.window.window_days).end - feed.first).days >= lag
    assert settings.training_set.test_days == (date - feed.cut).days


def test_a_feed_that_is_too_short_is_refused():
    short = FeedDays(datetime.date(2024, 1, 1), datetime.date(2024, 3, 1), datetime.date(2024, 2, 20))
    with pytest.raises(LTEError, match="too short for lag 30 and 10 test days"):
        sensible_anchors(short, short.last + ONE_DAY, 30, 10)


def test_times_that_are_none_are_left_to_the_ingest(tmp_path):
    times = ["2024-01-01T10:00:00Z", "not a time", None, "2024-01-31T10:00:00Z", "2999-01-01T00:00:00Z"]
    pl.DataFrame({"event_ts": times}).write_parquet(tmp_path / "events.parquet")
    feed = read_feed(tmp_path / "events.parquet")
    assert (feed.first, feed.last) == (datetime.date(2024, 1, 1), datetime.date(2024, 1, 31))


def test_a_feed_without_its_columns_or_its_file_is_named(tmp_path):
    with pytest.raises(LTEError, match=r"there is no file .*events.parquet"):
        read_feed(tmp_path / "events.parquet")
    pl.DataFrame({"when": [1]}).write_parquet(tmp_path / "events.parquet")
    with pytest.raises(LTEError, match="no column event_ts; its columns: when"):
        read_feed(tmp_path / "events.parquet")


def test_options_are_held_against_the_installation_that_is_there(tmp_path):
    date = ONLINE_RETAIL.last + ONE_DAY
    settle(NO_OPTIONS, tmp_path, tmp_path, ONLINE_RETAIL, date)
    assert load_settings(tmp_path / "settings.toml").window.lag_days == 30
    asked = argparse.Namespace(data="feed", lag=60, window=None, test_days=None)
    with pytest.raises(LTEError, match=r"LAG=60, but .*settings.toml says 30"):
        settle(asked, tmp_path, tmp_path, ONLINE_RETAIL, date)


def test_the_json_has_one_form(tmp_path):
    figure = {"metrics": {"ndcg@500": Figure(0.25, 0.2, 0.3)}}
    evaluation = {"sides": {"prefix": figure, "none": figure, "popularity_30d": figure}}
    write_json(tmp_path / "out.json", evaluation, {"events": 3}, {"lte_daily": 1.234})
    rows = pl.read_json(tmp_path / "out.json").rows()
    assert rows == [
        ("ndcg@500", "prefix", 0.25, ""),
        ("ndcg@500", "none", 0.25, ""),
        ("ndcg@500", "popularity", 0.25, ""),
        ("rows", "events", 3.0, "rows"),
        ("seconds", "lte_daily", 1.2, "s"),
    ]

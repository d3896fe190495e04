"""The gates: good tables pass, and each planted fault is reported with its rule and its rows."""

import datetime
import re
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from great_expectations import expectations as gxe

from jobs.quality.check import WITH_ANCHORS, check, main
from jobs.quality.suites.by_table import SUITES
from jobs.quality.suites.rules import CheckedRows
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.settings import Settings
from tests.jobs.quality.good_tables import ALWAYS, good_tables

pytestmark = pytest.mark.slow

DATE = datetime.date(2024, 3, 1)


@pytest.fixture
def tables(settings: Settings) -> dict[str, pl.DataFrame]:
    """Good rows for every checked table; a test spoils some, and `gate` writes them all."""
    return good_tables(settings, DATE)


OPTIONS = {"events": {"since": None}, "test_measurements": {"test": "t"}} | {
    table: {"anchors": False} for table in WITH_ANCHORS
}


def reading(settings: Settings, *names: str) -> Settings:
    """The settings with other representations."""
    return settings.model_copy(update={"model": settings.model.model_copy(update={"representations": names})})


def gate(settings: Settings, tables: dict[str, pl.DataFrame], table: str) -> None:
    if table == "item_encodings":
        settings = reading(settings, "uniform", "autoencoder")
    for name, frame in tables.items():
        frame.write_delta(settings.table_path(name))
    check(settings, table, SUITES[table](settings, DATE, **OPTIONS.get(table, {})), DATE)


@pytest.mark.parametrize("table", sorted(SUITES))
def test_good_rows_pass_and_leave_a_page_and_a_result(settings, tables, table):
    gate(settings, tables, table)
    assert Path(settings.data_docs, "site", "index.html").exists()
    assert "passed" in Path(settings.data_docs, "site", "gates.html").read_text()
    assert list(Path(settings.data_docs, "results", table).rglob("*.json"))


def spoil(column, value, row=0):
    """The frame with one value replaced."""

    def spoiled(frame: pl.DataFrame) -> pl.DataFrame:
        values = frame[column].to_list()
        values[row] = value
        return frame.with_columns(pl.Series(column, values, frame.schema[column]))

    return spoiled


FAULTS = {
    "events dated after they were known": ("events", "events", spoil("event_date", DATE), "known_date.*user_id=u"),
    "a negative price": ("events", "events", spoil("price", -1.0, 1), '"price", "min_value": 0.*user_id=v'),
    "most items unknown": ("events", "items", lambda items: items.head(0), "item_known"),
    "too much in quarantine": ("events", "ingested_days", spoil("rows_quarantined", 4), "quarantined_share"),
    "a lost row": ("events", "ingested_days", spoil("rows_kept", 2), "unaccounted"),
    "no row at all": ("events", "events", lambda events: events.head(0), "expect_table_row_count_to_be_between"),
    "an item twice": ("items", "items", spoil("item_id", "b"), "to_be_unique.*item_id=b"),
    "a vector off the grid": ("item_embeddings", "item_embeddings", spoil("vector", [0.6, 0.8, 0, 0]), "off_grid"),
    "a vector too long": ("item_embeddings", "item_embeddings", spoil("vector", [1.0, 1.0, 0, 0]), "squared_norm"),
    "a vector of other dimensions": ("item_embeddings", "item_embeddings", spoil("vector", [1.0]), "dimensions"),
    "items without a vector": ("item_embeddings", "item_embeddings", lambda frame: frame.head(0), "has_vector"),
    "an encoding off the grid": ("item_encodings", "item_encodings", spoil("vector", [0.6, 0, 0, 0]), "off_grid"),
    "an encoding out of range": ("item_encodings", "item_encodings", spoil("vector", [1.5, 0, 0, 0]), "largest"),
    "an encoding of an unknown item": ("item_encodings", "item_encodings", spoil("item_id", "z"), "embedded"),
    "two encoders of a date": ("item_encodings", "item_encodings", spoil("encoder_id", "f"), "encoders"),
    "another lag, live": ("lte_live", "lte_live", spoil("lag_days", 0), "lag_days"),
    "a leak that is live": ("lte_live", "lte_live", spoil("representation", "leaking"), "to_not_be_in_set"),
    "a leak": (
        "lte_snapshots",
        "lte_snapshots",
        spoil("newest_event_date", DATE - ONE_DAY * 3),
        '"column_A": "window_end", "column_B": "newest_event_date".*1 of 2 rows.*user_id=u',
    ),
    "an event before the window": (
        "lte_snapshots",
        "lte_snapshots",
        spoil("newest_event_date", DATE - ONE_DAY * 14),
        "window_start",
    ),
    "a user twice": ("lte_snapshots", "lte_snapshots", spoil("user_id", "v"), "compound_columns_to_be_unique"),
    "a sum too large for its count": ("lte_snapshots", "lte_snapshots", spoil("event_count", 1), "norm"),
    "another lag": ("lte_snapshots", "lte_snapshots", spoil("lag_days", 4), "lag_days"),
    "a target in the window of its LTE": (
        "training_set",
        "training_set",
        spoil("oldest_target_date", DATE - ONE_DAY * 40),
        '"column_A": "oldest_target_date", "column_B": "window_end".*split=train',
    ),
    "more targets than events": ("training_set", "training_set", spoil("target_count", 2), "target_count"),
    "an item counted twice": ("item_popularity", "item_popularity", spoil("item_id", "b"), "columns_to_be_unique"),
    "more events in a week than in a month": (
        "item_popularity",
        "item_popularity",
        spoil("events_7d", 3),
        '"column_A": "events_30d", "column_B": "events_7d".*item_id=a',
    ),
    "counts of an earlier release": ("item_popularity", "item_popularity", spoil("events_180d", None), "events_180d"),
    "two lists of a user": (
        "recommendations",
        "recommendations",
        spoil("user_id", "v"),
        "columns_to_be_unique.*user_id=v",
    ),
    "a list too short": (
        "recommendations",
        "recommendations",
        spoil("candidate_items", 3),
        '"wanted_length".*user_id=u',
    ),
    "an item twice in a list": (
        "recommendations",
        "recommendations",
        spoil("item_ids", ["a", "a"]),
        '"column_B": "distinct_items".*user_id=u',
    ),
    "an item that is in no catalogue": (
        "recommendations",
        "recommendations",
        spoil("item_ids", ["a", "z"]),
        '"unknown_items".*user_id=u',
    ),
    "a worse item before a better": ("recommendations", "recommendations", spoil("scores", [0.1, 0.5]), '"descending"'),
    "a score that is no number": ("recommendations", "recommendations", spoil("scores", [float("nan")], 1), '"finite"'),
    "two models of a date": ("recommendations", "recommendations", spoil("model_version", 4, 1), '"model_version".*=v'),
    "a user without a list": (
        "recommendations",
        "recommendations",
        lambda frame: frame.head(1),
        'recommendations_coverage: .*"has_list".*1 of 2 rows.*user_id=v',
    ),
    "a day outside the test": (
        "test_measurements",
        "test_measurements",
        spoil("day", DATE),
        '"column_A": "test_end", "column_B": "day".*variant=control',
    ),
    "a day measured twice": (
        "test_measurements",
        "test_measurements",
        spoil("day", DATE - ONE_DAY),
        "compound_columns_to_be_unique.*variant=control, metric=engagement",
    ),
    "a variance below 0": ("test_measurements", "test_measurements", spoil("sum_yy", Decimal(0)), '"spread"'),
    "users of one metric alone": ("test_measurements", "test_measurements", spoil("users", 4), '"user_counts"'),
    "a metric of one variant": (
        "test_measurements",
        "test_measurements",
        lambda frame: frame.filter((pl.col("variant") == "lte") | (pl.col("metric") == "revenue")),
        '"variants", "min_value": 2.*metric=engagement',
    ),
    "a test target before the cut": ("training_set", "training_set", spoil("target_date", ALWAYS, -1), "target_date"),
    "two bases": ("training_set", "training_set", spoil("basis_id", "c", -1), "basis_id"),
    "a sequence without a target to train on": (
        "training_set",
        "training_set",
        spoil("target_count", 0),
        "target_count",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_stops_the_gate_and_is_named(settings, tables, fault, capsys):
    table, spoiled, change, said = FAULTS[fault]
    tables[spoiled] = change(tables[spoiled])
    with pytest.raises(LTEError, match=f"gate {table} of {DATE}: .* rules are broken"):
        gate(settings, tables, table)
    assert re.search(said, capsys.readouterr().out), fault
    page = Path(settings.data_docs, "site", "gates.html").read_text()
    assert "FAILED" in page and "http" not in page


def check_range(monkeypatch, settings, tables, options):
    """Runs the gate's command line in this process."""
    for name, frame in tables.items():
        frame.write_delta(settings.table_path(name))
    arguments = [*options.split(), "--settings", str(Path(settings.home, "settings.toml"))]
    monkeypatch.setattr("sys.argv", ["check", *arguments])
    main()


def test_a_range_is_checked_date_by_date_up_to_a_broken_one(settings, tables, monkeypatch, capsys):
    good = tables["lte_snapshots"]
    dates = pl.col("snapshot_date", "newest_event_date")
    tables["lte_snapshots"] = pl.concat(
        [good, good.with_columns(dates + datetime.timedelta(days=2)), good.head(1)]  # the first date has a user twice
    )
    with pytest.raises(LTEError, match=f"gate lte_snapshots of {DATE}: 1 of .*columns_to_be_unique"):
        check_range(monkeypatch, settings, tables, "lte_snapshots --from 2024-03-01 --to 2024-03-05 --every 2")
    assert "2024-03-03" not in capsys.readouterr().out
    check_range(monkeypatch, settings, {}, "lte_snapshots --from 2024-03-03 --to 2024-03-05 --every 2")
    assert "gate lte_snapshots of 2024-03-03: 14 rules hold" in capsys.readouterr().out
    with pytest.raises(LTEError, match=r"gate lte_snapshots of 2024-03-04: .* expect_table_row_count"):
        check_range(monkeypatch, settings, {}, "lte_snapshots --from 2024-03-03 --to 2024-03-05")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("events --from 2024-03-01 --to 2024-03-05", "a range is for the gate of lte_snapshots; give --date"),
        ("lte_snapshots --from 2024-03-01 --to 2024-03-05 --anchors", "--anchors are those of one training"),
        ("lte_snapshots --from 2024-03-05 --to 2024-03-01", "no date lies in .2024-03-05, 2024-03-01"),
        ("lte_snapshots --from 2024-03-01 --to 2024-03-05 --every 0", "a step of 0 days does not advance"),
        ("lte_snapshots --to 2024-03-05", "give --from and --to together, without --date"),
        ("lte_snapshots", "give --date, or --from and --to"),
        ("test_measurements --date 2024-03-01", "--test names an online test: give it for test_measurements"),
        ("events --date 2024-03-01 --test t", "--test names an online test: give it for test_measurements"),
    ],
)
def test_a_range_that_is_none_is_refused(settings, monkeypatch, options, said):
    with pytest.raises(LTEError, match=said):
        check_range(monkeypatch, settings, {}, options)


def test_a_missing_table_is_named(settings):
    with pytest.raises(LTEError, match=r"table items does not exist at .*; run jobs.ingest_items first"):
        SUITES["items"](settings, DATE)


def test_every_representation_of_the_settings_is_checked(settings, tables, capsys):
    rows, settings = tables["lte_snapshots"], reading(settings, "uniform", "leaking")
    with pytest.raises(LTEError, match=r"1 of 14 rules are broken.*lte_snapshots_representations"):
        gate(settings, tables, "lte_snapshots")
    assert "representation=leaking" in capsys.readouterr().out
    leaking = rows.with_columns(
        pl.lit("leaking").alias("representation"),
        pl.col("newest_event_date") + ONE_DAY * 3,
        lag_days=pl.lit(0, pl.Int64),
    )
    for lag_days, broken in ((0, None), (3, "window_end")):
        rows_there = pl.concat([rows, leaking.with_columns(lag_days=pl.lit(lag_days, pl.Int64))])
        rows_there.write_delta(settings.table_path("lte_snapshots"), mode="overwrite")
        batches = SUITES["lte_snapshots"](settings, DATE, anchors=False)
        if broken is None:
            check(settings, "lte_snapshots", batches, DATE)
        else:
            with pytest.raises(LTEError, match=broken):
                check(settings, "lte_snapshots", batches, DATE)


def test_without_the_autoencoder_no_encoder_is_asked_for(settings, capsys):
    check(settings, "item_encodings", SUITES["item_encodings"](settings, DATE, anchors=True), DATE)
    assert "nothing to check" in capsys.readouterr().out


def test_a_date_that_was_not_counted_is_named(settings, tables):
    tables["item_popularity"].write_delta(settings.table_path("item_popularity"))
    with pytest.raises(LTEError, match=r"gate item_popularity of 2024-03-01: .* rules are broken"):
        check(settings, "item_popularity", SUITES["item_popularity"](settings, DATE, anchors=True), DATE)


def test_without_a_champion_there_may_be_no_recommendations(settings, tables, capsys):
    for frames in ({}, tables | {"recommendations": tables["recommendations"].with_columns(date=ALWAYS)}):
        gate(settings, frames, "recommendations")
        assert "nothing to check" in capsys.readouterr().out
    assert not Path(settings.home, "mlflow.db").exists()


def test_a_snapshot_that_was_not_made_is_named(settings, tables):
    tables["lte_snapshots"] = tables["lte_snapshots"].head(0)
    with pytest.raises(LTEError, match="expect_table_row_count"):
        gate(settings, tables, "lte_snapshots")


def test_a_page_shows_an_id_that_is_markup_as_text(settings):
    """Rows that broke a rule appear on Great Expectations' pages and on the project's own."""
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    rows = pl.LazyFrame({"user_id": [hostile], "price": [-1.0]})
    rules = (gxe.ExpectColumnValuesToBeBetween(column="price", min_value=0),)
    with pytest.raises(LTEError, match="alert"):
        check(settings, "events", [CheckedRows("events", rows, ("user_id",), rules)], DATE)
    pages = [path.read_text() for path in Path(settings.data_docs).rglob("*.html")]
    assert sum("&lt;script&gt;alert(1)" in page for page in pages) == 2
    assert not any("<script>alert(1)" in page or "<img src=x" in page for page in pages)

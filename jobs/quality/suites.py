"""What must hold of each table, as Great Expectations suites, and the rows that they look at.

A batch is a frame of the checked rows with a few derived columns; vectors never enter it, only their length and norm.
Each suite is built for one date, so that a rule can name the very day: the leak rule says that the newest event in the
snapshot of D is dated before D−L.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
from deltalake import DeltaTable
from great_expectations import expectations as gxe
from great_expectations.expectations.expectation import Expectation

from lte_model.basis import CONTENT_COLUMNS, GRID, MAX_EVENTS
from lte_model.errors import LTEError
from lte_model.settings import Settings
from lte_model.windows import ONE_DAY, training_dates


@dataclass(frozen=True)
class Batch:
    """Rows of one table and one date, and the rules for them. `keys` name a row where it breaks one."""

    name: str
    rows: pl.LazyFrame
    keys: tuple[str, ...]
    rules: tuple[Expectation, ...]


def scan(settings: Settings, table: str) -> pl.LazyFrame:
    """The table's rows, read without a JVM. Raises `LTEError` where the table isn't there."""
    path = settings.table_path(table)
    if not DeltaTable.is_deltatable(path):
        raise LTEError(f"table {table} does not exist at {path}; run the job that writes it")
    return pl.scan_delta(path)


def _present(*columns: str) -> list[Expectation]:
    return [gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns]


def _at_least_one_row() -> Expectation:
    return gxe.ExpectTableRowCountToBeBetween(min_value=1)


def _later(column: str, than: str, or_equal: bool = False) -> Expectation:
    """One date is after another. A missing date is not compared; `_present` asks for it where it must be there."""
    return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A=column, column_B=than, or_equal=or_equal, ignore_row_if="either_value_is_missing"
    )


def events(settings: Settings, date: datetime.date, since: datetime.date | None) -> list[Batch]:
    """The events of the days that the run of `date` brought, or of those since `since`, and the account of them."""
    first = since or _first_day_brought(settings, date)
    of_the_days = pl.col("known_date").is_between(first, date, closed="left")
    known_items = scan(settings, "items").select("item_id", item_known=pl.lit(True))
    rows = (
        scan(settings, "events")
        .filter(of_the_days)
        .select("user_id", "item_id", "event_ts", "event_date", "known_date", "price")
        .join(known_items, "item_id", "left")
        .with_columns(pl.col("item_known").fill_null(False))
    )
    accounts = (
        scan(settings, "ingested_days")
        .filter(of_the_days & (pl.col("feed") == "events"))
        .select(pl.col("known_date", "rows_read", "rows_kept", "rows_quarantined", "exact_duplicates"))
        .sum()
        .with_columns(
            known_date=pl.lit(date - ONE_DAY),
            quarantined_share=pl.col("rows_quarantined") / pl.col("rows_read").clip(lower_bound=1),
            unaccounted=pl.col("rows_read")
            - pl.col("rows_kept")
            - pl.col("rows_quarantined")
            - pl.col("exact_duplicates"),
        )
    )
    return [
        Batch(
            "events",
            rows,
            ("user_id", "item_id", "event_ts", "known_date"),
            (
                _at_least_one_row(),
                *_present("user_id", "item_id", "event_ts", "event_date", "known_date"),
                _later("known_date", "event_date", or_equal=True),
                gxe.ExpectColumnValuesToBeBetween(column="price", min_value=0),
                gxe.ExpectColumnValuesToBeInSet(
                    column="item_known", value_set=[True], mostly=1 - settings.gates.max_unknown_item_share
                ),
            ),
        ),
        Batch(
            "ingested_days",
            accounts,
            ("known_date",),
            (
                gxe.ExpectColumnValuesToBeBetween(column="rows_read", min_value=1),
                gxe.ExpectColumnValuesToBeInSet(column="unaccounted", value_set=[0]),
                gxe.ExpectColumnValuesToBeBetween(
                    column="quarantined_share", max_value=settings.gates.max_quarantined_share
                ),
            ),
        ),
    ]


def _first_day_brought(settings: Settings, date: datetime.date) -> datetime.date:
    """The day before `date`, or an earlier one if the run of `date` made up for days that were missing."""
    of_run = (pl.col("feed") == "events") & (pl.col("ingested_for") == date)
    days = scan(settings, "ingested_days").filter(of_run).select(pl.col("known_date").min()).collect()
    return days.item() or date - ONE_DAY


def items(settings: Settings, date: datetime.date) -> list[Batch]:
    """The items known before `date`."""
    rows = (
        scan(settings, "items")
        .filter(pl.col("known_date") < date)
        .with_columns(content_length=pl.concat_str(CONTENT_COLUMNS, ignore_nulls=True).str.len_chars())
        .select("item_id", "price", "known_date", "content_length")
    )
    rules = (
        _at_least_one_row(),
        *_present("item_id", "known_date"),
        gxe.ExpectColumnValuesToBeUnique(column="item_id"),
        gxe.ExpectColumnValuesToBeBetween(column="content_length", min_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="price", min_value=0),
    )
    return [Batch("items", rows, ("item_id",), rules)]


def item_embeddings(settings: Settings, date: datetime.date) -> list[Batch]:
    """Every item known before `date`, beside its vector in each basis."""
    vector = pl.col("vector")
    embeddings = scan(settings, "item_embeddings").select(
        "basis_id",
        "item_id",
        dimensions=vector.list.len(),
        squared_norm=vector.list.eval(pl.element().cast(pl.Float64).pow(2)).list.sum(),
        off_grid=vector.list.eval((pl.element() * GRID) != (pl.element() * GRID).round()).list.sum(),
    )
    known = scan(settings, "items").filter(pl.col("known_date") < date).select("item_id")
    covered = known.join(
        embeddings.select("item_id", has_vector=pl.lit(True)).unique(), "item_id", "left"
    ).with_columns(pl.col("has_vector").fill_null(False))
    rules = (
        _at_least_one_row(),
        *_present("basis_id", "item_id", "dimensions"),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=["basis_id", "item_id"]),
        gxe.ExpectColumnValuesToBeInSet(column="dimensions", value_set=[settings.basis.dimensions]),
        gxe.ExpectColumnValuesToBeBetween(column="squared_norm", min_value=0.99, max_value=1.01),
        gxe.ExpectColumnValuesToBeInSet(column="off_grid", value_set=[0]),
    )
    coverage = gxe.ExpectColumnValuesToBeInSet(
        column="has_vector", value_set=[True], mostly=1 - settings.gates.max_unknown_item_share
    )
    return [
        Batch("item_embeddings", embeddings, ("basis_id", "item_id"), rules),
        Batch("items_with_a_vector", covered, ("item_id",), (coverage,)),
    ]


def lte_snapshots(settings: Settings, date: datetime.date, anchors: bool) -> list[Batch]:
    """The snapshot of `date`, or the snapshots that the training of `date` reads."""
    dates = training_dates(date, settings.training_set).snapshot_dates if anchors else (date,)
    sums = pl.col("vector_sum")
    squared_sum = sums.list.eval((pl.element().cast(pl.Float64) / GRID).pow(2)).list.sum()
    keys = ("basis_id", "representation", "snapshot_date", "user_id")
    rows = (
        scan(settings, "lte_snapshots")
        .filter(pl.col("snapshot_date").is_in(dates))
        .select(
            *keys,
            "event_count",
            "newest_event_date",
            "lag_days",
            "window_days",
            window_start=_window_end() - pl.duration(days=pl.col("window_days")),
            window_end=_window_end(),
            dimensions=sums.list.len(),
            norm=squared_sum.sqrt() / pl.col("event_count"),
        )
    )
    rules = (
        _at_least_one_row(),
        *_present("user_id", "event_count", "newest_event_date", "dimensions"),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
        # The leak rule: the newest event in the LTE of D is dated before D−L.
        _later("window_end", "newest_event_date"),
        _later("newest_event_date", "window_start", or_equal=True),
        gxe.ExpectColumnValuesToBeBetween(column="event_count", min_value=1, max_value=MAX_EVENTS),
        gxe.ExpectColumnValuesToBeBetween(column="norm", max_value=1.01),
        gxe.ExpectColumnValuesToBeInSet(column="dimensions", value_set=[settings.basis.dimensions]),
        gxe.ExpectColumnValuesToBeInSet(column="lag_days", value_set=[settings.window.lag_days]),
        gxe.ExpectColumnValuesToBeInSet(column="window_days", value_set=[settings.window.window_days]),
    )
    return [Batch("lte_snapshots", rows, keys, rules)]


def item_popularity(settings: Settings, date: datetime.date, anchors: bool) -> list[Batch]:
    """The counts of `date`, or those that the training of `date` reads. Every date must have some."""
    dates = training_dates(date, settings.training_set).snapshot_dates if anchors else (date,)
    keys = ("snapshot_date", "item_id")
    counted = ("events_7d", "events_30d", "events_window")
    rows = scan(settings, "item_popularity").filter(pl.col("snapshot_date").is_in(dates)).select(*keys, *counted)
    days = pl.LazyFrame({"snapshot_date": dates}).join(
        rows.group_by("snapshot_date").agg(items=pl.len()), "snapshot_date", "left"
    )
    rules = (
        _at_least_one_row(),
        *_present(*keys, *counted),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
        gxe.ExpectColumnValuesToBeBetween(column="events_7d", min_value=0),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="events_30d", column_B="events_7d", or_equal=True),
    )
    return [
        Batch("item_popularity", rows, keys, rules),
        Batch("item_popularity_dates", days, ("snapshot_date",), tuple(_present("items"))),
    ]


def training_set(settings: Settings, date: datetime.date) -> list[Batch]:
    """The training set of `date`, all splits, each row against the dates of its own anchor or cut."""
    dates = training_dates(date, settings.training_set)
    ends = {"validation": dates.validation.end, "test": dates.test.end}
    keys = ("split", "snapshot_date", "user_id")
    rows = (
        scan(settings, "training_set")
        .filter(pl.col("training_date") == date)
        .select(
            *keys,
            "basis_id",
            "target_item_id",
            "target_date",
            "oldest_target_date",
            "target_count",
            newest_event_date=pl.col("event_times").list.last().dt.date(),
            window_end=_window_end(),
            target_end=pl.col("split").replace_strict(ends, default=None, return_dtype=pl.Date),
            length=pl.col("item_ids").list.len().cast(pl.Int64),
            times=pl.col("event_times").list.len(),
        )
    )
    evaluates = rows.filter(pl.col("split").is_in(list(ends)))
    trains = rows.filter(~pl.col("split").is_in(list(ends)))
    return [
        Batch(
            "training_set",
            rows,
            keys,
            (
                _at_least_one_row(),
                *_present(*keys, "basis_id"),
                gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
                gxe.ExpectColumnValuesToBeInSet(column="split", value_set=["train", "refit", *ends]),
                gxe.ExpectColumnValuesToBeInSet(column="basis_id", value_set=_one_basis(rows)),
                gxe.ExpectColumnPairValuesToBeEqual(column_A="length", column_B="times"),
                gxe.ExpectColumnValuesToBeBetween(column="length", max_value=settings.training_set.max_length),
                gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="length", column_B="target_count", or_equal=True),
                # The leak rule: no target is dated before D−L, where the window of the LTE ends. The suite of
                # lte_snapshots has the other half: no event of an LTE is dated on or after that day.
                _later("oldest_target_date", "window_end", or_equal=True),
                _later("snapshot_date", "newest_event_date"),
            ),
        ),
        Batch(
            "training_set_targets",
            evaluates,
            keys,
            (
                _at_least_one_row(),
                *_present("target_item_id", "target_date"),
                _later("target_date", "snapshot_date", or_equal=True),
                _later("target_end", "target_date"),
            ),
        ),
        Batch(
            "training_set_sequences",
            trains,
            keys,
            (
                _at_least_one_row(),
                *_present("oldest_target_date"),
                gxe.ExpectColumnValuesToBeBetween(column="target_count", min_value=1),
            ),
        ),
    ]


def _window_end() -> pl.Expr:
    """D−L, the first day that the LTE of D must not see."""
    return pl.col("snapshot_date") - pl.duration(days=pl.col("lag_days"))


def _one_basis(rows: pl.LazyFrame) -> list[str]:
    """The basis of the first row; every other row must have it too."""
    return rows.select("basis_id").head(1).collect()["basis_id"].to_list()


SUITES: dict[str, Callable[..., Sequence[Batch]]] = {
    suite.__name__: suite for suite in (events, items, item_embeddings, lte_snapshots, item_popularity, training_set)
}

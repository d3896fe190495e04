"""A public data set through the normal jobs: it is ingested whole, and every snapshot equals plain integer sums."""

import datetime
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from jobs.embed_items import embed_items
from jobs.engine.calendar import Calendar
from jobs.engine.files import list_files, read_pieces
from jobs.engine.packing import EVENT_COLUMNS, pack, unpack
from jobs.engine.plan import needed
from jobs.engine.sums import ROWS, snapshot_rows
from jobs.fit_basis import fit_basis, register
from jobs.ingest_events import ingest_events
from jobs.ingest_items import ingest_items
from jobs.recipes.bases import basis_in_force, load_vectors
from jobs.snapshot_lte import snapshot_lte
from jobs.spark.table_files import configured
from jobs.spark.warehouse import Warehouse
from lte_model.domain.windows import ONE_DAY, Interval, every, lte_window
from lte_model.settings import Window
from lte_model.warehouse.tables import EVENTS, LTE_SNAPSHOTS, SEMANTIC_BASES
from tests.jobs.conftest import small_settings
from tests.jobs.feed_files import reads
from tests.repository import REPOSITORY

DATA = Path(os.environ.get("REAL_DATA", REPOSITORY.parent / "shared" / "data"), "online_retail")
FIRST_EVENT, LAST = datetime.date(2010, 12, 1), datetime.date(2011, 12, 10)
WINDOW = Window(lag_days=30, window_days=300)
DATES = every(1, FIRST_EVENT + 31 * ONE_DAY, LAST)
"""Every day with a snapshot. The window is shorter than the year, so that events also leave it."""

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the data set online_retail is not at {DATA}; name its folder's parent in REAL_DATA"
)


COMPILED = {"spark.sql.codegen.wholeStage": "true", "spark.sql.codegen.factoryMode": "FALLBACK"}
"""Compiling queries pays off for hundreds of thousands of rows; the other tests interpret them."""


@pytest.fixture(scope="module")
def compiling(spark):
    with configured(spark, COMPILED):
        yield spark


@pytest.fixture(scope="module")
def shop(compiling, tmp_path_factory):
    """The shop's warehouse, with its year of events ingested and its items embedded."""
    warehouse = Warehouse(compiling, small_settings(tmp_path_factory.mktemp("real")))
    reads(warehouse, events=DATA / "events.parquet", items=DATA / "items.parquet")
    warehouse.settings = warehouse.settings.model_copy(update={"window": WINDOW})
    ingest_items(warehouse, warehouse.settings, LAST)
    account = ingest_events(warehouse, warehouse.settings, Interval(datetime.date(2010, 12, 1), LAST))
    assert (account.rows_read, account.rows_kept) == (386_326, 386_326)
    warehouse.create(SEMANTIC_BASES)
    basis, fitted_items = fit_basis(warehouse, LAST)
    register(warehouse, basis, LAST, fitted_items)
    embed_items(warehouse, LAST)
    return warehouse


@pytest.fixture(scope="module")
def sums_by_day(shop):
    """A function that gives a date's (user ids, sums) from running totals over the days and their differences.

    The last column of the sums is the count.
    """
    vectors = load_vectors(shop, basis_in_force(shop))
    catalogue, units = vectors.index, vectors.units
    items = pl.DataFrame({"item_id": pl.Series(catalogue.item_ids), "item": range(len(catalogue))})
    events = (
        pl.read_parquet(DATA / "events.parquet")
        .join(items, on="item_id")
        .with_columns(day=(pl.col("event_ts").dt.date() - FIRST_EVENT).dt.total_days())
    )
    users = events["user_id"].unique().sort()
    user = events["user_id"].cast(pl.Enum(users)).to_physical().to_numpy()
    days = (DATES[-1] - FIRST_EVENT).days + 1
    totals = np.zeros((days, len(users), units.shape[1] + 1), dtype=np.int64)
    added = np.column_stack((units[events["item"].to_numpy()], np.ones(len(events), dtype=np.int64)))
    np.add.at(totals, (events["day"].to_numpy(), user), added)
    totals = np.concatenate((np.zeros_like(totals[:1]), totals.cumsum(axis=0)))

    def of(date):
        window = lte_window(date, WINDOW.lag_days, WINDOW.window_days)
        start, end = (min(max((day - FIRST_EVENT).days, 0), days) for day in (window.start, window.end))
        inside = totals[end] - totals[start]
        of_whom = np.flatnonzero(inside[:, -1])
        return users.gather(of_whom), inside[of_whom]

    return of


def require_equal(frame, expected, date):
    """Asserts that the rows of one date are what `sums_by_day` expects of it."""
    frame = frame.sort("user_id")
    user_ids, sums = expected
    assert set(frame["snapshot_date"]) == {date}
    assert frame["user_id"].equals(user_ids), date
    found = np.column_stack((frame["vector_sum"].explode().to_numpy().reshape(len(frame), -1), frame["event_count"]))
    assert np.array_equal(found, sums), date


def test_one_sweep_makes_the_exact_snapshot_of_every_day_of_the_year(shop, sums_by_day):
    snapshot_lte(shop, DATES, full=True)
    snapshots = pl.scan_delta(shop.path(LTE_SNAPSHOTS)).collect()
    by_date = snapshots.partition_by("snapshot_date", as_dict=True)
    assert sorted(by_date) == [(date,) for date in DATES]
    for (date,), rows in by_date.items():
        require_equal(rows, sums_by_day(date), date)


def test_going_on_from_day_to_day_makes_the_same(shop, sums_by_day):
    """Makes every day from its neighbour, forwards through the year and back, with the engine but without Spark."""
    vectors = load_vectors(shop, basis_in_force(shop))
    events = list_files(shop.path(EVENTS))

    def made(calendar, base):
        files, condition = needed(events, calendar, vectors.index)
        pieces = [piece for part in files.parts(at_least=1) for piece in part]
        tables = read_pieces(pieces, EVENT_COLUMNS, condition, dictionaries=("user_id", "item_id"))
        blobs = [unpack(blob) for table in tables for _, blob in pack(table, calendar, vectors.index, groups=1)]
        return pa.Table.from_batches(list(snapshot_rows(blobs, base, vectors.units, calendar)), ROWS)

    lag_and_window = (WINDOW.lag_days, WINDOW.window_days)
    rows = made(Calendar((DATES[0],), *lag_and_window), None)
    there = {DATES[0]: rows}
    for yesterday, today in pairwise(DATES):
        rows = there[today] = made(Calendar((yesterday, today), *lag_and_window, base=0), rows)
        require_equal(pl.DataFrame(rows), sums_by_day(today), today)
    for date in DATES[::60]:
        later = date + 7 * ONE_DAY
        if later in there:
            back = made(Calendar((date, later), *lag_and_window, base=1), there[later])
            assert back.sort_by("user_id").equals(there[date].sort_by("user_id")), date

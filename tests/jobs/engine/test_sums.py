"""Invariants 1, 3 and 4 of the sums: no leak, exact on every path to a date, and correct at each point in time."""

import datetime
import random
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.engine.calendar import Calendar
from jobs.engine.files import Listing
from jobs.engine.packing import BUCKETS, EVENT_COLUMNS, buckets_of, group_buckets, group_of, pack, unpack
from jobs.engine.plan import needed
from jobs.engine.sums import ROWS, snapshot_rows
from lte_model.domain.basis import MAX_EVENTS
from lte_model.domain.windows import ONE_DAY, lte_window
from lte_model.errors import LTEError
from tests.jobs import events as made
from tests.jobs.events import Event, events_table, in_oracles_form, item_vectors, oracle

pytestmark = pytest.mark.slow

LAG, WINDOW = 3, 10
DATE = made.FIRST_DAY + datetime.timedelta(days=25)
feeds = st.lists(made.events(), min_size=1, max_size=60)
late_items = st.dictionaries(st.sampled_from(made.ITEMS), st.dates(DATE - 4 * ONE_DAY, DATE + 2 * ONE_DAY), max_size=2)
lags, windows = st.integers(1, 8), st.integers(1, 20)
dates_near = st.lists(st.dates(DATE - 20 * ONE_DAY, DATE + 12 * ONE_DAY), min_size=1, max_size=6, unique=True).map(
    sorted
)


def listing_of(tables):
    """The parts, as a table's log lists files."""
    ranges = [
        {
            f"{end}.{column}": function(table[column]).as_py()
            for column in ("event_date", "known_date")
            for end, function in (("min", pc.min), ("max", pc.max))
        }
        for table in tables
    ]
    files = [{"path": str(number), "num_records": len(table)} for number, table in enumerate(tables)]
    schema = {f"{end}.{column}": pl.Date for end in ("min", "max") for column in ("event_date", "known_date")}
    schema |= {"path": pl.String, "num_records": pl.Int64}
    return Listing(0, "", pl.DataFrame([file | span for file, span in zip(files, ranges, strict=True)], schema))


def rows_made(rows, calendar, vectors, base=None, parts=1, groups=1):
    """The table that the engine makes from `rows`, split into that many parts and groups."""
    tables = [events_table(rows[part::parts]).select(EVENT_COLUMNS) for part in range(parts)]
    files, condition = needed(listing_of(tables), calendar, vectors.index)
    blobs = [[] for _ in range(groups)]
    for part in files.files["path"]:
        table = tables[int(part)]
        for column in ("user_id", "item_id"):
            encoded = table[column].dictionary_encode()
            table = table.set_column(table.schema.get_field_index(column), column, encoded)
        for group, blob in pack(ds.dataset(table).to_table(filter=condition), calendar, vectors.index, groups):
            blobs[group].append(unpack(blob))
    batches = []
    for group, of_group in enumerate(blobs):
        inside = None
        if base is not None:
            bucket = base["user_bucket"].to_numpy()
            inside = base.filter(pa.array(np.isin(bucket, group_buckets(group, groups))))
        batches += snapshot_rows(of_group, inside, vectors.units, calendar)
    return pa.Table.from_batches(batches, ROWS)


def summed(rows, dates=(DATE,), vectors=None, lag=LAG, window=WINDOW, **shape):
    vectors = vectors or item_vectors()
    return in_oracles_form(rows_made(rows, Calendar(tuple(dates), lag, window), vectors, **shape).to_pylist())


@given(
    rows=feeds,
    known=late_items,
    dates=dates_near,
    lag=lags,
    window=windows,
    parts=st.integers(1, 5),
    groups=st.integers(1, 7),
)
def test_every_date_of_a_sweep_is_the_integer_sum_of_its_window(rows, known, dates, lag, window, parts, groups):
    vectors = item_vectors(known=known)
    expected = oracle(rows, vectors, dates, lag, window)
    assert summed(rows, dates, vectors, lag, window, parts=parts, groups=groups) == expected


@given(
    rows=feeds,
    known=late_items,
    dates=dates_near,
    lag=lags,
    window=windows,
    base=st.integers(1, 9),
    groups=st.integers(1, 5),
)
def test_so_is_every_date_made_from_an_earlier_snapshot(rows, known, dates, lag, window, base, groups):
    vectors = item_vectors(known=known)
    earlier = dates[0] - base * ONE_DAY
    there = rows_made(rows, Calendar((earlier,), lag, window), vectors)
    going_on = Calendar((earlier, *dates), lag, window, base=0)
    found = rows_made(rows, going_on, vectors, base=there, parts=2, groups=groups)
    assert in_oracles_form(found.to_pylist()) == oracle(rows, vectors, dates, lag, window)


@given(rows=feeds, known=late_items, lag=lags, window=windows, base=st.integers(1, 9), groups=st.integers(1, 5))
def test_and_the_date_made_from_a_later_one(rows, known, lag, window, base, groups):
    vectors = item_vectors(known=known)
    later = DATE + base * ONE_DAY
    there = rows_made(rows, Calendar((later,), lag, window), vectors)
    going_back = Calendar((DATE, later), lag, window, base=1)
    found = rows_made(rows, going_back, vectors, base=there, parts=2, groups=groups)
    assert in_oracles_form(found.to_pylist()) == oracle(rows, vectors, [DATE], lag, window)


@given(rows=feeds, later=st.lists(made.events(), max_size=30))
def test_no_event_on_or_after_the_end_of_the_window_is_seen(rows, later):
    end = lte_window(DATE, LAG, WINDOW).end
    before = [row for row in rows if row.event_date < end]
    after = [row for row in [*later, *rows] if row.event_date >= end]
    assert summed(before + after) == summed(before)


@given(rows=feeds, late=st.lists(made.events(), max_size=30))
def test_what_becomes_known_later_changes_no_snapshot(rows, late):
    known_later = [replace(event, known_date=max(event.event_date, DATE)) for event in late]
    assert summed(rows + known_later) == summed(rows)


@given(rows=feeds, seed=st.integers(0, 99))
def test_neither_order_nor_company_of_dates_can_be_seen(rows, seed):
    shuffled = random.Random(seed).sample(rows, len(rows))
    dates = [DATE - ONE_DAY * days for days in (7, 1, 0)]
    alone = {key: row for date in dates for key, row in summed(rows, dates=[date]).items()}
    assert summed(shuffled, dates=dates) == alone


@given(groups=st.integers(1, 50))
def test_the_groups_share_out_the_buckets(groups):
    shares = [group_buckets(group, groups) for group in range(groups)]
    assert [bucket for share in shares for bucket in share] == list(range(BUCKETS))
    for group, share in enumerate(shares):
        assert set(group_of(np.array(share), groups)) <= {group}


def crowd(user, item, size):
    day = DATE - 5 * ONE_DAY
    return [Event(user, item, day, day)] * size


def test_the_largest_sum_fits():
    found = summed(crowd("reseller", "b", MAX_EVENTS))
    assert found[DATE, "reseller"][:2] == ((-(2**14) * MAX_EVENTS,) * 3, MAX_EVENTS)


def test_a_user_with_too_many_events_is_refused_by_name():
    with pytest.raises(LTEError, match=r"user 'bot' has 131,072 events in the window of 2024-02-26.*jobs.erase_users"):
        summed(crowd("bot", "a", MAX_EVENTS + 1) + crowd("u", "a", 1))


def test_a_bucket_is_that_of_sql(spark):
    users = ["u1", "", "日本 'q\"", "x" * 1000]
    in_sql = [
        row[0]
        for row in spark.createDataFrame([(user,) for user in users], "u STRING")
        .selectExpr(f"CAST(crc32(u) % {BUCKETS} AS INT)")
        .collect()
    ]
    assert buckets_of(pa.array(users)).tolist() == in_sql

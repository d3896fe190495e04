"""Invariants 1, 3 and 4 of the snapshot: no leak, exact, point in time, against an oracle in plain integers."""

import datetime
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.snapshot_lte import EPOCH, lte_rows, snapshot_lte, snapshots
from jobs.tables import EVENTS, ITEM_EMBEDDINGS, ITEMS, LTE_SNAPSHOTS, SEMANTIC_BASES
from lte_model.basis import MAX_EVENTS, to_vector
from lte_model.errors import LTEError
from lte_model.windows import ONE_DAY, lte_window
from tests.jobs import events as made
from tests.jobs.events import Event, collected, embedded_frame, events_frame, in_oracles_form, item_vectors, oracle

LAG, WINDOW = 3, 10
DATE = made.FIRST_DAY + datetime.timedelta(days=25)
VECTORS = item_vectors()
feeds = st.lists(made.events(), min_size=1, max_size=60)
late_items = st.dictionaries(st.sampled_from(made.ITEMS), st.dates(DATE - 4 * ONE_DAY, DATE + 2 * ONE_DAY), max_size=2)
few_examples = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For properties of the Spark plan around the arithmetic, where an example is a job."""


def summed(rows, known=None, dates=(DATE,), lag=LAG, window=WINDOW):
    """The rows that one task makes of `rows`."""
    known = known or {}
    index = {item: number for number, item in enumerate(made.ITEMS)}
    rows = [row for row in rows if row.item_id in index]
    table = pa.table(
        {
            "user_id": pa.array([row.user_id for row in rows], pa.string()),
            "item_index": pa.array([index[row.item_id] for row in rows], pa.int32()),
            "event_day": pa.array([(row.event_date - EPOCH).days for row in rows], pa.int32()),
            "known_day": pa.array(
                [(max(row.known_date, known.get(row.item_id, EPOCH)) - EPOCH).days for row in rows], pa.int32()
            ),
        }
    )
    batches = lte_rows(table, VECTORS.units, {date: lte_window(date, lag, window) for date in dates})
    return in_oracles_form(row for batch in batches for row in batch.to_pylist())


def made_snapshots(spark, rows, known=None, dates=(DATE,), lag=LAG, window=WINDOW, partitions=4):
    """The rows that the job's plan makes of `rows`."""
    frame = events_frame(spark, rows).repartition(partitions)
    return collected(snapshots(frame, embedded_frame(spark, known or {}), VECTORS, dates, lag, window))


@given(rows=feeds, known=late_items, lag=st.integers(1, 8), window=st.integers(1, 20))
def test_a_snapshot_is_the_integer_sum_of_the_window(rows, known, lag, window):
    dates = [DATE - 5 * ONE_DAY, DATE, DATE + ONE_DAY]
    assert summed(rows, known, dates, lag, window) == oracle(rows, VECTORS, known, dates, lag, window)


@few_examples
@given(rows=feeds, known=late_items, lag=st.integers(1, 8), window=st.integers(1, 20), partitions=st.integers(1, 7))
def test_so_is_the_one_that_spark_makes_whatever_its_partitions(spark, rows, known, lag, window, partitions):
    dates = [DATE - 5 * ONE_DAY, DATE, DATE + ONE_DAY]
    expected = oracle(rows, VECTORS, known, dates, lag, window)
    assert made_snapshots(spark, rows, known, dates, lag, window, partitions) == expected


@given(rows=feeds, later=st.lists(made.events(), max_size=30))
def test_no_event_on_or_after_the_end_of_the_window_is_seen(rows, later):
    end = lte_window(DATE, LAG, WINDOW).end
    before = [row for row in rows if row.event_date < end]
    after = [row for row in [*later, *rows] if row.event_date >= end]
    assert summed(before + after) == summed(before)


@few_examples
@given(rows=feeds, later=st.lists(made.events(), max_size=30))
def test_nor_does_spark_see_one(spark, rows, later):
    end = lte_window(DATE, LAG, WINDOW).end
    before = [row for row in rows if row.event_date < end]
    after = [row for row in [*later, *rows] if row.event_date >= end]
    assert made_snapshots(spark, before + after) == summed(before)


@given(rows=feeds, late=st.lists(made.events(), max_size=30))
def test_what_becomes_known_later_changes_no_snapshot(rows, late):
    assert summed(rows + [known_on_or_after(DATE, event) for event in late]) == summed(rows)


@few_examples
@given(rows=feeds, late=st.lists(made.events(), max_size=30))
def test_nor_one_that_spark_makes(spark, rows, late):
    assert made_snapshots(spark, rows + [known_on_or_after(DATE, event) for event in late]) == summed(rows)


def known_on_or_after(date, event):
    return replace(event, known_date=max(event.event_date, date))


@given(rows=feeds, seed=st.integers(0, 99))
def test_neither_order_nor_company_of_dates_can_be_seen(rows, seed):
    shuffled = random.Random(seed).sample(rows, len(rows))
    dates = [DATE - ONE_DAY * days for days in (0, 1, 7)]
    alone = {key: row for date in dates for key, row in summed(rows, dates=[date]).items()}
    assert summed(shuffled, dates=dates) == alone


def test_a_user_with_too_many_events_is_refused_by_name(spark):
    day = DATE - 5 * ONE_DAY
    crowd = spark.range(MAX_EVENTS + 1).selectExpr(
        "'bot' AS user_id", "'a' AS item_id", f"DATE'{day}' AS event_date", f"DATE'{day}' AS known_date"
    )
    with pytest.raises(Exception, match="user 'bot' has 131,072 events in the window of 2024-02-26"):
        snapshots(crowd, embedded_frame(spark, {}), VECTORS, [DATE], LAG, WINDOW).collect()


def test_the_largest_sum_fits(spark):
    day = DATE - 5 * ONE_DAY
    crowd = spark.range(MAX_EVENTS).selectExpr(
        "'reseller' AS user_id", "'b' AS item_id", f"DATE'{day}' AS event_date", f"DATE'{day}' AS known_date"
    )
    rows = snapshots(crowd, embedded_frame(spark, {}), VECTORS, [DATE], LAG, WINDOW)
    assert collected(rows)[DATE, "reseller"][0] == (-(2**14) * MAX_EVENTS,) * 3


# The job itself, on Delta tables.


@pytest.fixture
def filled(warehouse):
    """A warehouse with one basis, five items and a month of events."""
    spark, vectors = warehouse.spark, item_vectors(dimensions=4)
    warehouse.replace(
        SEMANTIC_BASES,
        spark.createDataFrame(
            [("basis", "hashed-text", 4, "{title}", DATE, 5, bytearray(b"state"))],
            "basis_id STRING, encoder STRING, dimensions INT, text_template STRING, fitted_on DATE, fitted_items LONG, "
            "state BINARY",
        ),
        "true",
    )
    rows = [("basis", item, (units / 2**14).tolist()) for item, units in zip(made.ITEMS, vectors.units, strict=True)]
    warehouse.replace(
        ITEM_EMBEDDINGS, spark.createDataFrame(rows, "basis_id STRING, item_id STRING, vector ARRAY<FLOAT>"), "true"
    )
    items = spark.createDataFrame(
        [(item, datetime.date(1970, 1, 1)) for item in made.ITEMS], "item_id STRING, known_date DATE"
    )
    empty = "CAST(NULL AS STRING)"
    warehouse.replace(
        ITEMS,
        items.selectExpr(
            "item_id",
            "item_id AS title",
            *[f"{empty} AS {name}" for name in ("description", "category", "brand")],
            "CAST(NULL AS DOUBLE) AS price",
            "known_date",
        ),
        "true",
    )
    generator = random.Random(5)
    days = [made.FIRST_DAY + ONE_DAY * generator.randrange(40) for _ in range(200)]
    feed = [Event(generator.choice(made.USERS), generator.choice(made.ITEMS), day, day) for day in days]
    measures = [f"CAST(NULL AS DOUBLE) AS {name}" for name in ("price", "quantity", "rating")]
    warehouse.replace(EVENTS, events_frame(spark, feed).selectExpr("*", "'view' AS event_type", *measures), "true")
    return warehouse, feed, vectors


def test_the_job_writes_the_oracles_rows_in_any_order_of_dates(filled):
    warehouse, feed, vectors = filled
    dates = [DATE - ONE_DAY * days for days in (4, 0, 9)]
    for date in (*dates, dates[1]):
        snapshot_lte(warehouse, [date])
    assert collected(warehouse.read(LTE_SNAPSHOTS)) == oracle(feed, vectors, {}, dates, LAG, WINDOW)


def test_a_run_touches_the_rows_of_its_date_alone(filled):
    warehouse, _, _ = filled
    snapshot_lte(warehouse, [DATE - ONE_DAY, DATE])

    def files(date):
        rows = warehouse.read(LTE_SNAPSHOTS).where(f"snapshot_date = DATE'{date}'")
        return {row[0] for row in rows.selectExpr("_metadata.file_path").distinct().collect()}

    before = files(DATE - ONE_DAY)
    snapshot_lte(warehouse, [DATE])
    assert files(DATE - ONE_DAY) == before


def test_an_emptied_date_is_emptied(filled):
    warehouse, _, _ = filled
    snapshot_lte(warehouse, [DATE - ONE_DAY, DATE])
    of_window = lte_window(DATE, LAG, WINDOW)
    warehouse.spark.sql(
        f"DELETE FROM delta.`{warehouse.path(EVENTS)}` WHERE event_date = DATE'{of_window.end - ONE_DAY}'"
    )
    snapshot_lte(warehouse, [DATE, DATE - ONE_DAY])
    newest = max(row.newest_event_date for row in warehouse.read(LTE_SNAPSHOTS).collect())
    assert newest < of_window.end - ONE_DAY


def test_a_window_without_events_is_an_error_that_names_it(filled):
    warehouse, _, _ = filled
    with pytest.raises(LTEError, match=r"no event is dated in \[2023-12-20, 2023-12-30\).*snapshot of 2024-01-02"):
        snapshot_lte(warehouse, [datetime.date(2024, 1, 2)])
    assert not warehouse.exists(LTE_SNAPSHOTS)


def test_an_unregistered_basis_is_refused_by_name(filled):
    warehouse, _, _ = filled
    basis = warehouse.settings.basis.model_copy(update={"basis_id": "3f2a"})
    warehouse.settings = warehouse.settings.model_copy(update={"basis": basis})
    with pytest.raises(LTEError, match="basis 3f2a is not registered.*run jobs.fit_basis"):
        snapshot_lte(warehouse, [DATE])


def test_an_lte_is_divided_once_and_exactly():
    sums = np.array([[2**14, -(2**13)], [0, 0]])
    assert to_vector(sums, np.array([2, 0])).tolist() == [[0.5, -0.25], [0.0, 0.0]]

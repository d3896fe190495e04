"""`snapshot_lte` on Delta tables: every way to a date gives the oracle's rows, and nothing is averaged over a gap."""

import datetime
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F

from jobs.snapshot_lte import snapshot_lte
from jobs.tables import (
    EVENTS,
    INGESTED_DAYS,
    ITEM_EMBEDDINGS,
    ITEMS,
    LTE_SNAPSHOTS,
    SEMANTIC_BASES,
    SNAPSHOT_ACCOUNTS,
    Warehouse,
)
from lte_model.basis import to_vector
from lte_model.errors import LTEError
from lte_model.windows import ONE_DAY
from tests.jobs import events as made
from tests.jobs.conftest import small_settings
from tests.jobs.events import Event, collected, events_frame, item_vectors, oracle

LAG, WINDOW = 3, 10
DATE = made.FIRST_DAY + datetime.timedelta(days=25)
VECTORS = item_vectors(dimensions=4)


def fill(warehouse, feed):
    """Tables with one basis, five items and the events of `feed`, every day of it ingested."""
    spark = warehouse.spark
    warehouse.replace(
        SEMANTIC_BASES,
        spark.createDataFrame(
            [("basis", "hashed-text", 4, "{title}", DATE, 5, bytearray(b"state"))],
            "basis_id STRING, encoder STRING, dimensions INT, text_template STRING, fitted_on DATE, fitted_items LONG, "
            "state BINARY",
        ),
        "true",
    )
    rows = [("basis", item, (units / 2**14).tolist()) for item, units in zip(made.ITEMS, VECTORS.units, strict=True)]
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
    ingest(warehouse, feed, made.FIRST_DAY, made.FIRST_DAY + 50 * ONE_DAY)


def ingest(warehouse, feed, first, end):
    """Writes the events of `feed` that became known in [first, end), and the accounts of these days."""
    measures = [f"CAST(NULL AS DOUBLE) AS {name}" for name in ("price", "quantity", "rating")]
    days = f"known_date >= DATE'{first}' AND known_date < DATE'{end}'"
    known = events_frame(warehouse.spark, feed).where(days)
    warehouse.replace(EVENTS, known.selectExpr("*", "'view' AS event_type", *measures), days)
    calendar = warehouse.spark.sql(f"SELECT explode(sequence(DATE'{first}', DATE'{end - ONE_DAY}')) AS known_date")
    accounts = (
        known.withColumn("hash", F.xxhash64("user_id", "item_id", "event_ts").cast("decimal(38, 0)"))
        .groupBy("known_date")
        .agg(F.count("*").alias("rows_kept"), F.sum("hash").cast("decimal(38, 0)").alias("content_hash"))
    )
    accounts = calendar.join(accounts, "known_date", "left").selectExpr(
        "'events' AS feed",
        "known_date",
        f"DATE'{end}' AS ingested_for",
        "coalesce(rows_kept, 0) AS rows_read",
        "coalesce(rows_kept, 0) AS rows_kept",
        "0L AS rows_quarantined",
        "0L AS exact_duplicates",
        "0L AS rows_erased",
        "CAST(coalesce(content_hash, 0) AS DECIMAL(38, 0)) AS content_hash",
    )
    warehouse.replace(INGESTED_DAYS, accounts, days)


def random_feed(seed, size=200):
    generator = random.Random(seed)
    feed = []
    for _ in range(size):
        day = made.FIRST_DAY + ONE_DAY * generator.randrange(40)
        known = day + ONE_DAY * generator.choice((0, 0, 0, 1, 5))
        feed.append(
            Event(generator.choice(made.USERS), generator.choice(made.ITEMS), day, known, generator.randrange(9))
        )
    return feed


FEED = random_feed(5)


@pytest.fixture(scope="module")
def template(spark, tmp_path_factory):
    """The folder of a warehouse with one basis, five items and a month of events, some of which became known late."""
    warehouse = Warehouse(spark, small_settings(tmp_path_factory.mktemp("template")))
    fill(warehouse, FEED)
    return warehouse.settings.warehouse


@pytest.fixture
def new_filled(template, new_warehouse):
    """Makes a copy of the template: a Delta table can be copied, for its log names files by their place in it."""

    def make():
        warehouse = new_warehouse()
        shutil.copytree(template, warehouse.settings.warehouse)
        return warehouse

    return make


@pytest.fixture
def filled(new_filled):
    return new_filled()


def snapshots(warehouse):
    return collected(warehouse.read(LTE_SNAPSHOTS))


def made_from(warehouse):
    return {row.snapshot_date: row.made_from for row in warehouse.read(SNAPSHOT_ACCOUNTS).collect()}


@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    runs=st.lists(
        st.lists(st.dates(DATE - 12 * ONE_DAY, DATE + 12 * ONE_DAY), min_size=1, max_size=3), min_size=2, max_size=4
    )
)
def test_runs_in_any_order_write_the_oracles_rows(new_filled, runs):
    warehouse = new_filled()
    for dates in runs:
        snapshot_lte(warehouse, dates)
    dates = sorted({date for dates in runs for date in dates})
    assert snapshots(warehouse) == oracle(FEED, VECTORS, dates, LAG, WINDOW)


def test_a_run_goes_on_from_the_nearest_snapshot_and_says_so(filled, capsys):
    two_ago, yesterday, tomorrow = DATE - 2 * ONE_DAY, DATE - ONE_DAY, DATE + ONE_DAY
    for date in (two_ago, yesterday, DATE, tomorrow, DATE - 3 * ONE_DAY):
        snapshot_lte(filled, [date])
    assert made_from(filled) == {
        two_ago: None,
        yesterday: two_ago,
        DATE: yesterday,
        tomorrow: DATE,
        DATE - 3 * ONE_DAY: two_ago,
    }
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"LTE of {two_ago}: in full, for there is no snapshot near it to go on from"
    assert said[1] == f"LTE of {yesterday}: incremental, from the snapshot of {two_ago}"
    assert snapshots(filled) == oracle(FEED, VECTORS, list(made_from(filled)), LAG, WINDOW)


def test_a_snapshot_whose_inputs_changed_is_no_base(filled, capsys):
    snapshot_lte(filled, [DATE])
    corrected = FEED[:-60]
    ingest(filled, corrected, made.FIRST_DAY, made.FIRST_DAY + 50 * ONE_DAY)
    snapshot_lte(filled, [DATE + ONE_DAY])
    assert f"in full, for the snapshot of {DATE} was made from other events" in capsys.readouterr().out
    rows = {key: row for key, row in snapshots(filled).items() if key[0] > DATE}
    assert rows == oracle(corrected, VECTORS, [DATE + ONE_DAY], LAG, WINDOW)


def test_a_day_brought_again_with_the_same_rows_leaves_the_base_usable(filled):
    snapshot_lte(filled, [DATE])
    ingest(filled, random.Random(0).sample(FEED, len(FEED)), DATE - 6 * ONE_DAY, DATE - 4 * ONE_DAY)
    snapshot_lte(filled, [DATE + ONE_DAY])
    assert made_from(filled)[DATE + ONE_DAY] == DATE


def test_an_old_date_made_again_has_the_bits_that_were_served(filled):
    snapshot_lte(filled, [DATE])
    served = snapshots(filled)
    late = [
        replace(event, known_date=DATE + ONE_DAY) for event in random_feed(9) if event.event_date < DATE - 5 * ONE_DAY
    ]
    ingest(filled, [*FEED, *late], DATE, DATE + 3 * ONE_DAY)
    snapshot_lte(filled, [DATE + 2 * ONE_DAY])
    snapshot_lte(filled, [DATE], full=True)
    found = snapshots(filled)
    assert {key: row for key, row in found.items() if key[0] == DATE} == served
    assert found == oracle([*FEED, *late], VECTORS, [DATE, DATE + 2 * ONE_DAY], LAG, WINDOW)


def test_a_missing_day_is_named_before_anything_is_written(filled):
    gap = DATE - 6 * ONE_DAY
    filled.spark.sql(f"DELETE FROM delta.`{filled.path(INGESTED_DAYS)}` WHERE known_date = DATE'{gap}'")
    with pytest.raises(
        LTEError, match=f"known on {gap} are missing.*jobs.ingest_events --date {gap + ONE_DAY} --since {gap}"
    ):
        snapshot_lte(filled, [DATE])
    assert not filled.exists(LTE_SNAPSHOTS)


def test_a_partial_day_is_named_before_anything_is_written(filled):
    some = next(event for event in FEED if event.known_date == DATE - 6 * ONE_DAY)
    filled.spark.sql(
        f"DELETE FROM delta.`{filled.path(EVENTS)}` WHERE known_date = DATE'{some.known_date}' "
        f"AND item_id = '{some.item_id}' AND user_id = '{some.user_id}'"
    )
    with pytest.raises(LTEError, match="table events holds .* rows known in .*, and the accounts of these days say"):
        snapshot_lte(filled, [DATE])
    assert not filled.exists(LTE_SNAPSHOTS)


def test_a_run_touches_the_rows_of_its_date_alone(filled):
    snapshot_lte(filled, [DATE - ONE_DAY, DATE])

    def files(date):
        rows = filled.read(LTE_SNAPSHOTS).where(f"snapshot_date = DATE'{date}'")
        return {row[0] for row in rows.selectExpr("_metadata.file_path").distinct().collect()}

    before = files(DATE - ONE_DAY)
    snapshot_lte(filled, [DATE])
    assert files(DATE - ONE_DAY) == before


def test_a_window_without_events_is_an_error_that_names_it(filled):
    with pytest.raises(LTEError, match=r"no event is dated in \[2023-12-20, 2023-12-30\).*snapshot of 2024-01-02"):
        snapshot_lte(filled, [datetime.date(2024, 1, 2)])
    assert not filled.exists(SNAPSHOT_ACCOUNTS)


def test_an_unregistered_basis_is_refused_by_name(filled):
    basis = filled.settings.basis.model_copy(update={"basis_id": "3f2a"})
    filled.settings = filled.settings.model_copy(update={"basis": basis})
    with pytest.raises(LTEError, match="basis 3f2a is not registered.*run jobs.fit_basis"):
        snapshot_lte(filled, [DATE])


def test_an_lte_is_divided_once_and_exactly():
    sums = np.array([[2**14, -(2**13)], [0, 0]])
    assert to_vector(sums, np.array([2, 0])).tolist() == [[0.5, -0.25], [0.0, 0.0]]

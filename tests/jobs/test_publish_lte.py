"""`publish_lte`: exactly the newest published snapshot is live, in any order of dates."""

import datetime
from itertools import permutations

import pytest

from jobs.publish_lte import publish_lte
from jobs.tables import LTE_LIVE, LTE_SNAPSHOTS, SEMANTIC_BASES
from lte_model.errors import LTEError
from lte_model.windows import ONE_DAY

DATE = datetime.date(2024, 3, 1)
DATES = [DATE + ONE_DAY * n for n in range(3)]


def fill(warehouse):
    """A basis, and a snapshot of each date: user `left` only has the first, `u` has them all."""
    spark = warehouse.spark
    warehouse.replace(
        SEMANTIC_BASES,
        spark.sql(
            "SELECT 'b' AS basis_id, 'hashed-text' AS encoder, 1 AS dimensions, '{title}' AS text_template, "
            "DATE'2024-01-01' AS fitted_on, 1L AS fitted_items, CAST('' AS BINARY) AS state"
        ),
        "true",
    )
    rows = [("left", DATES[0])] + [("u", date) for date in DATES]
    frame = spark.createDataFrame(rows, "user_id STRING, snapshot_date DATE").selectExpr(
        "*",
        "array(day(snapshot_date)) AS vector_sum",
        "1 AS event_count",
        "date_sub(snapshot_date, 4) AS newest_event_date",
        "3 AS lag_days",
        "10 AS window_days",
        "'b' AS basis_id",
        "'uniform' AS representation",
    )
    warehouse.replace(LTE_SNAPSHOTS, frame, "true")


def live(warehouse):
    return {row.user_id: row.snapshot_date for row in warehouse.read(LTE_LIVE).collect()}


def test_the_newest_snapshot_is_live_in_any_order(new_warehouse):
    for order in list(permutations(DATES))[2::3]:
        warehouse = new_warehouse()
        fill(warehouse)
        published = [publish_lte(warehouse, date)[0] for date in order]
        assert published == [max(order[: n + 1]) for n in range(3)]
        assert live(warehouse) == {"u": DATES[-1]}


def test_publishing_again_changes_no_row(warehouse):
    fill(warehouse)
    publish_lte(warehouse, DATES[0])
    before = sorted(map(str, warehouse.read(LTE_LIVE).collect()))
    publish_lte(warehouse, DATES[0])
    assert sorted(map(str, warehouse.read(LTE_LIVE).collect())) == before
    assert live(warehouse) == {"left": DATES[0], "u": DATES[0]}


def test_a_date_without_a_snapshot_is_named(warehouse):
    fill(warehouse)
    with pytest.raises(LTEError, match="holds no uniform LTE of 2024-04-01 in basis b; run jobs.snapshot_lte"):
        publish_lte(warehouse, datetime.date(2024, 4, 1))
    assert not warehouse.exists(LTE_LIVE)

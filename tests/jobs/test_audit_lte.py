"""The audit finds nothing in a clean warehouse, and reports every planted fault by name."""

import datetime
import shutil

import pytest
from pyspark.sql import functions as F

from jobs.audit_lte import Audit, audit_lte, compared, recomputed, record, require_clean, sampled
from jobs.demo_shop.feed import write_demo_shop
from jobs.demo_shop.spec import ShopSpec
from jobs.embed_items import embed_items
from jobs.feeds.accounts import days_known
from jobs.fit_basis import fit_basis, register
from jobs.ingest_events import ingest_events
from jobs.ingest_items import ingest_items
from jobs.publish_lte import publish_lte
from jobs.recipes.bases import basis_in_force
from jobs.recipes.recipe import recipe
from jobs.snapshot_lte import snapshot_lte
from jobs.spark.warehouse import Warehouse
from lte_model.domain.windows import ONE_DAY, lte_window
from lte_model.errors import LTEError
from lte_model.warehouse.tables import EVENTS, LTE_AUDITS, LTE_LIVE, LTE_SNAPSHOTS, SEMANTIC_BASES
from tests.jobs.conftest import small_settings
from tests.jobs.events import ITEMS, Event, events_frame
from tests.jobs.feed_files import reads

DATE = datetime.date(2024, 7, 1)


@pytest.fixture(scope="module")
def clean(spark, tmp_path_factory) -> Warehouse:
    """A warehouse with the demo shop's snapshots of DATE and the day before; DATE is live."""
    home = tmp_path_factory.mktemp("clean")
    write_demo_shop(ShopSpec(users=150, items=60, events_per_user=120, bot_weight=5), home / "shop")
    warehouse = Warehouse(spark, small_settings(home))
    reads(warehouse, home / "shop" / "events.parquet", home / "shop" / "items.parquet")
    ingest_items(warehouse, warehouse.settings, DATE)
    ingest_events(warehouse, warehouse.settings, days_known(DATE, DATE - 30 * ONE_DAY))
    warehouse.create(SEMANTIC_BASES)
    basis, count = fit_basis(warehouse, DATE)
    register(warehouse, basis, DATE, count)
    embed_items(warehouse, DATE)
    snapshot_lte(warehouse, [DATE - ONE_DAY, DATE])
    publish_lte(warehouse, DATE)
    return warehouse


@pytest.fixture
def warehouse(clean, tmp_path) -> Warehouse:
    """A copy of the clean warehouse, to spoil."""
    copy = Warehouse(clean.spark, small_settings(tmp_path))
    shutil.copytree(clean.settings.warehouse, copy.settings.warehouse)
    return copy


def audit(warehouse, live=False):
    return audit_lte(warehouse, DATE, share=1, live=live)


def users(warehouse):
    return sorted(row.user_id for row in rows(warehouse).collect())


def rows(warehouse):
    return warehouse.read(LTE_SNAPSHOTS).where(f"snapshot_date = DATE'{DATE}'")


def plant(warehouse, table, change):
    """Changes a table by SQL, without a job; `table` in the SQL stands for its path."""
    warehouse.spark.sql(change.replace(" table ", f" delta.`{warehouse.path(table)}` "))


def add(warehouse, table, frame):
    frame.write.format("delta").mode("append").save(warehouse.path(table))


FAULTS = {
    "vector_sum": "UPDATE table SET vector_sum = transform(vector_sum, (x, i) -> IF(i = 2, x + 1, x))",
    "event_count": "UPDATE table SET event_count = event_count + 1",
    "newest_event_date": "UPDATE table SET newest_event_date = newest_event_date - 1",
    "vector_sum, event_count": "UPDATE table SET vector_sum = slice(vector_sum, 1, 3), event_count = 0",
    "removed": "DELETE FROM table",
    "doubled": "INSERT INTO table SELECT * FROM table",
}
"""The planted faults, one user each; a mismatch names the columns that differ."""


def test_a_clean_warehouse_has_nothing_to_find_and_that_is_kept(warehouse):
    earlier = Audit("lte_live", "uniform", DATE, 9, 1, 1, 1, ())
    record(warehouse, earlier, recipe(warehouse, basis_in_force(warehouse), "uniform", DATE), 1)
    for live in (False, True):
        found = audit(warehouse, live)
        assert found.clean and found.sampled_users == len(users(warehouse)) > len(FAULTS)
        require_clean(found)
    kept = [row.asDict() for row in warehouse.read(LTE_AUDITS).orderBy("audited_table").collect()]
    assert [(row["audited_table"], row["audited_date"], row["mismatched"]) for row in kept] == [
        ("lte_live", DATE, 0),
        ("lte_snapshots", DATE, 0),
    ]


def test_each_planted_fault_is_found_and_named(warehouse, monkeypatch):
    user_of = dict(zip(FAULTS, users(warehouse), strict=False))
    for fault, change in FAULTS.items():
        plant(warehouse, LTE_SNAPSHOTS, f"{change} WHERE user_id = '{user_of[fault]}' AND snapshot_date = DATE'{DATE}'")
    add(warehouse, LTE_SNAPSHOTS, rows(warehouse).limit(1).withColumn("user_id", F.lit("zz nobody")))
    monkeypatch.setattr("jobs.audit_lte.USERS_NAMED", 100)
    found = audit(warehouse)
    assert (found.mismatched, found.missing, found.extra) == (4, 1, 2)
    assert sorted(found.first) == sorted(
        [f"user '{user_of[fault]}' mismatched in {fault}" for fault in list(FAULTS)[:4]]
        + [f"user '{user_of['removed']}' missing", f"user '{user_of['doubled']}' extra", "user 'zz nobody' extra"]
    )
    with pytest.raises(
        LTEError,
        match=f"of lte_snapshots, uniform, basis [0-9a-f]{{16}}, of {DATE} audited: 4 mismatched.* "
        f"first: {found.first[0]}",
    ):
        require_clean(found)
    kept = warehouse.read(LTE_AUDITS).first()
    assert (kept.mismatched, kept.missing, kept.extra) == (4, 1, 2)
    assert audit_lte(warehouse, DATE - ONE_DAY, share=1).clean, "the faults are in another date"


def test_a_fault_in_what_is_live_is_found_there(warehouse):
    user = users(warehouse)[0]
    plant(warehouse, LTE_LIVE, f"UPDATE table SET event_count = 0 WHERE user_id = '{user}'")
    assert audit(warehouse, live=True).first == (f"user '{user}' mismatched in event_count",)


def test_events_that_slip_into_the_past_are_found(warehouse):
    """Adds backdated events for a user with a row and for a user without one."""
    user, day = users(warehouse)[0], F.lit(lte_window(DATE, 3, 10).start)
    event = warehouse.read(EVENTS).where(F.col("user_id") == user).where(F.col("event_date") < DATE).limit(1)
    late = event.withColumns({"event_date": day, "known_date": day})
    add(warehouse, EVENTS, late.union(late.withColumn("user_id", F.lit("somebody"))))
    found = audit(warehouse)
    assert (found.mismatched, found.missing, found.extra) == (1, 1, 0)
    assert found.first[0] == "user 'somebody' missing" and found.first[1].startswith(f"user '{user}' mismatched in ")


def test_an_event_known_on_the_date_itself_is_none_of_its_business(warehouse):
    add(warehouse, EVENTS, warehouse.read(EVENTS).limit(50).withColumn("known_date", F.lit(DATE)))
    assert audit(warehouse).clean


def test_the_sample_is_the_same_each_time_and_another_on_another_date(spark):
    frame = spark.range(2000).selectExpr("CAST(id AS STRING) AS user_id")

    def sample(date, share):
        return {row.user_id for row in frame.where(sampled(date, share)).collect()}

    first = sample(DATE, 0.1)
    assert first == sample(DATE, 0.1) and 150 < len(first) < 250
    assert first < sample(DATE, 0.3)
    assert not first <= sample(DATE + ONE_DAY, 0.3)
    assert len(sample(DATE, 1)) == 2000


def test_what_cannot_be_audited_is_said(warehouse):
    with pytest.raises(LTEError, match=r"holds no uniform LTE of 2024-01-01 in basis .*; run jobs.snapshot_lte --date"):
        audit_lte(warehouse, datetime.date(2024, 1, 1))
    with pytest.raises(LTEError, match=f"of {DATE} is live, not that of 2024-06-30; audit it with --date {DATE}"):
        audit_lte(warehouse, DATE - ONE_DAY, live=True)
    with pytest.raises(LTEError, match=r"no user of lte_snapshots of .* share of 1e-06; give a greater --share"):
        audit_lte(warehouse, DATE, share=1e-6)
    assert not warehouse.exists(LTE_AUDITS)


def test_only_what_the_date_may_see_is_recomputed(spark):
    """Compares the audit's plain SQL with sums by hand."""
    day = DATE - 5 * ONE_DAY
    feed = [
        Event("u", "a", day, day),
        Event("u", "b", day - ONE_DAY, DATE - ONE_DAY),
        Event("u", "a", day, DATE),  # known too late
        Event("u", "c", day, day),  # an item known too late
        Event("u", "d", day, day),  # an item without a vector
        Event("u", "a", DATE - 3 * ONE_DAY, DATE - 3 * ONE_DAY),  # after the window
        Event("u", "a", DATE - 14 * ONE_DAY, DATE - 14 * ONE_DAY),  # before the window
        Event("v", "a", DATE - 13 * ONE_DAY, DATE - 13 * ONE_DAY),
    ]
    known = [(item, DATE if item == "c" else DATE - ONE_DAY) for item in ITEMS]
    items = spark.createDataFrame(known, "item_id STRING, known_date DATE")
    vectors = spark.createDataFrame(
        [("a", [1.0, -0.5]), ("b", [2**-14, 0.25]), ("c", [1.0, 1.0])], "item_id STRING, vector ARRAY<FLOAT>"
    )
    found = recomputed(events_frame(spark, feed), items, vectors, lte_window(DATE, 3, 10), DATE).orderBy("user_id")
    assert [tuple(row) for row in found.collect()] == [
        ("u", [2**14 + 1, -(2**13) + 2**12], 2, day),
        ("v", [2**14, -(2**13)], 1, DATE - 13 * ONE_DAY),
    ]


def test_a_null_in_a_row_is_a_mismatch(spark):
    schema = "user_id STRING, vector_sum ARRAY<INT>, event_count INT, newest_event_date DATE"
    found = spark.createDataFrame([("u", None, 1, None)], schema)
    expected = spark.createDataFrame([("u", [1], 1, DATE)], schema)
    row = compared(found, expected).first()
    assert (row.finding, row.differing) == ("mismatched", "vector_sum, newest_event_date")


def test_rates_are_of_the_sampled_users():
    audit = Audit("lte_live", "uniform", DATE, 400, 1, 0, 4, ())
    assert (audit.rate("mismatched"), audit.rate("extra"), audit.clean) == (0.0025, 0.01, False)
    assert str(audit) == (
        "400 users of lte_live, uniform, of 2024-07-01 audited: 1 mismatched (0.25%), 0 missing (0.00%), "
        "4 extra (1.00%)"
    )

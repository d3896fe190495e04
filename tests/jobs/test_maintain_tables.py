"""Maintenance: fewer files with the same rows, versions that a model names stay readable, a second run does nothing."""

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from jobs import maintain_tables as job
from jobs.maintain_tables import crowded_partitions, dates_to_thin, describe, maintain
from lte_model.domain.windows import ONE_DAY
from lte_model.tracking.lineage import RegisteredVersion
from lte_model.warehouse.tables import EVENTS, LTE_SNAPSHOTS, RECOMMENDATIONS, SNAPSHOT_ACCOUNTS, TRAINING_SET
from tests.jobs.rows import DAY, case, event, frame, lte, recommendation

days = st.dates(DAY - 100 * ONE_DAY, DAY + 5 * ONE_DAY)


@given(there=st.sets(days), daily_from=days, trained=st.sets(days))
def test_every_date_of_the_daily_period_and_of_a_training_stays(there, daily_from, trained):
    thinned = dates_to_thin(there, daily_from, trained)
    assert thinned == sorted(thinned)
    for date in there:
        assert (date in thinned) == (date < daily_from and date not in trained)


def test_a_partition_is_crowded_by_small_files_alone():
    files = pl.DataFrame(
        {"name": list("abcdef"), "size": [1, 1, 1, 9, 9, 1], "partition.feed": ["x", "x", "x", "y", "y", "y"]}
    )
    assert crowded_partitions(files, small=5, most=2)["partition.feed"].to_list() == ["x"]
    assert crowded_partitions(files, small=5, most=3).is_empty()
    assert len(crowded_partitions(files.drop("partition.feed"), small=5, most=3)) == 1


@pytest.fixture
def used(warehouse):
    """Table events after seven ingests, one of which repeats a day: versions 1 to 8. Retention is zero."""
    ingested = [DAY + ONE_DAY * day for day in (0, 1, 2, 0, 3, 4, 5)]
    for number, day in enumerate(ingested):
        rows = frame(warehouse, EVENTS, [event(f"user-{number}", day, second) for second in range(3)])
        warehouse.replace(EVENTS, rows, f"known_date = DATE'{day}'")
    short = {"retention_days": 0, "small_files": 2}
    options = warehouse.settings.maintenance.model_copy(update=short)
    warehouse.settings = warehouse.settings.model_copy(update={"maintenance": options})
    return warehouse


def model(table, *versions, training_date=None):
    return RegisteredVersion("ranker", 1, training_date, {table.name: versions}, {})


def rows_at(warehouse, version):
    """The rows of table events at a version, read without a JVM, like a training does."""
    return pl.scan_delta(warehouse.path(EVENTS), version=version).collect().sort("user_id", "event_ts")


NAMED, UNNAMED = 3, 4


@pytest.mark.parametrize("log_knows", [True, False])
def test_a_version_that_a_model_names_is_read_as_before(used, monkeypatch, log_knows):
    """Also if the log no longer records when its files were removed."""
    if not log_knows:
        monkeypatch.setattr(job, "_days_needed", lambda *_: 0)
    # Version 3 holds the first ingest of DAY, which version 4 replaced. Version 0 is the empty table.
    before = {version: rows_at(used, version) for version in (NAMED, UNNAMED, 7)}
    newest = rows_at(used, None)
    done = maintain(used, EVENTS, DAY, [model(EVENTS, NAMED)])
    assert (done.readable, done.unreadable) == (((NAMED, "ranker version 1"),), ())
    assert rows_at(used, NAMED).equals(before[NAMED])
    assert rows_at(used, None).equals(newest)
    assert DeltaTable(used.path(EVENTS)).get_add_actions().num_rows == done.compacted == 1
    if log_knows:
        at_named = used.spark.read.format("delta").option("versionAsOf", NAMED).load(used.path(EVENTS))
        assert at_named.count() == len(before[NAMED])
        assert done.retention_days == job.MARGIN_DAYS + 1
    else:
        with pytest.raises((OSError, pl.exceptions.ComputeError)):
            rows_at(used, 7)
    assert "version 3 is kept readable: named by ranker version 1" in "\n".join(describe(done))

    version = DeltaTable(used.path(EVENTS)).version()
    again = maintain(used, EVENTS, DAY, [model(EVENTS, NAMED)])
    assert again.files == (done.files[1],) * 2 and again.compacted == 0
    assert DeltaTable(used.path(EVENTS)).version() == version


def test_without_a_name_the_past_goes_and_its_loss_is_said(used):
    done = maintain(used, EVENTS, DAY, [])
    assert done.files[0] > 7 and done.files[1] == 1 and done.readable == done.unreadable == ()
    after = maintain(used, EVENTS, DAY, [model(EVENTS, NAMED, 99)])
    assert after.unreadable == ((NAMED, "ranker version 1"), (99, "ranker version 1"))
    assert after.files == (1, 1)


def test_snapshots_are_thinned_to_the_dates_that_trainings_read(warehouse):
    training_date = DAY - ONE_DAY * 60
    of_model = set(warehouse.settings.training_set.dates(training_date).snapshot_dates)
    recent = {DAY - ONE_DAY * back for back in (0, 1, 30)}
    old = {DAY - ONE_DAY * back for back in (31, 40)}
    anchor = DAY - ONE_DAY * 45
    dates = sorted(of_model | recent | old | {anchor})
    kinds = ("uniform", "recency")
    ltes = [lte("u", date) | {"representation": name} for date in dates for name in kinds]
    warehouse.replace(LTE_SNAPSHOTS, frame(warehouse, LTE_SNAPSHOTS, ltes), "true")
    of_all = {"lag_days": 3, "window_days": 10, "basis_id": "b", "inputs": "x", "events_version": 1, "users": 1}
    accounts = [{"snapshot_date": date, "representation": name} | of_all for date in dates for name in kinds]
    warehouse.replace(SNAPSHOT_ACCOUNTS, frame(warehouse, SNAPSHOT_ACCOUNTS, accounts), "true")
    read = case("u", "train") | {"snapshot_date": anchor}
    warehouse.replace(TRAINING_SET, frame(warehouse, TRAINING_SET, [read]), "true")

    versions = [model(EVENTS, 3, training_date=training_date)]
    done = maintain(warehouse, LTE_SNAPSHOTS, DAY, versions)
    assert (done.thinned_dates, done.thinned_rows) == (2, 4)
    for table in (LTE_SNAPSHOTS, SNAPSHOT_ACCOUNTS):
        left = {(row.representation, row.snapshot_date) for row in warehouse.read(table).collect()}
        assert left == {(name, date) for name in kinds for date in of_model | recent | {anchor}}, table.name
    version = DeltaTable(warehouse.path(LTE_SNAPSHOTS)).version()
    again = maintain(warehouse, LTE_SNAPSHOTS, DAY, versions)
    assert again.thinned_dates == 0 and DeltaTable(warehouse.path(LTE_SNAPSHOTS)).version() == version


def test_recommendations_of_the_past_go(warehouse):
    dates = [DAY - ONE_DAY * back for back in (0, 30, 31, 90)]
    rows = frame(warehouse, RECOMMENDATIONS, [recommendation(user, date) for date in dates for user in "uv"])
    warehouse.replace(RECOMMENDATIONS, rows, "true")
    done = maintain(warehouse, RECOMMENDATIONS, DAY, [])
    assert (done.thinned_dates, done.thinned_rows) == (2, 4)
    assert {row.date for row in warehouse.read(RECOMMENDATIONS).collect()} == set(dates[:2])
    assert maintain(warehouse, RECOMMENDATIONS, DAY, []).thinned_dates == 0


def test_a_table_that_is_not_there_is_left_alone(warehouse):
    assert maintain(warehouse, EVENTS, DAY, [model(EVENTS, 3)]) is None
    assert not warehouse.exists(EVENTS)

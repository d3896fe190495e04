"""Existing rows survive a release that adds a column, a downgrade, and changes of lag, window or dimensions."""

import dataclasses
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable, Field
from deltalake.schema import PrimitiveType

from jobs.audit_lte import audit_lte
from jobs.monitor_lte import keep
from jobs.publish_lte import publish_lte
from jobs.snapshot_lte import snapshot_lte
from jobs.spark.warehouse import Warehouse
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.monitoring.measures import MEASURES, Level, Reading
from lte_model.warehouse.tables import LTE_LIVE, LTE_MONITORING, LTE_SNAPSHOTS, SEMANTIC_BASES, SNAPSHOT_ACCOUNTS
from tests.jobs.small_tables import DATE, LAG

pytestmark = pytest.mark.spark

COLUMN = "quality"
"""The column that a later release adds."""


def later(table):
    return dataclasses.replace(table, columns=f"{table.columns}, {COLUMN} DOUBLE")


def rows(warehouse, table, **where):
    found = pl.scan_delta(warehouse.path(table)).filter(**where).collect()
    return found.drop(COLUMN, strict=False).sort(pl.all())


def files(warehouse, table):
    """The contents of the files in the newest version."""
    return {path: Path(path).read_bytes() for path in DeltaTable(warehouse.path(table)).file_uris()}


def test_a_column_more_leaves_old_rows_as_they_are_and_either_release_goes_on(filled, new_filled):
    """Simulates a later release whose tables have one more column, and a downgrade to the current one."""
    days = [DATE + ONE_DAY * n for n in range(2)]
    undisturbed = new_filled()
    for date in days:
        snapshot_lte(undisturbed, [date])
        publish_lte(undisturbed, date)

    snapshot_lte(filled, [days[0]])
    publish_lte(filled, days[0])
    old_files, old_rows = files(filled, LTE_SNAPSHOTS), rows(filled, LTE_SNAPSHOTS)
    for table in (LTE_SNAPSHOTS, LTE_LIVE, SNAPSHOT_ACCOUNTS, SEMANTIC_BASES):
        filled.create(later(table))
    assert rows(filled, LTE_SNAPSHOTS).equals(old_rows) and files(filled, LTE_SNAPSHOTS) == old_files
    there = pl.scan_delta(filled.path(LTE_SNAPSHOTS)).collect()
    assert there[COLUMN].null_count() == len(there) > 0

    written = (
        undisturbed.read(LTE_SNAPSHOTS).where(f"snapshot_date = DATE'{days[1]}'").selectExpr("*", f"0.5D AS {COLUMN}")
    )
    filled.replace(later(LTE_SNAPSHOTS), written, f"snapshot_date = DATE'{days[1]}'")
    assert old_files.items() <= files(filled, LTE_SNAPSHOTS).items()
    qualities = pl.scan_delta(filled.path(LTE_SNAPSHOTS)).filter(snapshot_date=days[1]).collect()[COLUMN]
    assert set(qualities) == {0.5}

    # Downgraded to a release without the column, the job continues from the existing rows and ignores it.
    (account,) = snapshot_lte(filled, [days[1]])
    assert account.made_from == days[0]
    publish_lte(filled, days[1])
    for table in (LTE_SNAPSHOTS, LTE_LIVE):
        assert rows(filled, table).equals(rows(undisturbed, table)), table.name
    assert old_files.items() <= files(filled, LTE_SNAPSHOTS).items()
    audit = audit_lte(filled, days[1], 1.0)
    assert audit.sampled_users > 0 and audit.mismatched == audit.missing == audit.extra == 0


def test_a_table_that_is_written_without_a_jvm_goes_on_with_a_column_more(settings):
    def measured(date, value):
        keep(settings, date, "basis", [Reading("uniform", MEASURES["users"], value, Level.OK, "")])

    path = settings.table_path(LTE_MONITORING.name)
    measured(DATE, 1.0)
    DeltaTable(path).alter.add_columns([Field(COLUMN, PrimitiveType("double"))])
    measured(DATE + ONE_DAY, 2.0)
    measured(DATE, 3.0)
    found = pl.scan_delta(path).select("snapshot_date", "value", COLUMN).collect().sort("snapshot_date")
    assert found.rows() == [(DATE, 3.0, None), (DATE + ONE_DAY, 2.0, None)]


@pytest.mark.parametrize("change", [{"lag_days": LAG + 2}, {"window_days": 6}])
def test_another_lag_or_window_makes_new_dates_anew_and_leaves_old_ones(filled, new_filled, change):
    snapshot_lte(filled, [DATE])
    publish_lte(filled, DATE)
    old = rows(filled, LTE_SNAPSHOTS)
    changed, tomorrow = _with(filled, window=change), DATE + ONE_DAY
    (account,) = snapshot_lte(changed, [tomorrow])
    assert account.made_from is None  # sums over another window can't be continued
    live = publish_lte(changed, tomorrow)
    assert live.written_users == live.users == account.users
    assert rows(changed, LTE_SNAPSHOTS, snapshot_date=DATE).equals(old)
    ((name, value),) = change.items()
    for table in (LTE_LIVE, LTE_SNAPSHOTS):
        assert set(rows(changed, table, snapshot_date=tomorrow)[name]) == {value}, table.name

    # An earlier date that is made again uses the new settings only.
    snapshot_lte(changed, [DATE])
    fresh = _with(new_filled(), window=change)
    snapshot_lte(fresh, [DATE])
    assert rows(changed, LTE_SNAPSHOTS, snapshot_date=DATE).equals(rows(fresh, LTE_SNAPSHOTS))


def test_other_dimensions_are_another_basis_and_the_old_one_lives_until_the_settings_choose(filled):
    snapshot_lte(filled, [DATE])
    publish_lte(filled, DATE)
    other = filled.read(SEMANTIC_BASES).selectExpr(
        "'later' AS basis_id", "encoder", "8 AS dimensions", "text_template", "fitted_on", "fitted_items", "state"
    )
    other.write.format("delta").mode("append").save(filled.path(SEMANTIC_BASES))
    before = rows(filled, LTE_LIVE)
    with pytest.raises(LTEError, match=r"basis.basis_id"):
        snapshot_lte(filled, [DATE + ONE_DAY])
    assert rows(filled, LTE_LIVE).equals(before)
    chosen = _with(filled, basis={"basis_id": "basis"})
    snapshot_lte(chosen, [DATE + ONE_DAY])
    assert publish_lte(chosen, DATE + ONE_DAY).date == DATE + ONE_DAY
    with pytest.raises(LTEError, match=r"table item_embeddings holds no item of basis later; run jobs.embed_items"):
        snapshot_lte(_with(filled, basis={"basis_id": "later"}), [DATE + ONE_DAY])


def _with(warehouse, **sections):
    """The same tables, opened with other settings."""
    settings = warehouse.settings
    changed = {name: getattr(settings, name).model_copy(update=options) for name, options in sections.items()}
    return Warehouse(warehouse.spark, settings.model_copy(update=changed))

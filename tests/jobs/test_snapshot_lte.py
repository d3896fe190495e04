"""`snapshot_lte` on Delta tables: every path to a date gives the oracle's rows, and a missing day is refused."""

import datetime
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.snapshot_lte import snapshot_lte
from lte_model.domain.basis import to_vector
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.warehouse.tables import EVENTS, INGESTED_DAYS, LTE_SNAPSHOTS, SNAPSHOT_ACCOUNTS
from tests.jobs import events as made
from tests.jobs.events import collected, oracle
from tests.jobs.small_tables import DATE, FEED, LAG, VECTORS, WINDOW, ingest, random_feed


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
    assert said[0] == f"uniform: LTE of {two_ago}: in full, for there is no snapshot near it to go on from"
    assert said[1] == f"uniform: LTE of {yesterday}: incremental, from the snapshot of {two_ago}"
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


def test_accounts_of_an_earlier_release_get_the_column_that_they_lack(filled):
    without = replace(SNAPSHOT_ACCOUNTS, columns=SNAPSHOT_ACCOUNTS.columns.replace(", encoder_id STRING", ""))
    filled.create(without)
    snapshot_lte(filled, [DATE])
    [account] = filled.read(SNAPSHOT_ACCOUNTS).collect()
    assert (account.snapshot_date, account.encoder_id) == (DATE, None)


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
    with pytest.raises(LTEError, match=r"table events holds .* rows known in .*, and the accounts of these days say"):
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
    with pytest.raises(LTEError, match=r"basis 3f2a is not registered.*run jobs.fit_basis"):
        snapshot_lte(filled, [DATE])


def test_an_lte_is_divided_once_and_exactly():
    sums = np.array([[2**14, -(2**13)], [0, 0]])
    assert to_vector(sums, np.array([2, 0])).tolist() == [[0.5, -0.25], [0.0, 0.0]]

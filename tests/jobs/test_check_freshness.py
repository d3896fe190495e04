"""Live LTEs that are too old, and days without a snapshot, are each reported in one line."""

import polars as pl
import pytest
from deltalake import write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from jobs.check_freshness import check_freshness, days_missed, stale_because
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.warehouse.tables import PUBLICATIONS, SNAPSHOT_ACCOUNTS
from tests.jobs.conftest import DAY

dates = st.dates(DAY - 12 * ONE_DAY, DAY + 2 * ONE_DAY)


@given(published=st.sets(dates), there=st.sets(dates), days=st.integers(0, 9))
def test_a_day_is_missed_that_has_no_snapshot_since_the_first_publication(published, there, days):
    missed = days_missed(DAY, published, there, days)
    assert missed == sorted(missed)
    for day in (DAY + ONE_DAY * shift for shift in range(-20, 5)):
        looked_at = DAY - days * ONE_DAY <= day < DAY
        begun = any(other <= day for other in published)
        assert (day in missed) == (looked_at and begun and day not in there)


@given(published=st.sets(dates), allowed=st.integers(0, 9))
def test_live_is_stale_where_no_date_of_the_allowed_days_was_published(published, allowed):
    fresh = any(day >= DAY - allowed * ONE_DAY for day in published)
    assert (stale_because(DAY, published, allowed) is None) == fresh


def made(settings, table, *days, basis_id="b"):
    rows = pl.DataFrame({"snapshot_date": list(days)}).with_columns(
        representation=pl.lit("uniform"), basis_id=pl.lit(basis_id)
    )
    write_deltalake(settings.table_path(table.name), rows.to_arrow(compat_level=pl.CompatLevel.oldest()), mode="append")


def test_an_installation_that_never_published_is_stale(settings):
    with pytest.raises(LTEError, match="uniform: nothing was ever published; run lte_daily"):
        check_freshness(settings, DAY)


def test_what_is_live_today_is_fresh_and_tomorrow_stale(settings):
    for table in (PUBLICATIONS, SNAPSHOT_ACCOUNTS):
        made(settings, table, DAY - ONE_DAY, DAY)
    assert check_freshness(settings, DAY) == [f"uniform: live is {DAY}, no day of the last 7 is missed"]
    with pytest.raises(LTEError, match=f"live is of {DAY}, 1 days before {DAY + ONE_DAY}, 0 are allowed"):
        check_freshness(settings, DAY + ONE_DAY)
    other = settings.model_copy(update={"basis": settings.basis.model_copy(update={"basis_id": "another"})})
    with pytest.raises(LTEError, match="nothing was ever published"):
        check_freshness(other, DAY)


def test_a_basis_beside_the_one_of_the_trainings_is_looked_at_too(settings):
    """The champion may read a basis in `basis.beside`."""
    for table in (PUBLICATIONS, SNAPSHOT_ACCOUNTS):
        made(settings, table, DAY - ONE_DAY, DAY)
    basis = settings.basis.model_copy(update={"basis_id": "b", "beside": ("a",)})
    two = settings.model_copy(update={"basis": basis})
    with pytest.raises(LTEError, match=r"^uniform in basis a: nothing was ever published"):
        check_freshness(two, DAY)
    for table in (PUBLICATIONS, SNAPSHOT_ACCOUNTS):
        made(settings, table, DAY, basis_id="a")
    of_a = f"uniform in basis a: live is {DAY}, no day of the last 7 is missed"
    assert check_freshness(two, DAY) == [of_a.replace(" in basis a", ""), of_a]


def test_a_missed_day_is_named_until_a_backfill_made_it(settings):
    made(settings, PUBLICATIONS, DAY - 3 * ONE_DAY, DAY)
    made(settings, SNAPSHOT_ACCOUNTS, DAY - 3 * ONE_DAY, DAY - ONE_DAY, DAY)
    with pytest.raises(LTEError, match=f"no snapshot of {DAY - 2 * ONE_DAY}; run lte_daily"):
        check_freshness(settings, DAY)
    made(settings, SNAPSHOT_ACCOUNTS, DAY - 2 * ONE_DAY)
    check_freshness(settings, DAY)

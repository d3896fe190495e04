"""`publish_lte`: the newest published snapshot is live, in any order of dates, and only changed rows are written."""

import random

import pytest

from jobs.publish_lte import publish_lte
from jobs.snapshot_lte import snapshot_lte
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.warehouse.tables import LTE_LIVE
from tests.jobs import events as made
from tests.jobs.events import oracle
from tests.jobs.small_tables import DATE, FEED, LAG, VECTORS, WINDOW, ingest


def live(warehouse):
    """{user: (vector sum, event count, newest event date)} of the live rows."""
    rows = warehouse.read(LTE_LIVE).collect()
    assert len(rows) == len({row.user_id for row in rows})
    return {row.user_id: (tuple(row.vector_sum), row.event_count, row.newest_event_date) for row in rows}


def expected(date, feed=FEED):
    return {user: row for (_, user), row in oracle(feed, VECTORS, [date], LAG, WINDOW).items()}


def test_the_newest_published_snapshot_is_live_in_any_order(filled):
    dates = [DATE + ONE_DAY * days for days in (2, 0, 3, 3, 1, 9)]
    snapshot_lte(filled, dates)
    for number, date in enumerate(dates):
        newest = max(dates[: number + 1])
        assert publish_lte(filled, date).date == newest
        assert live(filled) == expected(newest)


def test_only_the_rows_that_changed_are_written(filled):
    yesterday = DATE - ONE_DAY
    snapshot_lte(filled, [yesterday, DATE])
    assert publish_lte(filled, yesterday).written_users == len(expected(yesterday))
    before, after = expected(yesterday), expected(DATE)
    changed = {user for user in before | after if before.get(user) != after.get(user)}
    assert publish_lte(filled, DATE).written_users == len(changed) < len(after)
    dates = {row.user_id: row.snapshot_date for row in filled.read(LTE_LIVE).collect()}
    assert dates == {user: DATE if user in changed else yesterday for user in after}
    assert publish_lte(filled, DATE).written_users == 0


def test_all_rows_are_written_where_what_is_live_was_made_from_other_events(filled):
    snapshot_lte(filled, [DATE])
    publish_lte(filled, DATE)
    corrected = random.Random(0).sample(FEED, len(FEED) - 40)
    ingest(filled, corrected, made.FIRST_DAY, made.FIRST_DAY + 50 * ONE_DAY)
    snapshot_lte(filled, [DATE + ONE_DAY])
    publish_lte(filled, DATE + ONE_DAY)
    assert live(filled) == expected(DATE + ONE_DAY, corrected)


def test_a_date_without_a_snapshot_is_named(filled):
    with pytest.raises(LTEError, match=f"holds no uniform LTE of {DATE} in basis basis; run jobs.snapshot_lte"):
        publish_lte(filled, DATE)
    assert not filled.exists(LTE_LIVE)

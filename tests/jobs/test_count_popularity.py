"""The counts against an oracle that adds one event at a time; events known later don't change them."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.count_popularity import count_popularity, item_popularity
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.warehouse.tables import EVENTS, ITEM_POPULARITY
from tests.jobs import events as made
from tests.jobs.events import events_frame

WINDOW_DAYS = 12
DATES = tuple(made.FIRST_DAY + ONE_DAY * days for days in (5, 20, 40, 190))


def counted(frame):
    return {
        (row.snapshot_date, row.item_id): (row.events_7d, row.events_30d, row.events_180d, row.events_window)
        for row in frame.collect()
    }


def oracle(rows, dates=DATES):
    found = {}
    for date in dates:
        per_window = [Counter(), Counter(), Counter(), Counter()]
        for event in rows:
            age = (date - event.event_date).days
            for counter, days in zip(per_window, (7, 30, 180, WINDOW_DAYS), strict=True):
                counter[event.item_id] += 0 < age <= days and event.known_date < date
        for item in per_window[0]:
            if any(counter[item] for counter in per_window):
                found[date, item] = tuple(counter[item] for counter in per_window)
    return found


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(made.events(), min_size=1, max_size=60))
def test_counts_are_those_of_the_oracle(spark, rows):
    assert counted(item_popularity(events_frame(spark, rows), DATES, WINDOW_DAYS)) == oracle(rows)


def test_a_second_run_and_other_dates_leave_the_rows_as_they_are(warehouse):
    day = made.FIRST_DAY
    rows = [made.Event("u", "a", day, day), made.Event("v", "b", day, day + ONE_DAY * 8)]
    write_events(warehouse, rows)
    assert count_popularity(warehouse, DATES[:2]) == {DATES[0]: 1, DATES[1]: 2}
    for dates in (DATES[:1], DATES[1:2]):
        count_popularity(warehouse, dates)
        found = counted(warehouse.read(ITEM_POPULARITY))
        # The small settings' window is ten days.
        assert found == {(DATES[0], "a"): (1, 1, 1, 1), (DATES[1], "a"): (0, 1, 1, 0), (DATES[1], "b"): (0, 1, 1, 0)}


def test_a_date_before_the_first_event_is_named(warehouse):
    write_events(warehouse, [made.Event("u", "a", made.FIRST_DAY, made.FIRST_DAY)])
    with pytest.raises(LTEError, match=f"no event of the 180 days before {made.FIRST_DAY}; ingest the history"):
        count_popularity(warehouse, [made.FIRST_DAY])
    assert not warehouse.exists(ITEM_POPULARITY)


def write_events(warehouse, rows):
    warehouse.create(EVENTS)
    frame = events_frame(warehouse.spark, rows)
    missing = ("event_type STRING", "price DOUBLE", "quantity DOUBLE", "rating DOUBLE")
    frame = frame.selectExpr("*", *(f"CAST(NULL AS {c.split()[1]}) AS {c.split()[0]}" for c in missing))
    warehouse.replace(EVENTS, frame, "event_date >= DATE'1970-01-01'")

"""The windows of LTE and sequence never overlap, and a training's inputs never reach into its targets' future."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lte_model.domain.windows import (
    ONE_DAY,
    every,
    lte_window,
    parse_date,
    parse_run_date,
    target_window,
    today,
)
from lte_model.errors import LTEError
from lte_model.settings import TrainingSetSettings

dates = st.dates(datetime.date(2000, 1, 1), datetime.date(2100, 1, 1))
days = st.integers(1, 400)


@given(date=dates, lag=days, window=days)
def test_the_lte_ends_where_the_targets_begin(date, lag, window):
    lte, targets = lte_window(date, lag, window), target_window(date, lag)
    assert lte.end == targets.start and targets.end == date
    assert lte.days == window and targets.days == lag


@given(date=dates, day=dates, lag=days, window=days)
def test_no_day_is_in_both(date, day, lag, window):
    assert not (day in lte_window(date, lag, window) and day in target_window(date, lag))


@given(date=dates, test_days=days, step=days, anchors=st.integers(1, 12))
def test_no_anchor_trains_on_a_day_that_validates_or_tests(date, test_days, step, anchors):
    found = TrainingSetSettings(test_days=test_days, anchor_every_days=step, anchors=anchors).dates(date)
    assert len(found.anchors) == anchors and list(found.anchors) == sorted(found.anchors)
    assert max(found.anchors) == found.validation.start
    assert found.validation.end == found.test.start and found.test.end == date
    assert found.snapshot_dates == (*found.anchors, found.test.start)


@given(start=dates, length=st.integers(0, 60), step=st.integers(1, 9))
def test_every_kth_day_of_a_range(start, length, step):
    end = start + ONE_DAY * length
    assert list(every(step, start, end)) == [start + ONE_DAY * n for n in range(length) if n % step == 0]


def test_dates_are_checked_in_words():
    with pytest.raises(LTEError, match="'1 May' is not a date; write it YYYY-MM-DD"):
        parse_date("1 May")
    with pytest.raises(LTEError, match="is in the future"):
        parse_run_date(str(today() + ONE_DAY))
    with pytest.raises(LTEError, match="a step of 0 days"):
        every(0, today(), today())

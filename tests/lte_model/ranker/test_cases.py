"""Cases as batches: padding, windows, gaps, older events."""

import dataclasses
import datetime
import math
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lte_model.ranker.cases import first_places
from lte_model.training.training_set import open_training_set
from tests.lte_model.small_shop import (
    TRAINING_DATE,
    with_model,
)


def test_batches_are_padded_on_the_right_and_hold_the_newest_events(training_set):
    cases = training_set.cases("test")
    numbers = np.array([3, 0, 7, 3])
    for most in (None, 2):
        batch = cases.batch(numbers, most)
        for row, i in enumerate(numbers):
            events = cases.sequence(i).tolist()
            events = events if most is None else events[-most:]
            assert batch.lengths[row] == len(events)
            assert batch.items[row, : len(events)].tolist() == events
            assert not batch.items[row, len(events) :].any()
        assert batch.items.shape[1] == batch.lengths.max()


@given(
    cases=st.lists(
        st.tuples(st.lists(st.integers(1, 8), max_size=8), st.lists(st.integers(1, 8), min_size=1, max_size=8)),
        min_size=1,
        max_size=20,
    ),
    max_events=st.integers(1, 12),
)
@settings(deadline=None)
def test_windows_predict_each_target_once_after_an_earlier_day(training_set, cases, max_events):
    """`cases` are (days before the lag, predicted days), each given by its number of events."""
    ends = np.cumsum([sum(before) + sum(after) for before, after in cases])
    targets = np.array([sum(after) for _, after in cases])
    day = np.repeat(np.arange(sum(len(b) + len(a) for b, a in cases)), [n for b, a in cases for n in b + a])
    whole = dataclasses.replace(
        training_set.cases("train").taken(np.zeros(len(cases), dtype=np.int64)),
        items=np.arange(ends[-1]),
        inputs_end=first_places(day),
        gaps=np.zeros(ends[-1], dtype=np.uint8),
        starts=np.append(0, ends[:-1]),
        ends=ends,
        target_counts=targets,
    )
    windows = whole.windows(max_events)
    predicted = []
    for i in range(len(windows)):
        batch = windows.training_batch(np.array([i]), max_events)
        found = batch.targets.tolist()
        assert len(found) == windows.target_counts[i] > 0 and batch.items.shape[1] <= max_events
        for target, place in zip(found, batch.target_places.tolist(), strict=True):
            first = int(np.searchsorted(day, day[target]))
            assert batch.items[0, :place].tolist() == list(range(first - place, first))
            assert place > 0 or first in whole.starts
        predicted += found
    expected = [event for end, count in zip(ends, targets, strict=True) for event in range(end - count, end)]
    assert sorted(predicted) == expected
    last = whole.windows(max_events, last_only=True)
    assert last.training_batch(np.arange(len(cases)), max_events).targets.tolist() == (ends - 1).tolist()


def test_gaps_lead_to_the_next_event_and_the_last_to_the_date(shop):
    training_set = open_training_set(with_model(shop, sequence="newest"), TRAINING_DATE)
    cases = training_set.cases("test")
    cut = datetime.datetime.combine(training_set.dates.test.start, datetime.time(), datetime.UTC)
    rows = {row["user_id"]: row for row in training_set.rows("test").collect().to_dicts()}
    catalogue = set(training_set.catalogue.item_ids)
    for i, user in enumerate(cases.user_ids):
        known = [item in catalogue for item in rows[user]["item_ids"]]
        times = [time for time, has in zip(rows[user]["event_times"], known, strict=True) if has] + [cut]
        minutes = [(after - before).total_seconds() // 60 for before, after in pairwise(times)]
        expected = [min(int(math.log2(1 + gap)), 23) for gap in minutes]
        assert cases.gaps[cases.starts[i] : cases.ends[i]].tolist() == expected


def test_older_events_are_those_before_the_sequence(shop):
    cases = open_training_set(with_model(shop, sequence="newest"), TRAINING_DATE).cases("test")
    numbers = np.arange(len(cases))
    batch = cases.batch(numbers, most_events=4, older_events=6)
    for i in numbers:
        events = cases.sequence(i).tolist()
        assert batch.items[i, : batch.lengths[i]].tolist() == events[-4:]
        assert batch.older[i, : batch.older_lengths[i]].tolist() == events[:-4][-6:]
    assert (batch.older_lengths == 6).any()

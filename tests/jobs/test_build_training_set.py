"""The training set against an oracle in plain Python, and invariant 1 (no leak) in its rows."""

import datetime
from collections import defaultdict

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F

from jobs.build_training_set import TIE, build_training_set, in_order, training_set
from jobs.engine.packing import BUCKETS, buckets_of
from lte_model.domain.windows import ONE_DAY, lte_window, target_window
from lte_model.settings import TrainingSetSettings, Window
from lte_model.warehouse.tables import TRAINING_SET
from tests.jobs import events as made
from tests.jobs.events import events_frame
from tests.jobs.small_tables import DATE as FILLED_UNTIL

WINDOW = Window(lag_days=3, window_days=10)
TRAINING = TrainingSetSettings(anchors=3, anchor_every_days=3, test_days=4, max_length=4)
DATE = made.FIRST_DAY + datetime.timedelta(days=30)
DATES = TRAINING.dates(DATE)
KNOWN = {"e": DATES.test.start}


def built(spark, rows):
    """The training set's rows by (split, snapshot date, user)."""
    events = events_frame(spark, rows).where(f"known_date < DATE'{DATE}'")
    known = [(item, KNOWN.get(item, datetime.date(1970, 1, 1))) for item in made.ITEMS]
    items = spark.createDataFrame(known, "item_id STRING, item_known_date DATE")
    frame = training_set(events, items, DATES, WINDOW, TRAINING.max_length)
    return {(row.split, row.snapshot_date, row.user_id): row for row in frame.collect()}


def ties(spark, rows):
    """{event: its tie-breaker among events with the same time}."""
    frame = in_order(events_frame(spark, rows)).select("user_id", "item_id", F.unix_seconds("event_ts"), TIE)
    return {tuple(row[:3]): row[3] for row in frame.collect()}


def day_of(step):
    return datetime.datetime.fromtimestamp(step[0], datetime.UTC).date()


def expected(rows, tie):
    """(item ids, target count, target item, history count) by (split, snapshot date, user), in plain Python."""

    def place(event):
        seconds = int(event.event_ts.timestamp())
        return seconds, tie[event.user_id, event.item_id, seconds], event.item_id

    of_user = defaultdict(list)
    for event in rows:
        if event.known_date < DATE:
            of_user[event.user_id].append(event)
    splits = [("train", anchor, None) for anchor in DATES.anchors]
    splits += [("refit", DATES.test.start, None)]
    splits += [("validation", DATES.validation.start, DATES.validation), ("test", DATES.test.start, DATES.test)]
    found = {}
    for user, mine in of_user.items():
        for split, date, target_days in splits:
            history = lte_window(date, WINDOW.lag_days, WINDOW.window_days)
            days = target_window(date, WINDOW.lag_days)
            seen = [e for e in mine if history.start <= e.event_date < date and e.known_date < date]
            steps = sorted(
                place(e) for e in seen if e.item_id in made.ITEMS and KNOWN.get(e.item_id, datetime.date.min) < date
            )[-TRAINING.max_length :]
            after_lag = sum(day_of(step) in days for step in steps)
            targets = sorted(place(e) for e in mine if target_days and e.event_date in target_days)
            if (split in ("train", "refit") and after_lag) or (targets and seen):
                target = targets[0][2] if targets else None
                found[split, date, user] = ([item for _, _, item in steps], after_lag, target, len(seen))
    return found


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(made.events(days=32), min_size=10, max_size=80))
def test_rows_are_those_of_the_oracle_and_nothing_leaks(spark, rows):
    found = built(spark, rows)
    assert {
        key: (row.item_ids, row.target_count, row.target_item_id, row.history_count) for key, row in found.items()
    } == expected(rows, ties(spark, rows))
    for (split, date, _), row in found.items():
        lag_start = date - ONE_DAY * WINDOW.lag_days
        targets = row.event_times[len(row.event_times) - row.target_count :]
        assert row.oldest_target_date == min((time.date() for time in targets), default=None)
        assert row.oldest_target_date is None or lag_start <= row.oldest_target_date < date
        assert all(time.date() < lag_start for time in row.event_times[: len(row.event_times) - row.target_count])
        if split in ("validation", "test"):
            assert row.target_date >= date


def test_a_share_of_the_users_has_the_rows_that_it_has_among_all(filled):
    date = FILLED_UNTIL + 4 * ONE_DAY

    def rows(share):
        of_training = filled.settings.training_set.model_copy(update={"user_share": share})
        filled.settings = filled.settings.model_copy(update={"training_set": of_training})
        build_training_set(filled, date)
        return {(row.user_id, row.split, row.snapshot_date): row for row in filled.read(TRAINING_SET).collect()}

    everybody = rows(1.0)
    users = sorted({user for user, _, _ in everybody})
    bucket = dict(zip(users, buckets_of(pa.array(users)).tolist(), strict=True))
    chosen = {key: row for key, row in everybody.items() if bucket[key[0]] < 0.7 * BUCKETS}
    assert rows(0.7) == chosen and 0 < len(chosen) < len(everybody)

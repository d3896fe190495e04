"""LTEs with weighted events, against an oracle in plain integers and fractions."""

import math
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobs.engine.calendar import day_number
from jobs.publish_lte import publish_lte
from jobs.recipes.recipe import Recipe
from jobs.recipes.weighted import SCALE, recency_weights, rounded_quotient, run_weighted, weighted_rows
from jobs.snapshot_lte import snapshot_lte
from lte_model.domain.basis import GRID, MAX_EVENTS
from lte_model.domain.representations import REPRESENTATIONS
from lte_model.domain.windows import ONE_DAY, lte_window
from lte_model.errors import LTEError
from lte_model.warehouse.tables import LTE_LIVE, LTE_SNAPSHOTS, SNAPSHOT_ACCOUNTS
from tests.jobs import events as made
from tests.jobs.events import collected, events_frame, in_oracles_form, item_vectors
from tests.jobs.small_tables import DATE, FEED, LAG, VECTORS, WINDOW, ingest

WEIGHTED = ("recency", "inverse_popularity", "leaking")
HALF_LIFE = 4.0
LAGGED_END = DATE - LAG * ONE_DAY


def weighted_oracle(name, feed, vectors, dates, half_life=HALF_LIFE):
    """(vector sum, event count, newest event date) by (snapshot date, user), added up one event at a time."""
    index = {item: row for row, item in enumerate(vectors.index.item_ids.to_pylist())}
    known_day = vectors.index.known_day
    found = {}
    for date in dates:
        window = lte_window(date, 0 if name == "leaking" else LAG, WINDOW)
        seen = [
            event
            for event in feed
            if event.event_date in window
            and event.known_date < date
            and event.item_id in index
            and known_day[index[event.item_id]] < day_number(date)
        ]
        sold = Counter(event.item_id for event in seen)

        def weight(event, sold=sold, window=window):
            if name == "recency":
                return max(1, round(SCALE * 2 ** (-(window.end - event.event_date).days / half_life)))
            if name == "inverse_popularity":
                square = Fraction(SCALE**2 * min(sold.values()), sold[event.item_id])
                return max(1, (math.isqrt(math.floor(4 * square)) + 1) // 2)  # √ to the nearest integer
            return 1

        of_user = defaultdict(list)
        for event in seen:
            of_user[event.user_id].append((weight(event), event))
        for user, mine in of_user.items():
            total = sum(weight for weight, _ in mine)
            columns = zip(
                *([weight * int(unit) for unit in vectors.units[index[event.item_id]]] for weight, event in mine),
                strict=True,
            )
            found[date, user] = (
                tuple(round(Fraction(sum(column) * len(mine), total)) for column in columns),  # half to even
                len(mine),
                max(event.event_date for _, event in mine),
            )
    return found


def recipe_of(name):
    return Recipe(REPRESENTATIONS[name], "basis", REPRESENTATIONS[name].lag_days(LAG), WINDOW)


@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    feed=st.lists(made.events(), min_size=5, max_size=60),
    later=st.lists(made.events(), max_size=20),
    partitions=st.integers(1, 4),
)
def test_every_weight_is_the_oracles_and_none_is_of_what_came_later(spark, feed, later, partitions):
    vectors = item_vectors(known={"e": DATE})
    before = [event for event in feed if event.event_date < LAGGED_END]
    later = [event for event in later if event.event_date >= LAGGED_END]
    late = [replace(event, known_date=DATE + ONE_DAY) for event in before]
    events = events_frame(spark, [*before, *later, *late]).drop("event_ts").repartition(partitions)
    dates = [DATE - ONE_DAY, DATE]
    for name in WEIGHTED:
        rows = collected(run_weighted(spark, events, len(feed), vectors, dates, recipe_of(name), HALF_LIFE))
        assert rows == weighted_oracle(name, [*before, *later], vectors, dates), name
        if name != "leaking":
            assert rows == weighted_oracle(name, before, vectors, dates), name


def pairs_table(pairs):
    """A table of pairs for DATE, from tuples (user, item, weight per event, events)."""
    return pa.table(
        {
            "snapshot_date": pa.array([DATE] * len(pairs), pa.date32()),
            "user_id": pa.array([user for user, _, _, _ in pairs], pa.string()),
            "user_bucket": pa.array([7] * len(pairs), pa.int32()),
            "item": pa.array([item for _, item, _, _ in pairs], pa.int32()),
            "weight": pa.array([weight * count for _, _, weight, count in pairs], pa.int64()),
            "event_count": pa.array([count for _, _, _, count in pairs], pa.int64()),
            "newest_event_date": pa.array([DATE - ONE_DAY] * len(pairs), pa.date32()),
        }
    )


UNITS = np.array([[GRID, -GRID, 3], [GRID, GRID, -(2**13)], [-GRID, 1, 0]], dtype=np.int64)
MOST = MAX_EVENTS - 10


@given(
    counts=st.dictionaries(
        st.tuples(st.sampled_from("uvw"), st.integers(0, 2)),
        st.tuples(st.integers(1, SCALE), st.one_of(st.integers(1, 5), st.integers(MOST // 3 - 9, MOST // 3))),
        min_size=1,
    ),
    order=st.randoms(use_true_random=False),
)
@example(counts={("u", 0): (SCALE, MAX_EVENTS)}, order=None)
def test_sums_are_exact_up_to_the_most_events_in_any_order(counts, order):
    pairs = [(user, item, weight, count) for (user, item), (weight, count) in counts.items()]
    if order:
        order.shuffle(pairs)
    rows = in_oracles_form(row for batch in weighted_rows(pairs_table(pairs), UNITS) for row in batch.to_pylist())
    for user in {pair[0] for pair in pairs}:
        mine = [pair for pair in pairs if pair[0] == user]
        events = sum(count for _, _, _, count in mine)
        total = sum(weight * count for _, _, weight, count in mine)
        sums = [sum(weight * count * int(UNITS[item, k]) for _, item, weight, count in mine) for k in range(3)]
        expected = tuple(round(Fraction(each * events, total)) for each in sums)
        assert rows[DATE, user] == (expected, events, DATE - ONE_DAY)
    assert len(rows) == len({pair[0] for pair in pairs})


def test_a_user_with_too_many_events_is_refused_by_name():
    with pytest.raises(LTEError, match=f"user 'v' has 131,072 events in the window of {DATE}.*jobs.erase_users"):
        list(weighted_rows(pairs_table([("u", 0, 1, 5), ("v", 1, 1, MAX_EVENTS), ("v", 2, 1, 1)]), UNITS))


@given(numerator=st.integers(-(2**60), 2**60), denominator=st.integers(1, 2**29))
@example(numerator=5, denominator=2)
@example(numerator=-5, denominator=2)
@example(numerator=-7, denominator=2)
def test_a_quotient_is_rounded_half_to_even(numerator, denominator):
    found = rounded_quotient(np.array([numerator]), np.array([denominator]))
    assert found.tolist() == [round(Fraction(numerator, denominator))]


def test_recency_halves_with_the_half_life_and_never_forgets():
    weights = recency_weights(2000, 90.0)
    assert (weights[89], weights[179]) == (SCALE // 2, SCALE // 4)
    assert weights == sorted(weights, reverse=True) and weights[-1] == 1


def test_weighted_snapshots_are_made_again_alike_and_published(filled):
    dates = [DATE - ONE_DAY, DATE]
    asked = filled.settings.representations.model_copy(update={"half_life_days": HALF_LIFE})
    filled.settings = filled.settings.model_copy(update={"representations": asked})

    def snapshots(name):
        return collected(filled.read(LTE_SNAPSHOTS).where(f"representation = '{name}'"))

    snapshot_lte(filled, dates, representations=WEIGHTED)
    expected = {name: weighted_oracle(name, FEED, VECTORS, dates) for name in WEIGHTED}
    assert {name: snapshots(name) for name in WEIGHTED} == expected
    accounts = filled.read(SNAPSHOT_ACCOUNTS).collect()
    assert {(row.representation, row.lag_days) for row in accounts} == {
        ("recency", LAG), ("inverse_popularity", LAG), ("leaking", 0),
    }  # fmt: skip
    assert len(accounts) == 6 and {(row.made_from, row.encoder_id) for row in accounts} == {(None, None)}

    late = [replace(event, known_date=DATE + ONE_DAY) for event in FEED if event.event_date < LAGGED_END]
    ingest(filled, [*FEED, *late], DATE, DATE + 3 * ONE_DAY)
    snapshot_lte(filled, [DATE], representations=WEIGHTED[:2])
    assert {name: snapshots(name) for name in WEIGHTED} == expected

    for date in dates:
        publish_lte(filled, date, "recency")
        live = filled.read(LTE_LIVE).collect()
        assert {
            (date, row.user_id): (tuple(row.vector_sum), row.event_count, row.newest_event_date) for row in live
        } == {key: row for key, row in expected["recency"].items() if key[0] == date}
    with pytest.raises(LTEError, match="representation leaking is never published"):
        publish_lte(filled, DATE, "leaking")

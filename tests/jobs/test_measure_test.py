"""An online test's sums against an oracle that goes user by user, and the fates of rows outside the test."""

import datetime
from collections import Counter
from decimal import Decimal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.feeds.columns import CORRUPT, SOURCE_FILE
from jobs.feeds.online_test import (
    EXPOSURES,
    FATE,
    OUTCOMES,
    days_before,
    exposures_by_fate,
    outcomes_by_fate,
    rehearsed_exposures,
)
from jobs.measure_test import measure_test, measurements
from jobs.quality.check import check
from jobs.quality.suites.by_table import SUITES
from lte_model.domain.windows import ONE_DAY, Interval, every
from lte_model.errors import LTEError
from lte_model.online_test.content import content_of
from lte_model.online_test.measurements import read_measurements
from lte_model.online_test.statistics import REHEARSED, SUMS, UNIT, Moments, uplift
from lte_model.warehouse.tables import TEST_ACCOUNTS, TEST_MEASUREMENTS

PERIOD = Interval(datetime.date(2024, 2, 10), datetime.date(2024, 2, 14))
DATE = datetime.date(2024, 3, 1)
METRICS = ("engagement", "revenue")
EXPOSURE = ("test", "user_id", "variant", "exposure_ts")
OUTCOME = ("user_id", "outcome_ts", *METRICS)

hours = st.integers(-5 * 24, 5 * 24).map(
    lambda hour: (datetime.datetime(2024, 2, 10) + datetime.timedelta(hours=hour)).isoformat() + "Z"
)
users = st.sampled_from([*"abcdefghijklmnopqrst", " a ", None])
exposures = st.tuples(
    st.sampled_from(["t", "t", "t", "t", "other", None]),
    users,
    st.sampled_from(["control"] * 3 + ["lte", None]),
    st.one_of(hours, hours, hours, st.just("soon")),
)
cents = st.sampled_from([None, "0", "1", "0.01", "-3.5", "120.25", "1e3", "NaN", "much", "1e10"])
outcomes = st.tuples(users, st.one_of(hours, hours, hours, st.just("once")), cents, cents)


def feed(spark, rows, columns):
    columns = (*columns, CORRUPT, SOURCE_FILE)
    rows = [(*row, None, "file") for row in rows]
    table = {name: pa.array([row[place] for row in rows], pa.string()) for place, name in enumerate(columns)}
    return spark.createDataFrame(pa.table(table))


def moment(text):
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        return None


def day_of(at):
    return at.astimezone(datetime.UTC).date()


def whole_units(text):
    """A number in units of 1/10,000; None if it is invalid."""
    try:
        value = float(text or 0)
    except ValueError:
        return None
    return round(value * UNIT) if abs(value) < 1e10 else None


def oracle_of_exposures(rows):
    """({user: (variant, first exposure)}, {fate: rows})."""
    fates, of_user = Counter(), {}
    for test, user, variant, ts in rows:
        at, user = moment(ts), (user or "").strip() or None
        wrong = (
            (test is None and "test is missing")
            or (test != "t" and "of another test")
            or (user is None and "user_id is missing")
            or (variant is None and "variant is missing")
            or (at is None and "exposure_ts is not a time")
            or (day_of(at) >= PERIOD.end and "after the period")
        )
        if wrong:
            fates[wrong] += 1
        else:
            of_user.setdefault(user, []).append((at, variant))
    found = {}
    for user, seen in of_user.items():
        if day_of(min(seen)[0]) < PERIOD.start:
            fates["of a user exposed before the period"] += len(seen)
        elif len({variant for _, variant in seen}) > 1:
            fates["of a user of several variants"] += len(seen)
        else:
            found[user] = min(seen)[1], min(seen)[0]
            fates += Counter({"first exposure": 1, "later exposure": len(seen) - 1})
    return found, fates


def oracle(exposure_rows, outcome_rows):
    """({(variant, metric): cumulative sums by day}, fates of the exposures, fates of the outcomes)."""
    exposed, fates_of_exposures = oracle_of_exposures(exposure_rows)
    fates, mine = Counter(), []
    for (user, ts, *values), copies in Counter(outcome_rows).items():
        fates["exact duplicate"] += copies - 1
        at, user = moment(ts), (user or "").strip() or None
        units = [whole_units(value) for value in values]
        both = Interval(days_before(PERIOD).start, PERIOD.end)
        fate = (
            (user is None and "user_id is missing")
            or (at is None and "outcome_ts is not a time")
            or next(
                (
                    f"{name} is not a number below 1e+10"
                    for name, one in zip(METRICS, units, strict=True)
                    if one is None
                ),
                None,
            )
            or (day_of(at) not in both and "outside the period and the days before it")
            or (user not in exposed and "of a user who is not in the test")
            or (day_of(at) < PERIOD.start and "in the days before the test")
            or (at < exposed[user][1] and "before the first exposure")
            or "in the test"
        )
        fates[fate] += 1
        if fate.startswith("in the"):
            mine.append((user, day_of(at), units))
    sums = {}
    for place, metric in enumerate(METRICS):
        for day in every(1, PERIOD.start, PERIOD.end):
            for variant in {variant for variant, _ in exposed.values()}:
                of_variant = [user for user, one in exposed.items() if one[0] == variant and day_of(one[1]) <= day]
                x = [sum(u[place] for who, on, u in mine if who == user and on < PERIOD.start) for user in of_variant]
                y = [
                    sum(u[place] for who, on, u in mine if who == user and PERIOD.start <= on <= day)
                    for user in of_variant
                ]
                sums[variant, metric, day] = (
                    len(of_variant),
                    sum(y),
                    sum(one * one for one in y),
                    sum(x),
                    sum(one * one for one in x),
                    sum(a * b for a, b in zip(x, y, strict=True)),
                )
    return sums, +fates_of_exposures, +fates


def summed(frame):
    """The frame's sums, cumulated to each day of the period."""
    rows = frame.collect()
    return {
        (variant, metric, day): tuple(
            sum(int(row[name]) for row in rows if (row.variant, row.metric) == (variant, metric) and row.day <= day)
            for name in SUMS
        )
        for variant, metric in {(row.variant, row.metric) for row in rows}
        for day in every(1, PERIOD.start, PERIOD.end)
    }


def fates_of(frame):
    return Counter({row[FATE]: row["count"] for row in frame.groupBy(FATE).count().collect()})


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seen=st.lists(exposures, min_size=15, max_size=50),
    done=st.lists(outcomes, min_size=50, max_size=150),
    again=st.integers(0, 9),
)
def test_sums_and_fates_are_those_of_the_oracle(spark, seen, done, again):
    done = [*done, *done[:again]]
    in_test = exposures_by_fate(feed(spark, seen, EXPOSURE), "t", PERIOD).cache()
    of_users = outcomes_by_fate(feed(spark, done, OUTCOME), in_test, METRICS, PERIOD).cache()
    sums, fates_of_exposures, fates_of_outcomes = oracle(seen, done)
    assert fates_of(in_test) == fates_of_exposures
    assert fates_of(of_users) == fates_of_outcomes
    assert fates_of_outcomes.total() == len(done) and fates_of_exposures.total() == len(seen)
    assert summed(measurements(in_test, of_users, METRICS)) == sums
    in_test.unpersist()
    of_users.unpersist()


def write_feeds(warehouse, seed=0, effect=0.5):
    """Writes the feeds of a test with 240 users per variant; returns {variant: (y, x)} of engagement per user."""
    random = np.random.default_rng(seed)
    seen, done, truth = [], [], {}
    start = datetime.datetime.combine(PERIOD.start, datetime.time(), datetime.UTC)
    for variant, grows in (("control", 0.0), ("lte", effect)):
        before, after = [], []
        for number in range(240):
            user, zeal = f"{variant}{number}", random.gamma(3.0, 2.0)
            first = start + datetime.timedelta(hours=int(random.integers(60)))
            seen.append((user, variant, first))
            before.append(int(random.poisson(zeal)))
            after.append(int(random.poisson(zeal * (1 + grows))))
            done.append((user, start - datetime.timedelta(hours=5), float(before[-1]), 9.99))
            done.append((user, first + datetime.timedelta(minutes=int(random.integers(900))), float(after[-1]), -1.0))
        truth[variant] = np.array(after, dtype=float), np.array(before, dtype=float)
    for name, rows, columns in (
        ("exposures", seen, ("user_id", "variant", "exposure_ts")),
        ("outcomes", done, ("user_id", "outcome_ts", *METRICS)),
    ):
        write(warehouse, name, dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
    return truth


def write(warehouse, name, table):
    path = f"{warehouse.settings.home}/{name}.parquet"
    pq.write_table(pa.table(table), path)
    sources = warehouse.settings.sources.model_copy(update={name: path})
    warehouse.settings = warehouse.settings.model_copy(update={"sources": sources})


def write_past_rows(warehouse, test):
    """Writes rows that an earlier run of the job may have left."""
    key = {"test_name": test, "measured_for": DATE}
    sums = {name: 7 if name == "users" else Decimal(7) for name in SUMS}
    period = {"test_start": PERIOD.start - ONE_DAY, "test_end": PERIOD.end, "day": PERIOD.start}
    for table, row in (
        (TEST_MEASUREMENTS, key | period | {"variant": "past", "metric": "engagement"} | sums),
        (TEST_ACCOUNTS, key | {"feed": EXPOSURES, "fate": "past", "rows": 7, "users": 7}),
    ):
        warehouse.create(table)
        pl.DataFrame([row]).write_delta(warehouse.path(table), mode="append")


def test_what_is_measured_is_read_out_as_the_users_were(warehouse):
    truth = write_feeds(warehouse)
    for test in ("t", "other"):
        write_past_rows(warehouse, test)
    measured = measure_test(warehouse, DATE, "t", PERIOD)
    assert measured.users == {"control": 240, "lte": 240}
    assert measured.accounts[EXPOSURES, "first exposure"] == (480, 480)
    assert measured.accounts[OUTCOMES, "in the test"] == (480, 480)
    check(warehouse.settings, "test_measurements", SUITES["test_measurements"](warehouse.settings, DATE, "t"), DATE)
    content = content_of(read_measurements(warehouse.settings, DATE, "t"), warehouse.settings, "control", None, None)
    engagement, revenue = content["comparisons"]
    sides = [Moments.of_users(*truth[variant]) for variant in ("lte", "control")]
    for name, cuped in (("plain", False), ("cuped", True)):
        expected = uplift(*sides, cuped)
        assert engagement[name].value == pytest.approx(float(expected.value))
        assert engagement[name].high == pytest.approx(float(expected.high))
    assert engagement["cuped"].low < 0.5 < engagement["cuped"].high and engagement["outcome"] == "better"
    assert revenue["plain"].value is None and revenue["outcome"] == "undecided", "revenue of returns alone"

    # The test's earlier rows were replaced; another test's rows are still there.
    for table, past in ((TEST_MEASUREMENTS, "variant"), (TEST_ACCOUNTS, "fate")):
        rows = pl.read_delta(warehouse.path(table))
        assert rows.filter(pl.col(past) == "past")["test_name"].to_list() == ["other"]
        assert "control17" not in rows.write_csv()


def test_a_rehearsal_divides_who_did_something_in_two(spark):
    done = [
        (f"u{n}", f"2024-02-{day:02}T0{hour}:00:00Z", "1", "0")
        for n in range(400)
        for day, hour in ((9, 1), (11, 5), (11, 2))
    ]
    done += [("late", "2024-02-14T00:00:00Z", "1", "0"), (None, "2024-02-11T00:00:00Z", "1", "0")]
    rows = rehearsed_exposures(feed(spark, done, OUTCOME), "t", PERIOD).collect()
    assert {row.user_id for row in rows} == {f"u{n}" for n in range(400)} and len(rows) == 400
    first = moment("2024-02-11T02:00:00Z").timestamp()
    assert {(row.exposed_ts.timestamp(), row[FATE]) for row in rows} == {(first, "first exposure")}
    sizes = Counter(row.variant for row in rows)
    assert set(sizes) == {"control", REHEARSED} and abs(sizes["control"] - 200) < 40


def test_feeds_that_make_no_test_are_named(warehouse):
    noon = datetime.datetime(2024, 2, 10, 12, tzinfo=datetime.UTC)
    write(warehouse, "outcomes", {"user_id": ["u"], "outcome_ts": [noon], "engagement": [1.0]})
    with pytest.raises(LTEError, match=r"outcomes.parquet has no column 'revenue'; it has user_id, outcome_ts, eng"):
        measure_test(warehouse, DATE, "t", PERIOD)
    write(warehouse, "outcomes", {"user_id": ["x"], "outcome_ts": [noon], "engagement": [1.0], "revenue": [0.0]})
    seen = {"user_id": ["u", "v"], "variant": ["a", "b"], "exposure_ts": [noon, None]}
    write(warehouse, "exposures", seen)
    said = r"users of 1 variants in \[2024-02-10, 2024-02-14\): a; .*1 exposure_ts is not a time, 1 first exposure"
    with pytest.raises(LTEError, match=said):
        measure_test(warehouse, DATE, "t", PERIOD)
    write(warehouse, "exposures", seen | {"exposure_ts": [noon, noon]})
    with pytest.raises(LTEError, match=r"no outcome of source .* of a user of test t .* 1 of a user who is not in the"):
        measure_test(warehouse, DATE, "t", PERIOD)
    write(warehouse, "exposures", seen | {"test": ["other", "other"]})
    with pytest.raises(LTEError, match=r"test t has users of 0 variants .*: 2 of another test"):
        measure_test(warehouse, DATE, "t", PERIOD)
    with pytest.raises(LTEError, match=r"users of 1 variants .* Rows of source .*outcomes.parquet: 1 first exposure"):
        measure_test(warehouse, DATE, "t", PERIOD, rehearse=True)
    for period, said in (
        (Interval(PERIOD.end, PERIOD.start), "has no day; give --from before --to"),
        (Interval(PERIOD.start, DATE + ONE_DAY), f"isn't over on --date {DATE}; give --to {DATE} at most"),
    ):
        with pytest.raises(LTEError, match=said):
            measure_test(warehouse, DATE, "t", period)
    assert not warehouse.exists(TEST_MEASUREMENTS) and not warehouse.exists(TEST_ACCOUNTS)

"""The statistics of an online test on thousands of simulated tests with a known truth; every seed is fixed.

A rate over the tests is farther than four standard errors from its true value once in 16,000 times.
"""

import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lte_model.errors import LTEError
from lte_model.online_test import statistics
from lte_model.online_test.statistics import ALPHA, SUMS, UNIT, Growth, Moments, Uplift, uplift

pytestmark = pytest.mark.slow

TESTS, USERS = 4000, 400
PAPER = 0.0116


@functools.cache
def simulated(seed, planted=0.0, tests=TESTS, users=(USERS, USERS)):
    """Simulates treatment and control (in this order) of `tests` tests: event counts before and during the test.

    Users differ in their activity, so that counts are skewed, as engagement is.
    """
    random = np.random.default_rng(seed)
    sides = []
    for number, effect in zip(users, (planted, 0.0), strict=True):
        zeal = random.gamma(2.0, 2.0, (tests, number))
        before, after = random.poisson(zeal), random.poisson(zeal * (1 + effect))
        sides.append(Moments.of_users(after.astype(float), before.astype(float)))
    return sides


def near(rate, expected, tests=TESTS):
    """Whether the rate is within four standard errors of `expected`, over `tests` tests."""
    return abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / tests)


@pytest.mark.parametrize("users", [(USERS, USERS), (600, 200)], ids=["equal", "three to one"])
@pytest.mark.parametrize("cuped", [False, True], ids=["plain", "cuped"])
def test_a_test_of_nothing_finds_something_in_one_of_twenty(cuped, users):
    found = uplift(*simulated(1, users=users), cuped)
    assert near(np.mean(found.p < ALPHA), ALPHA)
    assert near(np.mean((found.p < ALPHA) & (found.value > 0)), ALPHA / 2, TESTS / 2)
    assert ((found.p < ALPHA) == ((found.low > 0) | (found.high < 0))).all()


@pytest.mark.parametrize("planted", [PAPER, 0.3, -0.1])
@pytest.mark.parametrize("cuped", [False, True], ids=["plain", "cuped"])
def test_a_planted_uplift_is_recovered_and_covered(cuped, planted):
    found = uplift(*simulated(2, planted), cuped)
    assert near(np.mean((found.low < planted) & (planted < found.high)), 1 - ALPHA)
    # A ratio's bias is about the control's relative variance, here a hundredth of the standard error.
    assert abs(np.mean(found.value) - planted) < 4 * np.std(found.value) / math.sqrt(TESTS) + 0.0015
    assert np.mean(found.standard_error) == pytest.approx(np.std(found.value), rel=0.05)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_cuped_narrows_the_interval_by_the_root_of_what_is_left(correlation):
    random = np.random.default_rng(3)
    sides = []
    for _ in range(2):
        before, noise = random.normal(size=(2, 200_000))
        after = 10 + correlation * before + math.sqrt(1 - correlation**2) * noise
        sides.append(Moments.of_users(after, before))
    plain, adjusted = (uplift(*sides, cuped).standard_error for cuped in (False, True))
    assert adjusted / plain == pytest.approx(math.sqrt(1 - correlation**2), rel=0.01)
    assert statistics.variance_reduction(*sides) == pytest.approx(correlation**2, abs=0.01)


def test_cuped_takes_out_what_the_variants_differed_in_before():
    """Treatment users were twice as active before the test and still are, so there is no effect."""
    random = np.random.default_rng(4)
    before = random.gamma(2.0, size=(2, 5000)) * np.array([[2.0], [1.0]])
    sides = [Moments.of_users(one * 3, one) for one in before]
    assert uplift(*sides, cuped=False).value == pytest.approx(1, abs=0.1)
    assert uplift(*sides, cuped=True).value == pytest.approx(0, abs=1e-9)


def test_without_a_past_cuped_changes_nothing():
    random = np.random.default_rng(5)
    sides = [Moments.of_users(random.gamma(2.0, size=500), np.zeros(500)) for _ in range(2)]
    plain, adjusted = uplift(*sides, cuped=False), uplift(*sides, cuped=True)
    assert (plain.value, plain.standard_error) == (adjusted.value, adjusted.standard_error)
    assert statistics.variance_reduction(*sides) == 0


@pytest.mark.parametrize(
    "values", [np.zeros(100), np.tile([5.0, -5.0], 50), -np.ones(100)], ids=["nothing", "around 0", "below 0"]
)
def test_nothing_is_relative_to_a_control_about_0(values):
    control = Moments.of_users(values, np.zeros(100))
    treatment = Moments.of_users(values + np.arange(100), np.zeros(100))
    found = uplift(treatment, control, cuped=True)
    assert np.isnan([found.value, found.low, found.high, found.p]).all()
    assert math.isnan(statistics.detectable(treatment, control, 0.8, cuped=True))


def test_returns_make_a_negative_sum_and_are_no_error():
    random = np.random.default_rng(6)
    bought = random.gamma(2.0, 10, size=(2, 2000))
    returned = bought * (random.random((2, 2000)) < 0.2) * 1.5
    treatment, control = (Moments.of_users(one, np.zeros(2000)) for one in bought - returned)
    found = uplift(treatment, control, cuped=False)
    assert found.value == pytest.approx(treatment.mean / control.mean - 1)
    assert found.low < 0 < found.high


def test_users_that_got_lost_are_found_and_chance_is_not():
    random = np.random.default_rng(7)
    found = [statistics.sample_ratio_p([n, 20_000 - n], [1, 1]) for n in random.binomial(20_000, 0.5, TESTS)]
    assert near(np.mean(np.array(found) < ALPHA), ALPHA)
    assert statistics.sample_ratio_p([10_000, 9_500], [0.5, 0.5]) < 0.001
    assert statistics.sample_ratio_p([9_000, 1_000], [0.9, 0.1]) == pytest.approx(1)
    assert statistics.sample_ratio_p([9_000, 1_000], [0.5, 0.5]) < 1e-100
    assert statistics.sample_ratio_p([3_300, 3_350, 3_000], [1, 1, 1]) < 0.001


def test_holm_is_that_of_the_book():
    """Holm: smallest p times 4, next times 3, …, never below the one before; NaN doesn't count as a test."""
    adjusted = statistics.holm([0.04, 0.01, math.nan, 0.03, 0.005])
    assert adjusted[:2] + adjusted[3:] == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert math.isnan(adjusted[2])
    assert np.isnan(statistics.holm([math.nan])).all()


@pytest.mark.parametrize("cuped", [False, True], ids=["plain", "cuped"])
def test_what_is_detectable_is_found_as_often_as_promised(cuped):
    """The tests are too large to simulate users, so it draws their means, which are normal."""
    random = np.random.default_rng(8)
    spread = np.array([[12.0, 8.0], [8.0, 12.0]])  # of y and x

    def side(users, planted=0.0):
        mean, before = random.multivariate_normal((4 + 4 * planted, 4), spread / users, TESTS).T
        return Moments(users, mean, spread[0, 0], before, spread[1, 1], spread[0, 1])

    meant = [Moments(users, 4.0, *(12.0, 4.0, 12.0, 8.0)) for users in (100_000, 50_000)]
    planted = statistics.detectable(*meant, power=0.8, cuped=cuped)
    found = uplift(side(100_000, planted), side(50_000), cuped)
    # A ratio above 1 has a slightly wider interval than a ratio of 1, which the plan assumes.
    assert np.mean(found.p < ALPHA) == pytest.approx(0.8, abs=0.035)


def test_days_are_those_of_the_trend():
    """New users come at a steady rate, so the detectable uplift falls with the square root of the days."""
    by_day = [math.nan, *(0.08 / math.sqrt(day) for day in range(2, 15))]
    assert statistics.days_needed(by_day, 0.01) == 64
    assert statistics.days_needed(by_day, 0.03) == 8
    assert statistics.detectable_after(by_day, 56) == pytest.approx(0.08 / math.sqrt(56))
    assert statistics.detectable_after(by_day, 4) == 0.04
    assert statistics.days_needed(by_day, 1e-6) is None


def test_days_where_there_is_little_to_go_by():
    assert statistics.days_needed([0.02], 0.01) == 4
    assert statistics.days_needed([0.02], 0.02) == 1
    assert statistics.days_needed([math.nan], 0.02) is None
    assert math.isnan(statistics.detectable_after([math.nan], 5))
    assert statistics.days_needed([0.02] * 20, 0.01) is None, "all users came on the first day, and nothing changes"
    assert Growth.of_days([0.02] * 20).after(1000) == 0.02
    assert statistics.days_needed([0.03, 0.009, 0.02, 0.01, 0.01], 0.01) == 4, "a lucky day is not yet enough"


whole = st.integers(-(10**7), 10**7)


@given(st.lists(st.tuples(whole, st.integers(0, 10**7)), min_size=2, max_size=50))
def test_sums_say_what_the_users_say(users):
    y, x = (np.array(side, dtype=np.float64) / UNIT for side in zip(*users, strict=True))
    sums = [len(users)] + [
        sum(f(y, x) for y, x in users)
        for f in (lambda y, x: y, lambda y, x: y * y, lambda y, x: x, lambda y, x: x * x, lambda y, x: x * y)
    ]
    for ours, theirs in zip(vars(Moments.of_sums(sums)).values(), vars(Moments.of_users(y, x)).values(), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-6)


def rows_of(users, mean, days=4):
    """The sums of a variant in which every second user has twice the mean and the others 0, the same each day."""
    value = 2 * mean * UNIT
    return np.array([[users, users // 2 * value, users // 2 * value**2, 0, 0, 0]] * days, dtype=object)


def test_a_test_is_read_against_its_control():
    sums = {
        (variant, metric): rows_of(100, mean)
        for variant, mean in (("b", 4), ("control", 4), ("a", 5))
        for metric in ("engagement", "revenue")
    }
    read = statistics.read_test(sums, "control", {"a": 2, "b": 1, "control": 1}, power=0.8)
    assert read.users == {"b": 400, "control": 400, "a": 400}
    assert read.shares == {"a": 0.5, "b": 0.25, "control": 0.25}
    assert read.sample_ratio_p < 1e-20
    assert [(one.variant, one.metric, round(float(one.cuped.value), 6)) for one in read.comparisons] == [
        ("b", "engagement", 0), ("b", "revenue", 0), ("a", "engagement", 0.25), ("a", "revenue", 0.25),
    ]  # fmt: skip
    first = read.comparisons[2]
    assert first.cuped_holm == pytest.approx(4 * first.cuped.p) and first.plain_holm == first.cuped_holm
    assert len(first.by_day) == len(first.detectable_by_day) == 4
    assert first.by_day[-1] == Uplift(first.cuped.value, first.cuped.standard_error)
    assert first.by_day[0].standard_error == pytest.approx(2 * first.cuped.standard_error, rel=0.01)


@pytest.mark.parametrize(
    ("control", "shares", "sizes", "said"),
    [
        ("c", None, {"a": 9, "b": 9}, "control 'c' is no variant of the test; --control is one of a, b"),
        ("a", None, {"a": 9}, "the test has a single variant, a"),
        ("a", {"a": 1, "c": 1}, {"a": 9, "b": 9}, "shares are given of a, c, and the test's variants are a, b"),
        ("a", None, {"a": 9, "b": 1}, "variant 'b' has 1 user; a variance needs two"),
    ],
)
def test_what_cannot_be_compared_is_said(control, shares, sizes, said):
    sums = {(variant, "revenue"): rows_of(users, 1, days=1) for variant, users in sizes.items()}
    with pytest.raises(LTEError, match=said):
        statistics.read_test(sums, control, shares, power=0.8)


def test_a_name_that_can_be_no_folder_is_refused():
    assert statistics.parse_test_name("LTE-2.prefix_1") == "LTE-2.prefix_1"
    for name in ("", "..", "a/b", "a b", "x" * 101, "tëst", "a'"):
        with pytest.raises(LTEError, match="is no name of a test"):
            statistics.parse_test_name(name)


def test_sums_are_named_in_the_order_of_their_columns():
    assert SUMS == ("users", "sum_y", "sum_yy", "sum_x", "sum_xx", "sum_xy")

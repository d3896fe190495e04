"""The statistics of an online test: users are divided at random between a control and one or more treatments.

1. **Is it readable?** `sample_ratio_p`: a chi-square test compares the users of each variant with the meant shares.
   Where it fails, one side lost users, which may bias every other figure (Fabijan et al., KDD 2019).
2. **What did it change?** `uplift`: the relative difference of the means per user, treatment over control − 1, with a
   95 % interval by the delta method (Deng, Knoblich and Lu, KDD 2018): users are independent, and the ratio of two
   means is close to normal.
3. **More precisely:** CUPED (Deng, Xu, Kohavi and Walker, WSDM 2013) corrects a user's metric in the test, y, by the
   metric before the test, x: y − θ(x − x̄), θ = cov(x, y) / var(x). The mean stays the same, as x doesn't depend on the
   variant; the variance shrinks by the factor 1 − ρ², the interval by its root.
4. **Several metrics:** Holm's correction, over every metric of every treatment.
5. **How long must it run?** `detectable`: the smallest relative uplift that the test finds with a given power;
   `days_needed` and `detectable_after` follow it over the days, and extrapolate.

Nothing here reads a table. The input is the sums n, Σy, Σy², Σx, Σx², Σxy per variant and metric, so that no user's
row has to be kept. `Moments` and `uplift` also take arrays, one test per element, for checks on thousands of
simulated tests.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import zt_ind_solve_power

from lte_model.errors import LTEError

UNIT = 10_000
"""Sums are integers, in 1/10,000 of a metric's unit: they don't depend on the order, and don't round."""

ALPHA = 0.05
CONTROL = "control"
REHEARSED = "control again"
"""The other variant of a rehearsal: a test on past days, in which nobody saw anything new."""

SUMS = ("users", "sum_y", "sum_yy", "sum_x", "sum_xx", "sum_xy")
"""The sums over users: their number, y in the test, x before it. The row of a day has what that day added."""

_STEADY = 4
"""A denominator must be this many standard errors above 0; below, the delta method's ratio isn't near normal."""
_LONGEST = 3650
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Floats = float | np.ndarray


def parse_test_name(text: str) -> str:
    """Checks the name of a test, which also names a folder. Raises `LTEError` for an invalid name."""
    if not _NAME.fullmatch(text):
        raise LTEError(
            f"{text!r} is no name of a test; take letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return text


@dataclass(frozen=True)
class Moments:
    """One metric of one variant: the mean and variance of y and x per user, and their covariance.

    Each field may be an array, one test per element.
    """

    users: Floats
    mean: Floats
    variance: Floats
    mean_before: Floats
    variance_before: Floats
    covariance: Floats

    @classmethod
    def of_sums(cls, sums: Sequence[int]) -> Self:
        """From a variant's `SUMS`, integers of `UNIT`, over two users or more; exact but for the final divisions."""
        users, y, yy, x, xx, xy = (int(one) for one in sums)
        pairs = users * (users - 1) * UNIT**2
        return cls(
            users,
            y / (users * UNIT),
            (users * yy - y * y) / pairs,
            x / (users * UNIT),
            (users * xx - x * x) / pairs,
            (users * xy - x * y) / pairs,
        )

    @classmethod
    def of_users(cls, y: np.ndarray, x: np.ndarray) -> Self:
        """From a value per user: `y` and `x` (…, users)."""
        users = y.shape[-1]
        mean, mean_before = y.mean(-1), x.mean(-1)
        covariance = ((y - mean[..., None]) * (x - mean_before[..., None])).sum(-1) / (users - 1)
        return cls(users, mean, y.var(-1, ddof=1), mean_before, x.var(-1, ddof=1), covariance)


@dataclass(frozen=True)
class Uplift:
    """A relative difference and its standard error; NaN where the control's mean is 0 or too near to it."""

    value: Floats
    standard_error: Floats

    @property
    def low(self) -> Floats:
        """The lower end of the interval of confidence 1 − `ALPHA`."""
        return self.value - stats.norm.isf(ALPHA / 2) * self.standard_error

    @property
    def high(self) -> Floats:
        """The upper end of the interval of confidence 1 − `ALPHA`."""
        return self.value + stats.norm.isf(ALPHA / 2) * self.standard_error

    @cached_property
    def p(self) -> Floats:
        """The two-sided p-value, which is below `ALPHA` exactly where the interval doesn't contain 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return 2 * stats.norm.sf(np.abs(np.divide(self.value, self.standard_error)))


def cuped_slope(treatment: Moments, control: Moments) -> Floats:
    """θ, pooled within the variants, which excludes the difference between them; 0 where x doesn't vary."""
    covariance = treatment.users * treatment.covariance + control.users * control.covariance
    variance = np.asarray(treatment.users * treatment.variance_before + control.users * control.variance_before)
    return np.divide(covariance, variance, out=np.zeros(variance.shape), where=variance > 0)


def uplift(treatment: Moments, control: Moments, cuped: bool) -> Uplift:
    """The ratio of the means, `treatment` over `control`, − 1, with CUPED or without.

    CUPED splits θ(x̄_t − x̄_c) between the means: m_t = ȳ_t − θ·s_c·(x̄_t − x̄_c) and m_c = ȳ_c + θ·s_t·(x̄_t − x̄_c),
    where s are the shares of the users. The variance is that of the ratio m_t / m_c, linearised in the four means.
    """
    slope = cuped_slope(treatment, control) if cuped else 0.0
    users = treatment.users + control.users
    share_t, share_c = treatment.users / users, control.users / users
    moved = slope * (treatment.mean_before - control.mean_before)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_t = treatment.mean - share_c * moved
        mean_c = control.mean + share_t * moved
        steady = mean_c > _STEADY * np.sqrt(control.variance / control.users)
        mean_c = np.where(steady, mean_c, np.nan)
        # Derivatives of the ratio by ȳ_t, by ȳ_c (without its sign) and by x̄_c (by x̄_t it has the opposite sign).
        by_t, by_c = 1 / mean_c, mean_t / mean_c**2
        by_x = slope * (by_t * share_c + by_c * share_t)
        variance = _variance(treatment, by_t, by_x) + _variance(control, by_c, by_x)
        return Uplift(mean_t / mean_c - 1, np.sqrt(np.maximum(variance, 0)))


def _variance(of: Moments, by_mean: Floats, by_before: Floats) -> Floats:
    """The variance of by_mean·ȳ − by_before·x̄ of one variant."""
    return (
        by_mean**2 * of.variance - 2 * by_mean * by_before * of.covariance + by_before**2 * of.variance_before
    ) / of.users


def sample_ratio_p(users: Sequence[int], shares: Sequence[float]) -> float:
    """The p-value of the users per variant under the meant `shares`, which need not sum to 1."""
    expected = np.asarray(shares, dtype=np.float64) * sum(users) / sum(shares)
    return float(stats.chisquare(users, expected).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values; NaN isn't part of the family, and stays NaN."""
    adjusted = np.array(p_values, dtype=np.float64)
    defined = np.isfinite(adjusted)
    if defined.any():
        adjusted[defined] = multipletests(adjusted[defined], alpha=ALPHA, method="holm")[1]
    return adjusted.tolist()


def detectable(treatment: Moments, control: Moments, power: float, cuped: bool) -> float:
    """The smallest relative uplift that a test of these users finds with probability `power`, two-sided at `ALPHA`."""
    error = uplift_free_error(treatment, control, cuped)
    if not math.isfinite(error) or error == 0:
        return math.nan
    ratio = treatment.users / control.users
    effect = zt_ind_solve_power(nobs1=control.users, ratio=ratio, alpha=ALPHA, power=power)
    # The effect is in standard deviations of a user: one deviation for both variants that gives the same error.
    return float(abs(effect) * error / math.sqrt(1 / treatment.users + 1 / control.users))


def uplift_free_error(treatment: Moments, control: Moments, cuped: bool) -> float:
    """The standard error of an uplift if it is truly 0: the difference's standard error over the control's mean."""
    slope = cuped_slope(treatment, control) if cuped else 0.0
    if not control.mean > _STEADY * math.sqrt(control.variance / control.users):
        return math.nan
    variance = _variance(treatment, 1, slope) + _variance(control, 1, slope)
    return math.sqrt(max(float(variance), 0.0)) / float(control.mean)


def variance_reduction(treatment: Moments, control: Moments) -> float:
    """The share of the difference's variance that CUPED removes, about ρ²; NaN where nothing varies."""
    plain, adjusted = (uplift_free_error(treatment, control, cuped) ** 2 for cuped in (False, True))
    return 1 - adjusted / plain if plain else math.nan


@dataclass(frozen=True)
class Growth:
    """The detectable uplift as a power law of the number of days: `last` after `days`, falling with `exponent`."""

    days: int
    last: float
    exponent: float

    @classmethod
    def of_days(cls, by_day: Sequence[float]) -> Self | None:
        """Fits the later half of the days by least squares of the logarithms; None where nothing is defined.

        More days bring new users and more events of the same users; the figures of the measured days reflect both. With
        fewer than three days, new users are assumed to keep coming, which gives the square root of the number of days.
        """
        known = [(day, one) for day, one in enumerate(by_day, start=1) if math.isfinite(one) and one > 0]
        if not known:
            return None
        later = known[len(known) // 2 :]
        exponent = 0.5
        if len(later) >= 3:
            log_days, log_found = np.log(np.array(later)).T
            exponent = round(-float(np.polyfit(log_days, log_found, 1)[0]), 9)
        return cls(*known[-1], exponent=min(max(exponent, 0.0), 1.0))

    def after(self, days: int) -> float:
        """The uplift that is detectable after `days`."""
        return self.last * (self.days / days) ** self.exponent

    def until(self, uplift: float) -> int | None:
        """The days after which `uplift` is detectable; None beyond ten years."""
        if self.exponent == 0:
            return None
        log_days = math.log(self.days) + math.log(self.last / uplift) / self.exponent
        # Rounding errors must not add a day to a whole number of days.
        return math.ceil(math.exp(log_days) - 1e-6) if log_days <= math.log(_LONGEST) else None


def days_needed(by_day: Sequence[float], uplift: float) -> int | None:
    """The days that a test must run to find `uplift`; `by_day` are the detectable uplifts after 1, 2, … days.

    Within the measured days it is the first day from which the uplift stays detectable; beyond them, the trend is
    extrapolated. None where it would take more than ten years, or nothing is known.
    """
    enough = [one <= uplift for one in by_day]
    if enough and enough[-1]:
        return len(enough) - enough[::-1].index(False) + 1 if False in enough else 1
    growth = Growth.of_days(by_day)
    return growth.until(uplift) if growth else None


def detectable_after(by_day: Sequence[float], days: int) -> float:
    """The uplift that is detectable after `days`, measured or by the trend of the days; NaN where nothing is known."""
    if days <= len(by_day):
        return by_day[days - 1]
    growth = Growth.of_days(by_day)
    return growth.after(days) if growth else math.nan


@dataclass(frozen=True)
class TreatmentEffect:
    """One metric of one treatment against the control. Holm's p-values are corrected over the whole test."""

    variant: str
    metric: str
    treatment: Moments
    control: Moments
    plain: Uplift
    cuped: Uplift
    plain_holm: float
    cuped_holm: float
    variance_reduction: float
    by_day: tuple[Uplift | None, ...]
    """The uplift with CUPED if the test had ended on that day; None while there are too few users."""
    detectable_by_day: tuple[float, ...]


@dataclass(frozen=True)
class ReadOut:
    """A whole test: its users per variant, whether it is readable, and every comparison with the control."""

    control: str
    users: dict[str, int]
    shares: dict[str, float]
    sample_ratio_p: float
    comparisons: tuple[TreatmentEffect, ...]


def read_test(
    sums: Mapping[tuple[str, str], np.ndarray], control: str, shares: Mapping[str, float] | None, power: float
) -> ReadOut:
    """The read-out of `sums`, {(variant, metric): (days, 6)}: the `SUMS` that each day added, integers of `UNIT`.

    `shares` are the meant shares of the variants, equal where None. Raises `LTEError` for an unknown control or share,
    for a single variant, and for a variant of fewer than two users.
    """
    variants = list(dict.fromkeys(variant for variant, _ in sums))
    metrics = list(dict.fromkeys(metric for _, metric in sums))
    if control not in variants:
        raise LTEError(f"control {control!r} is no variant of the test; --control is one of {', '.join(variants)}")
    if len(variants) < 2:
        raise LTEError(f"the test has a single variant, {control}; nothing can be compared with it")
    shares = dict(shares or dict.fromkeys(variants, 1.0))
    if set(shares) != set(variants):
        raise LTEError(f"shares are given of {', '.join(shares)}, and the test's variants are {', '.join(variants)}")
    totals = {key: np.cumsum(rows, axis=0) for key, rows in sums.items()}  # (days, 6), up to each day
    users = {variant: int(totals[variant, metrics[0]][-1][0]) for variant in variants}
    few = [variant for variant, number in users.items() if number < 2]
    if few:
        raise LTEError(f"variant {few[0]!r} has {users[few[0]]} user; a variance needs two")
    compared = [
        _compared(totals, variant, metric, control, power)
        for variant in variants
        if variant != control
        for metric in metrics
    ]
    plain, cuped = (holm([float(pair[side].p) for pair in compared]) for side in ("plain", "cuped"))
    return ReadOut(
        control,
        users,
        {variant: shares[variant] / sum(shares.values()) for variant in variants},
        sample_ratio_p(list(users.values()), [shares[variant] for variant in variants]),
        tuple(
            TreatmentEffect(**pair, plain_holm=of_plain, cuped_holm=of_cuped)
            for pair, of_plain, of_cuped in zip(compared, plain, cuped, strict=True)
        ),
    )


def _compared(
    totals: Mapping[tuple[str, str], np.ndarray], variant: str, metric: str, control: str, power: float
) -> dict[str, Any]:
    """The fields of a `TreatmentEffect` that don't depend on other effects."""
    days = [
        (Moments.of_sums(ours), Moments.of_sums(theirs)) if min(ours[0], theirs[0]) >= 2 else None
        for ours, theirs in zip(totals[variant, metric], totals[control, metric], strict=True)
    ]
    treated, untreated = (Moments.of_sums(totals[side, metric][-1]) for side in (variant, control))
    return {
        "variant": variant,
        "metric": metric,
        "treatment": treated,
        "control": untreated,
        "plain": uplift(treated, untreated, cuped=False),
        "cuped": uplift(treated, untreated, cuped=True),
        "variance_reduction": variance_reduction(treated, untreated),
        "by_day": tuple(uplift(*day, cuped=True) if day else None for day in days),
        "detectable_by_day": tuple(detectable(*day, power, cuped=True) if day else math.nan for day in days),
    }

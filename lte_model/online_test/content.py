"""The content of a read-out as plain values and figures, and its lines for a terminal. All functions are pure."""

import math
from dataclasses import dataclass
from typing import Any

from lte_model.figures import Figure, Outcome, percent
from lte_model.online_test import statistics
from lte_model.online_test.measurements import Measurements
from lte_model.online_test.statistics import ALPHA, REHEARSED, Floats, Moments, TreatmentEffect, Uplift
from lte_model.settings import Settings

NOT_READABLE = "not readable"

Content = dict[str, Any]
"""The content of a read-out's JSON file, with figures; the page and the table are rendered from it alone."""


@dataclass(frozen=True)
class TestedFigure(Figure):
    """A relative difference with its p-value, before and after Holm's correction; None where undefined."""

    p: float | None
    p_holm: float | None


@dataclass(frozen=True)
class DayFigure(Figure):
    """A relative difference as of one day of a test, and the smallest one that the test could find by then."""

    detectable: float | None


def content_of(
    measured: Measurements, settings: Settings, control: str, shares: dict[str, float] | None, planned_days: int | None
) -> Content:
    """The read-out as plain values; a pure function. Raises `LTEError` as `statistics.read_test` does."""
    rules = settings.online_test
    read = statistics.read_test(measured.sums, control, shares, rules.power)
    readable = read.sample_ratio_p >= rules.sample_ratio_p
    planned = planned_days or measured.period.days
    comparisons = [_comparison(one, readable, rules.uplift, planned) for one in read.comparisons]
    content: Content = {
        "test": measured.test,
        "date": str(measured.date),
        "start": str(measured.period.start),
        "end": str(measured.period.end),
        "days": measured.period.days,
        "rehearsal": REHEARSED in read.users,
        "control": control,
        "metrics": list(dict.fromkeys(one.metric for one in read.comparisons)),
        "uplift": rules.uplift,
        "power": rules.power,
        "planned_days": planned,
        "variants": [
            {"name": name, "users": users, "share": users / sum(read.users.values()), "meant": read.shares[name]}
            for name, users in read.users.items()
        ],
        "sample_ratio": {"p": read.sample_ratio_p, "threshold": rules.sample_ratio_p, "readable": readable},
        "comparisons": comparisons,
        "accounts": list(measured.accounts),
    }
    decisive = [one for one in comparisons if one["metric"] == content["metrics"][0]]
    return content | {"verdicts": [{"outcome": one["outcome"], "text": _in_words(content, one)} for one in decisive]}


def _comparison(one: TreatmentEffect, readable: bool, target: float, planned_days: int) -> dict[str, Any]:
    days = statistics.days_needed(one.detectable_by_day, target)
    return {
        "variant": one.variant,
        "metric": one.metric,
        "outcome": _outcome(one).value if readable else NOT_READABLE,
        "means": {"control": _side(one.control), "treatment": _side(one.treatment)},
        "plain": _tested(one.plain, one.plain_holm),
        "cuped": _tested(one.cuped, one.cuped_holm),
        "variance_reduction": _finite(one.variance_reduction),
        "days_needed": days,
        "measured_days": bool(days and days <= len(one.by_day)),
        "detectable": _finite(one.detectable_by_day[-1]),
        "detectable_as_planned": _finite(statistics.detectable_after(one.detectable_by_day, planned_days)),
        "by_day": [
            DayFigure(*_ends(day), detectable=_finite(found))
            for day, found in zip(one.by_day, one.detectable_by_day, strict=True)
        ],
    }


def _outcome(one: TreatmentEffect) -> Outcome:
    if not one.cuped_holm < ALPHA:
        return Outcome.UNDECIDED
    return Outcome.BETTER if one.cuped.value > 0 else Outcome.WORSE


def _side(moments: Moments) -> dict[str, float | None]:
    return {"mean": float(moments.mean), "deviation": math.sqrt(max(moments.variance, 0.0))}


def _tested(uplift: Uplift, p_holm: float) -> TestedFigure:
    return TestedFigure(*_ends(uplift), p=_finite(uplift.p), p_holm=_finite(p_holm))


def _ends(uplift: Uplift | None) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) of an uplift, with None for NaN and for infinity."""
    if uplift is None:
        return None, None, None
    return _finite(uplift.value), _finite(uplift.low), _finite(uplift.high)


def _finite(value: Floats) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _in_words(content: Content, one: dict[str, Any]) -> str:
    """What the first metric says of one treatment, in a sentence or two."""
    users = ", ".join(f"{variant['name']} {variant['users']:,}" for variant in content["variants"])
    if one["outcome"] == NOT_READABLE:
        return (
            f"The users ({users}) are not divided as they should be (p {p_in_words(content['sample_ratio']['p'])}): "
            "some got lost on one side, and any difference below may come of that. Find out where before reading on."
        )
    figure: TestedFigure = one["cuped"]
    if figure.defined is None:
        return (
            f"{one['metric']} of the control is too near to 0 to be compared with: no relative difference is defined."
        )
    what = f"{one['metric']} of {one['variant']} is {figure.percent(signed=False, digits=2)}"
    what += f" {'higher' if figure.defined[0] >= 0 else 'lower'} than that of {content['control']}"
    interval = f"95 % interval {figure.percent_interval(digits=2)}, p {p_in_words(figure.p_holm)} after Holm"
    if one["outcome"] == Outcome.UNDECIDED.value:
        return f"{what}, which chance alone could explain ({interval})."
    return f"{what} ({interval})."


def p_in_words(value: float | None) -> str:
    """A p-value with four decimals."""
    if value is None:
        return "–"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def how_long(content: Content, one: dict[str, Any]) -> str:
    """The days after which the wanted uplift is found."""
    if one["detectable"] is None:
        return "unknown: the control's mean is too near to 0"
    if one["days_needed"] is None:
        return "more than ten years as it goes"
    days = f"{one['days_needed']:,} {'day' if one['days_needed'] == 1 else 'days'}"
    return days if one["measured_days"] else f"{days}, by the trend of {content['days']}"


def lines_of(content: Content) -> list[str]:
    """The read-out as a table for a terminal."""
    ratio = content["sample_ratio"]
    users = ", ".join(f"{one['name']} {one['users']:,} (meant {one['meant']:.1%})" for one in content["variants"])
    rehearsal = ", a rehearsal: nobody saw anything new" if content["rehearsal"] else ""
    lines = [
        f"test {content['test']} over [{content['start']}, {content['end']}), read on {content['date']}{rehearsal}",
        f"users: {users}; sample ratio p {p_in_words(ratio['p'])}, {'as meant' if ratio['readable'] else NOT_READABLE}",
        f"{'':<28} {'control':>10} {'variant':>10}  {'uplift':<31} {'with CUPED':<31} {'p (Holm)':>14} {'variance':>9}",
    ]
    for one in content["comparisons"]:
        plain, cuped = (
            f"{one[side].percent(digits=2)} {one[side].percent_interval(digits=2)}" for side in ("plain", "cuped")
        )
        means = one["means"]
        lines.append(
            f"{one['metric'] + ', ' + one['variant']:<28} {means['control']['mean']:>10.4g} "
            f"{means['treatment']['mean']:>10.4g}  {plain:<31} {cuped:<31} {p_in_words(one['cuped'].p_holm):>14} "
            f"{percent(one['variance_reduction'] and -one['variance_reduction']):>9}"
        )
    for one in content["comparisons"]:
        lines.append(
            f"to find {percent(content['uplift'], digits=2)} of {one['metric']}, {one['variant']}: "
            f"{how_long(content, one)}; after {content['planned_days']} days it finds "
            f"{percent(one['detectable_as_planned'], digits=2)}"
        )
    return lines + [f"{one['outcome']}: {one['text']}" for one in content["verdicts"]]

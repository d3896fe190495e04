"""What an evaluation found: its file, its figures as text, and what they say in plain words.

The report, the registry's gate and the demo's closing table read `evaluation.json` through this file, so that
the same figure is written, and judged, in the same way everywhere. Imports no torch.
"""

import math
from enum import Enum

Figure = dict[str, float | None]
"""A measured value and the ends of its 95 % interval: `value`, `low`, `high`. None where it isn't defined."""


class Outcome(Enum):
    """What the interval of a relative difference says."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


def metric_label(name: str) -> str:
    """`ndcg@500` as people write it: NDCG@500."""
    family, _, cutoff = name.partition("@")
    return f"{family.capitalize() if family == 'recall' else family.upper()}@{cutoff}"


def outcome(uplift: Figure) -> Outcome:
    """Better or worse where the whole interval lies on one side of 0, undecided where it contains or touches 0."""
    if not is_defined(uplift):
        return Outcome.UNDECIDED
    if uplift["low"] > 0:
        return Outcome.BETTER
    return Outcome.WORSE if uplift["high"] < 0 else Outcome.UNDECIDED


def is_defined(figure: Figure | None) -> bool:
    """False for a figure that could not be measured: a cohort without users, a ratio to 0."""
    if not figure:
        return False
    return all(figure.get(end) is not None and math.isfinite(figure[end]) for end in ("value", "low", "high"))


def in_words(uplift: Figure, metric: str, users: int, rival: str) -> str:
    """One or two sentences on a relative difference of `metric` to `rival`, paired over `users` test users."""
    name = metric_label(metric)
    if not is_defined(uplift):
        return f"The difference to the {rival} could not be measured."
    value, interval = percent(uplift["value"], signed=False), f"{percent(uplift['low'])} to {percent(uplift['high'])}"
    direction = "higher" if uplift["value"] >= 0 else "lower"
    match outcome(uplift):
        case Outcome.BETTER:
            return f"{name} is {value} higher than that of the {rival} (95 % interval {interval}, {users:,} users)."
        case Outcome.WORSE:
            return f"{name} is {value} lower than that of the {rival} (95 % interval {interval}, {users:,} users)."
        case Outcome.UNDECIDED:
            return (
                f"{name} is {value} {direction} than that of the {rival}, but the 95 % interval, {interval}, contains "
                f"0: with {users:,} users this test cannot tell the two apart."
            )


def number(value: float | None) -> str:
    """A metric between 0 and 1, four digits behind the point."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def interval(figure: Figure) -> str:
    """The ends of a metric's 95 % interval, in brackets."""
    return f"[{number(figure['low'])}, {number(figure['high'])}]" if is_defined(figure) else ""


def percent(share: float | None, signed: bool = True, digits: int = 1) -> str:
    """A relative difference as a percentage with one digit behind the point, or more: 0.0131 is +1.3 %."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:+.{digits}f} %".replace("-", "−") if signed else f"{100 * abs(share):.{digits}f} %"


def percent_interval(uplift: Figure, digits: int = 1) -> str:
    """The ends of a relative difference's 95 % interval, in brackets."""
    if not is_defined(uplift):
        return ""
    return f"[{percent(uplift['low'], digits=digits)}, {percent(uplift['high'], digits=digits)}]"

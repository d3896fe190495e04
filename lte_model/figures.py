"""Figures: measured values with their 95 % intervals, as numbers, as text, in plain words, and as JSON.

Reports, the registry's gate and the closing tables of the demo and the studies write their figures through this file,
so that the same figure is written, and judged, in the same way everywhere. This file imports no torch.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

SIDE_NAMES = {
    "prefix": "with LTE",
    "none": "without LTE",
    "popularity_all": "popularity, all time",
    "popularity_30d": "popularity, 30 days",
    "popularity_7d": "popularity, 7 days",
}
"""How charts and tables name the sides of an evaluation, in their order."""


class Outcome(Enum):
    """What the confidence interval of a relative difference says."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Figure:
    """A measured value and the ends of its 95 % interval; None where they are not defined."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def defined(self) -> tuple[float, float, float] | None:
        """(value, low, high), or None if one can't be measured, as in an empty cohort or a division by 0."""
        if self.value is None or self.low is None or self.high is None:
            return None
        ends = (self.value, self.low, self.high)
        return ends if all(map(math.isfinite, ends)) else None

    @property
    def is_defined(self) -> bool:
        """Whether the value and both ends of its interval could be measured."""
        return self.defined is not None

    @property
    def outcome(self) -> Outcome:
        """Better or worse where the whole interval lies on one side of 0, undecided where it contains or touches 0."""
        if self.defined is None:
            return Outcome.UNDECIDED
        _, low, high = self.defined
        if low > 0:
            return Outcome.BETTER
        return Outcome.WORSE if high < 0 else Outcome.UNDECIDED

    def contains(self, value: float) -> bool:
        """Whether the interval is defined and contains `value`."""
        return self.defined is not None and self.defined[1] <= value <= self.defined[2]

    def scaled(self, factor: float) -> "Figure":
        """The figure times a positive `factor`, undefined where it is undefined."""
        return UNDEFINED if self.defined is None else Figure(*(factor * end for end in self.defined))

    def number(self) -> str:
        """The value of a metric between 0 and 1, with four digits behind the point."""
        return number(self.value)

    def interval(self) -> str:
        """The ends of a metric's interval, in brackets; empty where they are undefined."""
        return f"[{number(self.low)}, {number(self.high)}]" if self.is_defined else ""

    def percent(self, signed: bool = True, digits: int = 1) -> str:
        """The value of a relative difference as a percentage: 0.0131 is +1.3 %."""
        return percent(self.value, signed, digits)

    def percent_interval(self, digits: int = 1) -> str:
        """The ends of a relative difference's interval as percentages, in brackets; empty where they are undefined."""
        return f"[{percent(self.low, digits=digits)}, {percent(self.high, digits=digits)}]" if self.is_defined else ""

    def in_words(self, metric: str, users: int, rival: str) -> str:
        """One or two sentences on a relative difference of `metric` to `rival`, paired over `users` test users."""
        if self.defined is None:
            return f"The difference to the {rival} could not be measured."
        name, value = metric_label(metric), self.percent(signed=False)
        interval = f"{percent(self.low)} to {percent(self.high)}"
        match self.outcome:
            case Outcome.BETTER:
                return f"{name} is {value} higher than that of the {rival} (95 % interval {interval}, {users:,} users)."
            case Outcome.WORSE:
                return f"{name} is {value} lower than that of the {rival} (95 % interval {interval}, {users:,} users)."
            case Outcome.UNDECIDED:
                direction = "higher" if self.defined[0] >= 0 else "lower"
                return (
                    f"{name} is {value} {direction} than that of the {rival}, but the 95 % interval, {interval}, "
                    f"contains 0: with {users:,} users this test cannot tell the two apart."
                )


UNDEFINED = Figure(None, None, None)
"""The figure of what could not be measured."""


@dataclass(frozen=True)
class FigureOfUsers(Figure):
    """A figure that is measured over some of the test users, and their number."""

    users: int


def metric_label(name: str) -> str:
    """`ndcg@500` as people write it: NDCG@500."""
    family, _, cutoff = name.partition("@")
    return f"{family.capitalize() if family == 'recall' else family.upper()}@{cutoff}"


def number(value: float | None) -> str:
    """A metric between 0 and 1, with four digits behind the point."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def percent(share: float | None, signed: bool = True, digits: int = 1) -> str:
    """A relative difference as a percentage with one digit behind the point, or more: 0.0131 is +1.3 %."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:+.{digits}f} %".replace("-", "−") if signed else f"{100 * abs(share):.{digits}f} %"


def to_json(content: Any, indent: int | None = 1) -> str:
    """`content` as JSON, each figure in it as `{"value": …, "low": …, "high": …}`. Raises `ValueError` for a NaN."""
    return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False, default=_fields_of)


def from_json(text: str) -> Any:
    """Reads what `to_json` wrote, figures included. Raises `ValueError` where the text is not JSON."""
    return json.loads(text, object_hook=_figure_or_dict)


def _fields_of(figure: object) -> dict[str, Any]:
    if not isinstance(figure, Figure):
        raise TypeError(f"{figure!r} is neither JSON nor a figure")
    return dataclasses.asdict(figure)


def _figure_or_dict(found: dict[str, Any]) -> Any:
    kind = _KIND_OF_KEYS.get(frozenset(found))
    return kind(**found) if kind else found


_KIND_OF_KEYS = {frozenset(field.name for field in dataclasses.fields(kind)): kind for kind in (Figure, FigureOfUsers)}

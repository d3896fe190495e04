"""The table that `make test-production` prints. Pytest carries its rows between processes as user properties."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Outcome:
    """`broken` was broken `times` times; afterwards `lost` of the `of` were missing, doubled or changed."""

    PROPERTY: ClassVar[str] = "production_outcome"

    broken: str
    times: int
    lost: int
    of: str

    def as_property(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self) -> list[dict[str, Any]]:
        """The row as measures, in the format of every `--json` option."""
        return [
            {"measure": "times_broken", "side": self.broken, "value": self.times, "unit": "times"},
            {"measure": "lost", "side": self.broken, "value": self.lost, "unit": self.of},
        ]


def outcomes_of(reports: Iterable[Any]) -> list[Outcome]:
    """The rows that the tests recorded in these reports, in order."""
    return [
        Outcome(**value)
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == Outcome.PROPERTY
    ]


def table_of(outcomes: Iterable[Outcome]) -> list[str]:
    """The table's lines."""
    rows = [("what was broken", "times", "lost"), *((o.broken, str(o.times), f"{o.lost} {o.of}") for o in outcomes)]
    width = max(len(broken) for broken, _, _ in rows)
    return [f"{broken:<{width}}  {times:>5}  {lost}" for broken, times, lost in rows]

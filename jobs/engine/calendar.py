"""At which snapshot dates an event is part of an LTE.

With lag L and window W an event of day e that is known from day k on, as its item is, enters at the date
max(e + L, k) + 1 and leaves at the date e + L + W + 1. In between it is part of every snapshot; so a year of
snapshots is one pass over the events, and the way from one snapshot to the next is what entered less what left.
"""

import datetime
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lte_model.domain.windows import Interval, lte_window

EPOCH = datetime.date(1970, 1, 1)


def day_number(date: datetime.date) -> int:
    """Days since 1970-01-01, as Parquet and Spark count them."""
    return (date - EPOCH).days


@dataclass(frozen=True)
class Calendar:
    """The snapshot dates of one run, ascending, and where it starts.

    `base` is the number of the date whose snapshot is there already, or None for a run from nothing.
    """

    dates: tuple[datetime.date, ...]
    lag_days: int
    window_days: int
    base: int | None = None

    def __post_init__(self):
        ascending = all(one < other for one, other in zip(self.dates, self.dates[1:], strict=False))
        at_an_end = self.base in (None, 0) or (self.base == 1 and len(self.dates) == 2)
        if not self.dates or not ascending or not at_an_end or len(self.dates) >= 2**16:
            raise ValueError(f"no calendar has the dates {self.dates} and the base {self.base}")

    @property
    def backward(self) -> bool:
        """Whether the base is later than the one date that is made from it."""
        return self.base == 1

    @property
    def made(self) -> tuple[datetime.date, ...]:
        """The dates whose snapshots the run makes."""
        return tuple(date for number, date in enumerate(self.dates) if number != self.base)

    @property
    def moves(self) -> list[tuple[int, int, datetime.date]]:
        """How the run goes from date to date: (step, sign, date reached).

        A move along step k adds, times the sign, the events that enter at k and takes those that leave at k.
        """
        if self.backward:
            return [(1, -1, self.dates[0])]
        return [(step, 1, date) for step, date in enumerate(self.dates) if step != self.base]

    def window(self, date: datetime.date) -> Interval:
        """The days that the LTE of `date` sees."""
        return lte_window(date, self.lag_days, self.window_days)

    def steps(self, event_day: np.ndarray, known_day: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers (events,) of the first date that each event is part of, and of the first that it no longer is."""
        enters = np.searchsorted(self._days, np.maximum(event_day + self.lag_days, known_day) + 1)
        leaves = np.searchsorted(self._days, event_day + (self.lag_days + self.window_days + 1))
        return enters.astype(np.uint16), leaves.astype(np.uint16)

    def moved(self, enters: np.ndarray, leaves: np.ndarray) -> np.ndarray:
        """Which events (events,) the moves of this run add or take."""
        inside = enters < leaves
        if self.base is None:
            return inside
        last = len(self.dates) - 1
        return inside & ((enters > 0) & (enters <= last) | (leaves > 0) & (leaves <= last))

    @cached_property
    def _days(self) -> np.ndarray:
        return np.array([day_number(date) for date in self.dates], dtype=np.int32)

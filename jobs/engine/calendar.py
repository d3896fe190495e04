"""Says at which snapshot dates an event is part of an LTE.

With lag L and window W, an event of day e enters at the date max(e + L, k) + 1 and leaves at the date e + L + W + 1.
Here k is the first day on which the event and its item are both known. In between, the event is part of every snapshot.
So one pass over the events makes a year of snapshots: each is the one before, plus what entered, minus what left.
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

    `base` is the index of the date whose snapshot exists already; None: the run reads all days.
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
        """Whether the base is later than the one date made from it."""
        return self.base == 1

    @property
    def made(self) -> tuple[datetime.date, ...]:
        """The dates whose snapshots the run makes."""
        return tuple(date for number, date in enumerate(self.dates) if number != self.base)

    @property
    def moves(self) -> list[tuple[int, int, datetime.date]]:
        """The steps from date to date: (step, sign, date reached).

        A move along step k adds the events that enter at k and subtracts those that leave at k, times the sign.
        """
        if self.backward:
            return [(1, -1, self.dates[0])]
        return [(step, 1, date) for step, date in enumerate(self.dates) if step != self.base]

    def window(self, date: datetime.date) -> Interval:
        """The event days that the LTE of `date` covers."""
        return lte_window(date, self.lag_days, self.window_days)

    def steps(self, event_day: np.ndarray, known_day: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The indices (events,) of the date at which each event enters, and of the date at which it leaves."""
        enters = np.searchsorted(self._days, np.maximum(event_day + self.lag_days, known_day) + 1)
        leaves = np.searchsorted(self._days, event_day + (self.lag_days + self.window_days + 1))
        return enters.astype(np.uint16), leaves.astype(np.uint16)

    def moved(self, enters: np.ndarray, leaves: np.ndarray) -> np.ndarray:
        """(events,) bool: the events that this run's moves add or subtract."""
        inside = enters < leaves
        if self.base is None:
            return inside
        last = len(self.dates) - 1
        return inside & ((enters > 0) & (enters <= last) | (leaves > 0) & (leaves <= last))

    @cached_property
    def _days(self) -> np.ndarray:
        return np.array([day_number(date) for date in self.dates], dtype=np.int32)

"""The calendar of the project. Every interval is half-open, [start, end), in days of UTC.

For a snapshot date D, a lag of L days and a window of W days:

    D−L−W                          D−L               D
      |──── the LTE's window ───────|── targets of ──|── the LTE may be used ──▶
                                      the anchor D

An event enters the LTE of D if it is dated inside the window *and* reached us before D.
"""

import datetime
from dataclasses import dataclass

from lte_model.errors import LTEError

ONE_DAY = datetime.timedelta(days=1)

INERTIA_DAYS = 7
"""Inertia is the cosine of a user's LTEs at D and at D−7."""


@dataclass(frozen=True)
class Interval:
    """The days from `start` (inclusive) to `end` (exclusive)."""

    start: datetime.date
    end: datetime.date

    def __contains__(self, day: datetime.date) -> bool:
        return self.start <= day < self.end

    @property
    def days(self) -> int:
        """The number of days."""
        return (self.end - self.start).days

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"


def lte_window(snapshot_date: datetime.date, lag_days: int, window_days: int) -> Interval:
    """The days whose events the LTE of `snapshot_date` averages: [D−L−W, D−L)."""
    end = snapshot_date - datetime.timedelta(days=lag_days)
    return Interval(end - datetime.timedelta(days=window_days), end)


def target_window(snapshot_date: datetime.date, lag_days: int) -> Interval:
    """The days whose events an anchor may train on: [D−L, D). They never overlap `lte_window`."""
    return Interval(snapshot_date - datetime.timedelta(days=lag_days), snapshot_date)


@dataclass(frozen=True)
class TrainingDates:
    """The anchors and the two cuts of one training, all derived from the day on which it runs.

    `test` and `validation` are the days of the evaluation targets. Their sequences and LTEs are those of the first day,
    the cut. `anchors` are the snapshot dates that train, oldest first; their targets are all dated before the
    validation cut.
    """

    anchors: tuple[datetime.date, ...]
    validation: Interval
    test: Interval

    @property
    def snapshot_dates(self) -> tuple[datetime.date, ...]:
        """Every date whose LTE the training reads, oldest first: the anchors, then the test cut.

        The last anchor is the validation cut.
        """
        return (*self.anchors, self.test.start)


def every(days: int, start: datetime.date, end: datetime.date) -> tuple[datetime.date, ...]:
    """`start` and every `days`-th day after it, before `end`."""
    if days < 1:
        raise LTEError(f"a step of {days} days does not advance; give 1 or more")
    return tuple(start + ONE_DAY * k for k in range(0, (end - start).days, days))


def parse_date(text: str) -> datetime.date:
    """A day written YYYY-MM-DD. Raises `LTEError` for anything else."""
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise LTEError(f"{text!r} is not a date; write it YYYY-MM-DD") from None


def today() -> datetime.date:
    """The current day in UTC."""
    return datetime.datetime.now(datetime.UTC).date()


def parse_run_date(text: str) -> datetime.date:
    """The date of a run, written YYYY-MM-DD. Raises `LTEError` for a future date, whose events are not here yet."""
    date = parse_date(text)
    if date > today():
        raise LTEError(f"{date} is in the future (today is {today()} in UTC); give a date up to today")
    return date

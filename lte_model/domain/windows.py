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


@dataclass(frozen=True)
class Interval:
    """The days from `start` up to, and without, `end`."""

    start: datetime.date
    end: datetime.date

    def __contains__(self, day: datetime.date) -> bool:
        return self.start <= day < self.end

    @property
    def days(self) -> int:
        """How many days there are, from `start` to the day before `end`."""
        return (self.end - self.start).days

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"


def lte_window(snapshot_date: datetime.date, lag_days: int, window_days: int) -> Interval:
    """The days whose events the LTE of `snapshot_date` averages: [D−L−W, D−L)."""
    end = snapshot_date - datetime.timedelta(days=lag_days)
    return Interval(end - datetime.timedelta(days=window_days), end)


def target_window(snapshot_date: datetime.date, lag_days: int) -> Interval:
    """The days whose events an anchor may train on: [D−L, D). They never meet `lte_window`."""
    return Interval(snapshot_date - datetime.timedelta(days=lag_days), snapshot_date)


@dataclass(frozen=True)
class TrainingDates:
    """The anchors and the two cuts of one training, all read off the day on which it runs.

    `test` and `validation` are the days of the targets that evaluate; their sequences and LTEs are those of
    the first day of each, the cut. `anchors` are the snapshot dates that train, oldest first: none of their
    targets is dated on or after the validation cut.
    """

    anchors: tuple[datetime.date, ...]
    validation: Interval
    test: Interval

    @property
    def snapshot_dates(self) -> tuple[datetime.date, ...]:
        """Every date whose LTE the training reads, oldest first: the anchors, the last of which cuts off the
        validation, and the day that cuts off the test.
        """
        return (*self.anchors, self.test.start)


def every(days: int, start: datetime.date, end: datetime.date) -> tuple[datetime.date, ...]:
    """`start` and each `days`-th day after it, up to and without `end`."""
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
    """The date that a job is run for: YYYY-MM-DD and not in the future, for that day's events are not here yet."""
    date = parse_date(text)
    if date > today():
        raise LTEError(f"{date} is in the future (today is {today()} in UTC); give a date up to today")
    return date

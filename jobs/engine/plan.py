"""Plans a run: which snapshot it starts from (the base), and which rows of `events` it must read.

From a base b < D to the date D, these events move: those dated in [b−L, D−L) enter, those dated in [b−L−W, D−L−W)
leave, and events of any day enter if they, or their items, became known in [b, D). A base later than D saves less: to
find each user's newest remaining event, the run must read all days of the window.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from jobs.engine.calendar import Calendar, day_number
from jobs.engine.files import Listing, in_days, overlaps
from jobs.engine.items import ItemIndex
from lte_model.domain.windows import Interval
from lte_model.settings import Window

FORWARD_REACH = 1 / 2
BACKWARD_REACH = 1 / 8
"""How far, in windows, a base may lie before or after its dates; beyond, reading all days is cheaper."""


@dataclass(frozen=True)
class Plan:
    """The calendar of a run, and how it makes its dates, in words."""

    calendar: Calendar
    reason: str


def choose_plan(
    dates: Sequence[datetime.date],
    window: Window,
    there: Mapping[datetime.date, str],
    inputs_hash: Callable[[datetime.date], str],
) -> Plan:
    """The plan for `dates`, ascending.

    `there` maps the dates of existing snapshots to the hashes of their inputs. A snapshot can't be the base if
    `inputs_hash` of its date has changed.
    """
    first, made = dates[0], in_words(dates)
    near = [
        date
        for date in there
        if datetime.timedelta(0) < first - date <= window.window_days * FORWARD_REACH * datetime.timedelta(1)
    ]
    if len(dates) == 1:
        reach = window.window_days * BACKWARD_REACH * datetime.timedelta(1)
        near += [date for date in there if datetime.timedelta(0) < date - first <= reach]
    # The nearest before the dates; if there is none, the nearest after.
    near.sort(key=lambda date: (date > first, abs(date - first)))
    changed = []
    for base in near:
        if inputs_hash(base) != there[base]:
            changed.append(base)
            continue
        both = tuple(sorted((*dates, base)))
        calendar = Calendar(both, window.lag_days, window.window_days, base=both.index(base))
        return Plan(calendar, f"{made}: incremental, from the snapshot of {base}")
    calendar = Calendar(tuple(dates), window.lag_days, window.window_days)
    if changed:
        why = (
            f"the snapshot of {changed[0]} was made from other events, items, lag, window or encoder than there are now"
        )
    else:
        why = "there is no snapshot near it to go on from"
    return Plan(calendar, f"{made}: in full, for {why}")


def in_words(dates: Sequence[datetime.date]) -> str:
    """The dates of a run, in words."""
    first, last = dates[0], dates[-1]
    return f"LTE of {first}" if first == last else f"{len(dates)} LTEs from {first} to {last}"


def days_seen(calendar: Calendar) -> Interval:
    """The days on which events of the calendar's snapshots may have become known."""
    return Interval(calendar.window(calendar.dates[0]).start, calendar.dates[-1])


def needed(events: Listing, calendar: Calendar, index: ItemIndex) -> tuple[Listing, pc.Expression]:
    """The files that may hold events that the calendar's moves add or subtract, and the condition on rows."""
    first, last = (calendar.window(date) for date in (calendar.dates[0], calendar.dates[-1]))
    whole = Interval(first.start, last.end)
    known = (calendar.dates[0], calendar.dates[-1])
    if calendar.base is None or calendar.backward:
        before = pc.field("known_date") < pa.scalar(known[1], pa.date32())
        return events.where(overlaps("event_date", whole)), in_days("event_date", whole) & before
    newly_known = Interval(*known)
    moved = {
        "event_date": (Interval(first.start, last.start), Interval(first.end, last.end)),
        "known_date": (newly_known,),
    }
    files = pl.any_horizontal(overlaps(column, days) for column, spans in moved.items() for days in spans)
    condition = _any([in_days(column, days) for column, spans in moved.items() for days in spans])
    new_items = index.item_ids.take(_numbers(index.known_day, newly_known))
    if len(new_items):
        files |= overlaps("event_date", whole)
        condition |= pc.field("item_id").isin(new_items)
    inside = overlaps("event_date", whole)
    return events.where(files & inside), condition & in_days("event_date", whole)


def _numbers(known_day: np.ndarray, days: Interval) -> pa.Array:
    return pa.array(np.flatnonzero((known_day >= day_number(days.start)) & (known_day < day_number(days.end))))


def _any(conditions: Sequence[pc.Expression]) -> pc.Expression:
    *others, last = conditions
    for condition in others:
        last |= condition
    return last

"""Small feeds and tables for tests of the jobs, and an oracle for snapshots in plain integers."""

import datetime
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from jobs.engine.calendar import EPOCH, day_number
from jobs.engine.items import ItemIndex, ItemVectors
from lte_model.domain.windows import lte_window

FIRST_DAY = datetime.date(2024, 2, 1)
ITEMS = tuple("abcde")
USERS = tuple("uvw")


@dataclass(frozen=True)
class Event:
    user_id: str
    item_id: str
    event_date: datetime.date
    known_date: datetime.date
    second: int = 0

    @property
    def event_ts(self) -> datetime.datetime:
        midnight = datetime.datetime.combine(self.event_date, datetime.time(), datetime.UTC)
        return midnight + datetime.timedelta(seconds=self.second)


@st.composite
def events(draw: st.DrawFn, days: int = 40) -> Event:
    """An event in the `days` after FIRST_DAY, known on its day or up to five days later; some items have no vector."""
    day = FIRST_DAY + datetime.timedelta(days=draw(st.integers(0, days - 1)))
    return Event(
        user_id=draw(st.sampled_from(USERS)),
        item_id=draw(st.sampled_from((*ITEMS, "unknown"))),
        event_date=day,
        known_date=day + datetime.timedelta(days=draw(st.sampled_from((0, 0, 0, 1, 5)))),
        second=draw(st.integers(0, 2)),
    )


def events_table(rows: Iterable[Event]) -> pa.Table:
    rows = list(rows)
    return pa.table(
        {
            "user_id": pa.array([row.user_id for row in rows], pa.string()),
            "item_id": pa.array([row.item_id for row in rows], pa.string()),
            "event_ts": pa.array([row.event_ts for row in rows], pa.timestamp("us", "UTC")),
            "event_date": pa.array([row.event_date for row in rows], pa.date32()),
            "known_date": pa.array([row.known_date for row in rows], pa.date32()),
        }
    )


def events_frame(spark: SparkSession, rows: Iterable[Event]) -> DataFrame:
    return spark.createDataFrame(events_table(rows))


def item_vectors(dimensions: int = 3, known: dict[str, datetime.date] | None = None) -> ItemVectors:
    """A vector on the grid for each of ITEMS, including the extreme values. `known` gives dates of late items."""
    units = np.random.default_rng(0).integers(-(2**14), 2**14, (len(ITEMS), dimensions), endpoint=True, dtype=np.int32)
    units[0], units[1] = 2**14, -(2**14)
    known_day = [day_number((known or {}).get(item, EPOCH)) for item in ITEMS]
    return ItemVectors("basis", ItemIndex(pa.array(ITEMS), np.array(known_day, dtype=np.int32)), units)


Rows = dict[tuple[datetime.date, str], tuple[tuple[int, ...], int, datetime.date]]


def oracle(
    rows: Iterable[Event],
    vectors: ItemVectors,
    dates: Sequence[datetime.date],
    lag_days: int,
    window_days: int,
) -> Rows:
    """(vector sum, event count, newest event date) by (snapshot date, user), added up one event at a time."""
    index = {item: row for row, item in enumerate(vectors.index.item_ids.to_pylist())}
    known_day = dict(zip(index, vectors.index.known_day.tolist(), strict=True))
    rows = list(rows)
    found: Rows = {}
    for date in dates:
        window = lte_window(date, lag_days, window_days)
        of_user: dict[str, list[Event]] = defaultdict(list)
        for event in rows:
            known_item = event.item_id in index and known_day[event.item_id] < day_number(date)
            if event.event_date in window and event.known_date < date and known_item:
                of_user[event.user_id].append(event)
        for user, mine in of_user.items():
            columns = zip(*(vectors.units[index[event.item_id]].tolist() for event in mine), strict=True)
            found[date, user] = (
                tuple(sum(column) for column in columns),
                len(mine),
                max(event.event_date for event in mine),
            )
    return found


def collected(frame: DataFrame) -> Rows:
    """Snapshot rows in the oracle's form."""
    return in_oracles_form(row.asDict() for row in frame.collect())


def in_oracles_form(rows: Iterable[dict]) -> Rows:
    found: Rows = {}
    for row in rows:
        key = row["snapshot_date"], row["user_id"]
        assert key not in found, f"{key} stands twice in the snapshots"
        found[key] = tuple(row["vector_sum"]), row["event_count"], row["newest_event_date"]
    return found

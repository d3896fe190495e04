"""Makes the snapshot rows of one group of users from the group's blobs, and from the base's rows if there is a base.

1. Each event that a move adds or subtracts is an entry of a sparse matrix, +1 or −1 at (step and user, item).
2. Users are processed in blocks. A block's state, (users, dimensions) sums in grid units, starts at the base or 0.
3. Each step adds the block's rows of the sparse matrix times the item vectors to the state. The state is then the
   snapshot of the date reached.

Integer arithmetic makes the sums independent of order: they are the same whatever the blobs, the base or the dates.
"""

import datetime
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import scipy.sparse

from jobs.engine.calendar import Calendar
from jobs.engine.packing import NEVER, buckets_of
from lte_model.domain.basis import MAX_EVENTS
from lte_model.errors import LTEError

USERS_AT_ONCE = 4096
"""The number of users in a block."""

ROWS = pa.schema(
    [
        ("user_id", pa.string()),
        ("user_bucket", pa.int32()),
        ("vector_sum", pa.list_(pa.int32())),
        ("event_count", pa.int32()),
        ("newest_event_date", pa.date32()),
        ("snapshot_date", pa.date32()),
    ]
)
"""The schema of the rows that a run makes. `vector_sum` is in grid units."""


def snapshot_rows(
    blobs: Sequence[pa.RecordBatch], base: pa.Table | None, units: np.ndarray, calendar: Calendar
) -> Iterator[pa.RecordBatch]:
    """The rows of every date that the calendar makes, in one pass over the users of a group.

    `base` has the columns of `ROWS` except the last; `units` is (items, dimensions) int32 in grid units. Raises
    `LTEError` for a user with more than `MAX_EVENTS` events in a window.
    """
    user_ids, users_of_blob, users_of_base = _number_users(blobs, base)
    users = len(user_ids)
    if not users:
        return
    buckets = buckets_of(user_ids)
    moves, newest_entering = _moves(blobs, users_of_blob, users, len(units), calendar)
    count, newest = np.zeros(users, dtype=np.int32), np.full(users, NEVER, dtype=np.int32)
    sums_of_base = None
    if base is not None:
        sums_of_base = np.zeros((users, units.shape[1]), dtype=np.int32)
        sums_of_base[users_of_base] = (
            base["vector_sum"].combine_chunks().flatten().to_numpy().reshape(-1, units.shape[1])
        )
        count[users_of_base] = base["event_count"].to_numpy()
        newest[users_of_base] = base["newest_event_date"].cast(pa.int32()).to_numpy()
    if newest_entering is None or calendar.backward:
        newest = _newest_of_first_date(blobs, users_of_blob, users)

    for first in range(0, users, USERS_AT_ONCE):
        block = slice(first, min(first + USERS_AT_ONCE, users))
        size = block.stop - first
        sums = np.zeros((size, units.shape[1]), dtype=np.int32) if sums_of_base is None else sums_of_base[block]
        for step, sign, date in calendar.moves:
            moved = moves[step * users + first : step * users + first + size]  # (size, items)
            touched = np.flatnonzero(np.diff(moved.indptr))
            sums[touched] += sign * (moved[touched] @ units)  # (touched, dimensions)
            count[block] += sign * np.asarray(moved.sum(axis=1)).ravel().astype(np.int32)
            if newest_entering is not None and not calendar.backward:
                entering = newest_entering[step * users + first : step * users + first + size]
                np.maximum(newest[block], entering, out=newest[block])
            require_countable(user_ids[block], count[block], date)
            yield _rows(user_ids[block], buckets[block], sums, count[block], newest[block], date)


def _number_users(
    blobs: Sequence[pa.RecordBatch], base: pa.Table | None
) -> tuple[pa.Array, list[np.ndarray], np.ndarray]:
    """All users of the group, the row numbers of each blob's users in it, and those of the base's."""
    columns = [blob["user_id"] for blob in blobs]
    columns += base["user_id"].chunks if base is not None else []
    encoded = pa.chunked_array(columns, pa.string()).combine_chunks().dictionary_encode()
    numbers = encoded.indices.to_numpy()
    ends = np.cumsum([len(blob) for blob in blobs], dtype=np.int64)
    *of_blobs, of_base = np.split(numbers, ends)
    return encoded.dictionary, of_blobs, of_base


def _moves(
    blobs: Sequence[pa.RecordBatch], users_of_blob: Sequence[np.ndarray], users: int, items: int, calendar: Calendar
) -> tuple[scipy.sparse.csr_matrix, np.ndarray | None]:
    """The events that enter (+1) and leave (−1) along each step, (steps · users, items), and the newest entering days.

    The days are (steps · users,). They are None for a run of one date: all events enter in its one step, and its blobs
    have no days.
    """
    events_of_blob = [np.diff(blob["items"].offsets.to_numpy()) for blob in blobs]
    user = _joined([np.repeat(*pair) for pair in zip(users_of_blob, events_of_blob, strict=True)], np.int32)
    item = _column(blobs, "items", np.int32)
    steps = len(calendar.dates)
    if steps == 1:
        entries = (np.ones(len(user), dtype=np.int32), (user, item))
        return scipy.sparse.csr_matrix(entries, shape=(users, items)), None
    enters, leaves = (_column(blobs, name, np.uint16).astype(np.int64) for name in ("enters", "leaves"))
    first = 0 if calendar.base is None else 1
    entering, leaving = (enters >= first) & (enters < steps), (leaves >= first) & (leaves < steps)
    rows_entering = enters[entering] * users + user[entering]
    rows_leaving = leaves[leaving] * users + user[leaving]
    signs = np.ones(len(rows_entering) + len(rows_leaving), dtype=np.int32)
    signs[len(rows_entering) :] = -1
    entries = (signs, (np.concatenate((rows_entering, rows_leaving)), np.concatenate((item[entering], item[leaving]))))
    newest = np.full(steps * users, NEVER, dtype=np.int32)
    np.maximum.at(newest, rows_entering, _column(blobs, "days", np.int32)[entering])
    return scipy.sparse.csr_matrix(entries, shape=(steps * users, items)), newest


def _newest_of_first_date(
    blobs: Sequence[pa.RecordBatch], users_of_blob: Sequence[np.ndarray], users: int
) -> np.ndarray:
    """The newest day (users,) of the events in the first date's LTE."""
    newest = np.full(users, NEVER, dtype=np.int32)
    for blob, numbers in zip(blobs, users_of_blob, strict=True):
        np.maximum.at(newest, numbers, blob["newest"].to_numpy())
    return newest


def require_countable(user_ids: pa.Array, count: np.ndarray, date: datetime.date) -> None:
    """Raises `LTEError` for a user with more events than a sum can hold."""
    if count.max() > MAX_EVENTS:
        busiest = user_ids[int(count.argmax())].as_py()
        raise LTEError(
            f"user {busiest!r} has {count.max():,} events in the window of {date}; the sum of more than "
            f"{MAX_EVENTS:,} doesn't fit 32 bits, and it is no person: remove it with jobs.erase_users"
        )


def _rows(
    user_ids: pa.Array,
    buckets: np.ndarray,
    sums: np.ndarray,
    count: np.ndarray,
    newest: np.ndarray,
    date: datetime.date,
) -> pa.RecordBatch:
    """The rows of users with an event. Arrays are copied, because the next date changes the state."""
    alive = np.flatnonzero(count)
    offsets = np.arange(len(alive) + 1, dtype=np.int32) * sums.shape[1]
    return pa.RecordBatch.from_arrays(
        [
            user_ids.take(pa.array(alive)),
            pa.array(buckets[alive]),
            pa.ListArray.from_arrays(offsets, sums[alive].ravel()),
            pa.array(count[alive]),
            pa.array(newest[alive]).cast(pa.date32()),
            pa.repeat(pa.scalar(date, pa.date32()), len(alive)),
        ],
        schema=ROWS,
    )


def _column(blobs: Sequence[pa.RecordBatch], name: str, kind: type) -> np.ndarray:
    """The values of a list column, concatenated over all blobs."""
    return _joined([blob[name].flatten().to_numpy() for blob in blobs], kind)


def _joined(arrays: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, kind)

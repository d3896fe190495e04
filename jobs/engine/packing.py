"""Packs a part's events as small integers, grouped by user, in one blob for each group of users.

A group is a range of buckets, and a user's bucket is the CRC-32 of the user's id modulo `BUCKETS`. It is the same in
every run, in Python and in SQL, so that a group's rows can be found in a snapshot that another run wrote.
"""

import itertools
import zlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from jobs.engine.calendar import Calendar
from jobs.engine.items import ItemIndex

BUCKETS = 4096
NEVER = -(2**31)
"""The newest day of a user without events."""

EVENT_COLUMNS = ("user_id", "item_id", "event_date", "known_date")


def buckets_of(user_ids: pa.Array) -> np.ndarray:
    """The bucket (users,) int32 of each user."""
    return np.fromiter((zlib.crc32(user.encode()) % BUCKETS for user in user_ids.to_pylist()), np.int32, len(user_ids))


def group_of(bucket: np.ndarray, groups: int) -> np.ndarray:
    """The group of each bucket; the inverse of `group_buckets`."""
    return (bucket.astype(np.int64) * groups // BUCKETS).astype(np.int32)


def group_buckets(group: int, groups: int) -> range:
    """The range of buckets of a group."""
    return range(-(-group * BUCKETS // groups), -(-(group + 1) * BUCKETS // groups))


def pack(events: pa.Table, calendar: Calendar, index: ItemIndex, groups: int) -> Iterator[tuple[int, bytes]]:
    """(group, blob) of the events that the calendar's moves add or subtract.

    `events` has `EVENT_COLUMNS`, with dictionary-encoded ids. Events of items without a vector are left out.
    """
    events = events.unify_dictionaries().combine_chunks()
    users, items = (_chunk(events[name]) for name in ("user_id", "item_id"))
    item_index = pc.index_in(items.dictionary, value_set=index.item_ids).fill_null(-1).to_numpy()
    item = item_index[items.indices.to_numpy()] if len(items) else np.empty(0, np.int32)
    user = users.indices.to_numpy()
    event_day, known_day = (_chunk(events[name].cast(pa.int32())).to_numpy() for name in ("event_date", "known_date"))
    known_day = np.maximum(known_day, index.known_day[item])
    enters, leaves = calendar.steps(event_day, known_day)
    has_vector = item >= 0
    moved = has_vector & calendar.moved(enters, leaves)
    newest = np.full(len(users.dictionary), NEVER, dtype=np.int32)
    of_first = has_vector & (enters == 0) & (leaves > 0)
    np.maximum.at(newest, user[of_first], event_day[of_first])

    counts = np.bincount(user[moved], minlength=len(newest))
    present = np.flatnonzero((counts > 0) | (newest > NEVER) if calendar.backward else counts > 0)
    if not len(present):
        return
    present_ids = users.dictionary.take(pa.array(present))
    group = group_of(buckets_of(present_ids), groups)
    order = np.argsort(group, kind="stable")
    present, present_ids, group = present[order], present_ids.take(pa.array(order)), group[order]
    place = np.zeros(len(newest), dtype=np.int32)
    place[present] = np.arange(len(present), dtype=np.int32)
    by_user = grouped_order(place[user[moved]], len(present))
    offsets = np.concatenate(([0], counts[present].cumsum())).astype(np.int32)

    def lists(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[moved][by_user]))

    columns = {"user_id": present_ids, "newest": pa.array(newest[present]), "items": lists(item)}
    if len(calendar.dates) > 1:
        columns |= {"enters": lists(enters), "leaves": lists(leaves), "days": lists(event_day)}
    packed = pa.RecordBatch.from_pydict(columns)
    bounds = np.flatnonzero(np.diff(group, prepend=-1, append=groups))
    for start, end in itertools.pairwise(bounds.tolist()):
        yield int(group[start]), _to_bytes(packed.slice(start, end - start))


def unpack(blob: bytes) -> pa.RecordBatch:
    """The events of a blob that `pack` wrote."""
    with pa.ipc.open_stream(blob) as reader:
        return reader.read_next_batch()


def grouped_order(keys: np.ndarray, count: int) -> np.ndarray:
    """The order (events,) that sorts `keys`, in [0, count), stably.

    A sparse matrix does a counting sort; numpy's stable sort takes five times as long.
    """
    places = np.arange(len(keys), dtype=np.int32)
    ones = np.ones(len(keys), dtype=np.int8)
    return scipy.sparse.csr_matrix((ones, (keys, places)), shape=(count, max(1, len(keys)))).indices


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _to_bytes(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()

"""Runs the engine on Spark: two stages of tasks, with one shuffle of blobs between them.

The items and their vectors are shipped to each machine once, as files that are mapped into memory. All tasks of a
machine share one copy in memory.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import SparkFiles, TaskContext
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.engine.calendar import Calendar
from jobs.engine.files import Listing, read_pieces
from jobs.engine.items import ItemIndex, ItemVectors
from jobs.engine.packing import BUCKETS, EVENT_COLUMNS, group_buckets, pack, unpack
from jobs.engine.sums import ROWS, snapshot_rows
from jobs.spark.shipping import served_folder
from lte_model.errors import LTEError

EVENTS_OF_A_GROUP = 5_000_000
USERS_OF_A_GROUP = 50_000
"""About the most that a task of the second stage holds at once."""

ROWS_IN_SQL = (
    "user_id STRING, user_bucket INT, vector_sum ARRAY<INT>, event_count INT, newest_event_date DATE, "
    "snapshot_date DATE"
)
_BASE_COLUMNS = ROWS.names[:-1]


@dataclass(frozen=True)
class Shipped:
    """The names of the files of items and vectors, for `SparkFiles.get` in a task."""

    items: str
    units: str

    @staticmethod
    def ship(spark: SparkSession, vectors: ItemVectors) -> "Shipped":
        """Ships the items and their vectors to every machine, as files."""
        name = uuid.uuid4().hex
        shipped = Shipped(f"{name}.arrow", f"{name}.npy")
        table = pa.table({"item_id": vectors.index.item_ids, "known_day": vectors.index.known_day})
        folder = served_folder()
        with pa.OSFile(str(folder / shipped.items), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        np.save(folder / shipped.units, vectors.units)
        for file in (shipped.items, shipped.units):
            spark.sparkContext.addFile(str(folder / file))
        return shipped

    def index(self) -> ItemIndex:
        """The items, mapped into memory."""
        table = pa.ipc.open_file(pa.memory_map(SparkFiles.get(self.items))).read_all().combine_chunks()
        return ItemIndex(table["item_id"].combine_chunks(), table["known_day"].to_numpy())

    def matrix(self) -> np.ndarray:
        """The vectors (items, dimensions) int32, mapped into memory."""
        return np.load(SparkFiles.get(self.units), mmap_mode="r")


def run_engine(
    spark: SparkSession,
    events: Listing,
    condition: pc.Expression,
    base: Listing | None,
    vectors: ItemVectors,
    calendar: Calendar,
) -> DataFrame:
    """The rows of the calendar's made dates, with columns `ROWS_IN_SQL`; lazy.

    `condition` selects rows of `events`; `base` has the files of the base's partition.
    """
    tasks = spark.sparkContext.defaultParallelism
    parts = events.parts(at_least=tasks)
    users = base.records if base else 0
    groups = max(tasks, -(-events.records // EVENTS_OF_A_GROUP), -(-users // USERS_OF_A_GROUP))
    shipped = Shipped.ship(spark, vectors)

    def pack_part(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        index = shipped.index()
        for batch in batches:
            for part in batch["id"].to_pylist():
                for table in read_pieces(parts[part], EVENT_COLUMNS, condition, dictionaries=("user_id", "item_id")):
                    for group, blob in pack(table, calendar, index, groups):
                        yield pa.RecordBatch.from_pydict({"group": pa.array([group], pa.int32()), "blob": [blob]})

    def sum_group(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        blobs = [unpack(blob.as_buffer()) for batch in batches for blob in batch["blob"]]
        task = TaskContext.get()
        if task is None:
            raise LTEError("groups are summed in tasks of Spark alone")
        group = group_buckets(task.partitionId(), groups)
        yield from snapshot_rows(blobs, _rows_of_base(base, group), shipped.matrix(), calendar)

    blobs = spark.range(0, len(parts), 1, max(1, len(parts))).mapInArrow(pack_part, "group INT, blob BINARY")
    return blobs.repartitionById(groups, "group").mapInArrow(sum_group, ROWS_IN_SQL)


def user_bucket() -> Column:
    """The bucket of column `user_id`, equal to `buckets_of` of packing.py."""
    return (F.crc32(F.col("user_id").cast("binary")) % BUCKETS).cast("int")


def _rows_of_base(base: Listing | None, buckets: range) -> pa.Table | None:
    if base is None:
        return None
    inside = (pc.field("user_bucket") >= buckets.start) & (pc.field("user_bucket") < buckets.stop)
    # A task opens only files that may hold its users: opening all would cost more with more users.
    low, high = pl.col("min.user_bucket"), pl.col("max.user_bucket")
    files = base.where(((high >= buckets.start) & (low < buckets.stop)).fill_null(True))
    pieces = [piece for part in files.parts(at_least=1) for piece in part]
    tables = list(read_pieces(pieces, _BASE_COLUMNS, inside))
    return pa.concat_tables(tables) if tables else None

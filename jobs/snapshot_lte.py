"""Makes the LTE snapshots of one date, of every k-th date of a range, or of all dates that a training reads.

LTE(D) of a user is the average of the vectors of the user's events dated in [D−L−W, D−L), known before D, of items
known before D. Ids travel, vectors wait:

1. Spark keeps (user, item index, event day, known day) of the events that any of the dates needs.
2. One shuffle brings a user's events together.
3. Each task counts, for each date, the events of every (user, item) in a sparse matrix and multiplies it once with the
   matrix of item vectors. Both are integers in grid units, so that no order of events, users or tasks can be seen.
"""

import argparse
import datetime
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.bases import ItemVectors, basis_in_force, embedded_items, load_vectors
from jobs.session import spark_session
from jobs.tables import EVENTS, ITEMS, LTE_SNAPSHOTS, Warehouse, dated, sql_text
from lte_model.basis import MAX_EVENTS
from lte_model.errors import LTEError, run
from lte_model.settings import Settings, load_settings
from lte_model.windows import Interval, every, lte_window, parse_date, parse_run_date, training_dates

REPRESENTATION = "uniform"
EPOCH = datetime.date(1970, 1, 1)
USERS_AT_ONCE = 4096
"""Users whose sums a task holds in memory at a time."""

_ROWS = "user_id STRING, vector_sum ARRAY<INT>, event_count INT, newest_event_date DATE, snapshot_date DATE"
_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("vector_sum", pa.list_(pa.int32())),
        ("event_count", pa.int32()),
        ("newest_event_date", pa.date32()),
        ("snapshot_date", pa.date32()),
    ]
)


def snapshots(
    events: DataFrame,
    items: DataFrame,
    vectors: ItemVectors,
    dates: Sequence[datetime.date],
    lag_days: int,
    window_days: int,
) -> DataFrame:
    """The rows of `lte_snapshots` of `dates`, from `events` and the `embedded_items`. A user without events has none.

    Raises `LTEError`, from the task, for a user with more than `MAX_EVENTS` events in a window.
    """
    windows = {date: lte_window(date, lag_days, window_days) for date in dates}
    first, last = min(window.start for window in windows.values()), max(window.end for window in windows.values())
    needed = (
        events.where((F.col("event_date") >= first) & (F.col("event_date") < last))
        # An event is known on or after its own day: this prunes files.
        .where((F.col("known_date") >= first) & (F.col("known_date") < max(dates)))
        .join(F.broadcast(items), "item_id")
        .select(
            "user_id",
            "item_index",
            F.unix_date("event_date").alias("event_day"),
            F.unix_date(F.greatest("known_date", "item_known_date")).alias("known_day"),
        )
    )
    matrix = events.sparkSession.sparkContext.broadcast(vectors.units)

    def sum_vectors(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        received = list(batches)
        if received:
            yield from lte_rows(pa.Table.from_batches(received), matrix.value, windows)

    return (
        needed.repartition("user_id")
        .mapInArrow(sum_vectors, _ROWS)
        .select(
            "*",
            F.lit(lag_days).alias("lag_days"),
            F.lit(window_days).alias("window_days"),
            F.lit(vectors.basis_id).alias("basis_id"),
            F.lit(REPRESENTATION).alias("representation"),
        )
    )


def lte_rows(
    events: pa.Table, units: np.ndarray, windows: Mapping[datetime.date, Interval]
) -> Iterator[pa.RecordBatch]:
    """The snapshot rows of each date of `windows`, from all events of some users.

    `events` has user_id, item_index (a row of `units`), event_day and known_day (days since 1970-01-01); `units`
    (items, dimensions) int32 in grid units. Raises `LTEError` for a user with more than `MAX_EVENTS` in a window.
    """
    for date, window in windows.items():
        event_day = events["event_day"]
        first, end, snapshot_day = ((day - EPOCH).days for day in (window.start, window.end, date))
        inside = pc.and_(pc.greater_equal(event_day, first), pc.less(event_day, end))
        yield from _sums(events.filter(pc.and_(inside, pc.less(events["known_day"], snapshot_day))), units, date)


def _sums(events: pa.Table, units: np.ndarray, date: datetime.date) -> Iterator[pa.RecordBatch]:
    """The snapshot rows of the users of `events`, which holds the events of one window."""
    if not events.num_rows:
        return
    encoded = pc.dictionary_encode(events["user_id"].combine_chunks())
    user = encoded.indices.to_numpy()
    users = encoded.dictionary
    event_count = np.bincount(user, minlength=len(users))
    if event_count.max() > MAX_EVENTS:
        busiest = users[int(event_count.argmax())].as_py()
        raise LTEError(
            f"user {busiest!r} has {event_count.max():,} events in the window of {date}; the sum of more than "
            f"{MAX_EVENTS:,} doesn't fit 32 bits: remove the user from table events, it is no person"
        )
    newest = np.zeros(len(users), dtype=np.int32)
    np.maximum.at(newest, user, events["event_day"].to_numpy())
    counts = scipy.sparse.csr_matrix(
        (np.ones(len(user), dtype=np.int32), (user, events["item_index"].to_numpy())), shape=(len(users), len(units))
    )
    for start in range(0, len(users), USERS_AT_ONCE):
        rows = slice(start, start + USERS_AT_ONCE)
        sums = counts[rows] @ units  # (users, dimensions) int32; `MAX_EVENTS` keeps it from wrapping
        offsets = np.arange(0, sums.size + 1, units.shape[1], dtype=np.int32)
        yield pa.RecordBatch.from_arrays(
            [
                users[rows].cast(pa.string()),
                pa.ListArray.from_arrays(offsets, sums.ravel()),
                pa.array(event_count[rows], pa.int32()),
                pa.array(newest[rows], pa.int32()).cast(pa.date32()),
                pa.repeat(pa.scalar(date, pa.date32()), len(sums)),
            ],
            schema=_SCHEMA,
        )


def uniform_lte_of(basis_id: str) -> str:
    """The SQL condition that an LTE is of this basis and of the representation made here."""
    return f"basis_id = {sql_text(basis_id)} AND representation = {sql_text(REPRESENTATION)}"


def snapshot_lte(warehouse: Warehouse, dates: Sequence[datetime.date]) -> dict[datetime.date, int]:
    """Runs the job for `dates`; returns the users of each. Raises `LTEError` where no date has an event to average."""
    settings = warehouse.settings
    basis_id = basis_in_force(warehouse)
    vectors = load_vectors(warehouse, basis_id)
    rows = snapshots(
        warehouse.read(EVENTS),
        embedded_items(warehouse, vectors, warehouse.read(ITEMS)),
        vectors,
        dates,
        settings.window.lag_days,
        settings.window.window_days,
    ).cache()
    users = {row.snapshot_date: row["count"] for row in rows.groupBy("snapshot_date").count().collect()}
    if not users:
        window = lte_window(max(dates), settings.window.lag_days, settings.window.window_days)
        raise LTEError(
            f"no event is dated in {window}, the window of the snapshot of {max(dates)}; ingest the history with "
            "jobs.ingest_events --since, or take a later date"
        )
    warehouse.replace(LTE_SNAPSHOTS, rows, f"{uniform_lte_of(basis_id)} AND {dated('snapshot_date', dates)}")
    rows.unpersist()
    return {date: users.get(date, 0) for date in dates}


def dates_of(arguments: argparse.Namespace, settings: Settings) -> tuple[datetime.date, ...]:
    """The snapshot dates that the command line asks for."""
    if arguments.start or arguments.end:
        if not (arguments.start and arguments.end) or arguments.date:
            raise LTEError("give --from and --to together, without --date")
        dates = every(arguments.every, parse_date(arguments.start), parse_run_date(arguments.end))
        if not dates:
            raise LTEError(f"no date lies in [{arguments.start}, {arguments.end}); give --from before --to")
        return dates
    if not arguments.date:
        raise LTEError("give --date, or --from and --to")
    date = parse_run_date(arguments.date)
    return training_dates(date, settings.training_set).snapshot_dates if arguments.anchors else (date,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--date", help="the snapshot date")
    parser.add_argument("--anchors", action="store_true", help="every date that the training of --date reads instead")
    parser.add_argument("--from", dest="start", help="the first snapshot date of a range")
    parser.add_argument("--to", dest="end", help="the day after the range")
    parser.add_argument("--every", type=int, default=1, help="days from one snapshot date of the range to the next")
    parser.add_argument("--settings")
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings)
    dates = dates_of(arguments, settings)
    with spark_session(settings, "snapshot_lte") as spark:
        users = snapshot_lte(Warehouse(spark, settings), dates)
    for date in dates:
        window = lte_window(date, settings.window.lag_days, settings.window.window_days)
        print(f"LTE of {date} from the events of {window}: {users[date]:,} users")


if __name__ == "__main__":
    run(main)

"""Makes the LTE snapshots of one date, of every k-th date of a range, or of all dates that a training reads.

LTE(D) of a user is the average of the vectors of the user's events dated in [D−L−W, D−L), known before D, of items
known before D. The job

1. refuses to average over a day that is missing, or was ingested in part;
2. goes on from the nearest snapshot that still is what its inputs give, and reads the days that make the difference;
   where there is none it reads all days, once, however many dates it makes;
3. writes the rows of its dates, and last an account of what they were made from.

The rows are the same bits either way. How they are computed: jobs/engine.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.bases import basis_in_force, load_vectors
from jobs.command_line import JobParser
from jobs.engine.calendar import Calendar
from jobs.engine.files import list_files
from jobs.engine.inputs import Inputs
from jobs.engine.packing import Catalogue
from jobs.engine.plan import choose_plan, days_seen, needed
from jobs.engine.run import run_engine
from jobs.ingest_events import FEED
from jobs.session import spark_session
from jobs.tables import EVENTS, INGESTED_DAYS, LTE_SNAPSHOTS, SNAPSHOT_ACCOUNTS, Warehouse, dated, sql_text
from lte_model.errors import LTEError, run
from lte_model.windows import training_dates

REPRESENTATION = "uniform"


@dataclass(frozen=True)
class Account:
    """A snapshot that was made: from that of `made_from`, or from all events of its window where that is None."""

    snapshot_date: datetime.date
    inputs: str
    made_from: datetime.date | None
    users: int


def uniform_lte_of(basis_id: str) -> str:
    """The SQL condition that an LTE is of this basis and of the representation made here."""
    return f"basis_id = {sql_text(basis_id)} AND representation = {sql_text(REPRESENTATION)}"


def snapshot_lte(warehouse: Warehouse, dates: Sequence[datetime.date], full: bool = False) -> list[Account]:
    """Runs the job for `dates`; with `full` from all events of their windows.

    Raises `LTEError` for a day that is missing or partial, and where no date has an event to average.
    """
    vectors = load_vectors(warehouse, basis_in_force(warehouse))
    inputs = read_inputs(warehouse, vectors.catalogue, vectors.basis_id)
    window = warehouse.settings.window
    there = {} if full else snapshots_there(warehouse, vectors.basis_id)
    plan = choose_plan(
        sorted(set(dates)), window, there, lambda date: inputs.hash(date, window.lag_days, window.window_days)
    )
    calendar = plan.calendar
    events = list_files(warehouse.path(EVENTS))
    inputs.require_complete(events, days_seen(calendar))
    print(plan.reason, flush=True)

    base = None
    if calendar.base is not None:
        base = list_files(warehouse.path(LTE_SNAPSHOTS)).of(partition(vectors.basis_id, calendar.dates[calendar.base]))
    files, condition = needed(events, calendar, vectors.catalogue)
    rows = run_engine(warehouse.spark, files, condition, base, vectors, calendar)
    return write_snapshots(warehouse, rows, calendar, inputs, events.version)


def read_inputs(warehouse: Warehouse, catalogue: Catalogue, basis_id: str) -> Inputs:
    """The accounts of the events that are there, and the items with a vector."""
    warehouse.require(EVENTS, INGESTED_DAYS)
    accounts = (
        pl.scan_delta(warehouse.path(INGESTED_DAYS))
        .filter(pl.col("feed") == FEED)
        .select("known_date", "content_hash", rows=pl.col("rows_kept") - pl.col("rows_erased"))
        .sort("known_date")
        .collect()
    )
    return Inputs(basis_id, accounts, catalogue)


def snapshots_there(warehouse: Warehouse, basis_id: str) -> dict[datetime.date, str]:
    """The dates of the snapshots that are there, and the hash of what each was made from."""
    if not warehouse.exists(SNAPSHOT_ACCOUNTS):
        return {}
    accounts = pl.scan_delta(warehouse.path(SNAPSHOT_ACCOUNTS)).filter(basis_id=basis_id, representation=REPRESENTATION)
    return dict(accounts.select("snapshot_date", "inputs").collect().iter_rows())


def partition(basis_id: str, date: datetime.date) -> dict[str, str]:
    """The partition of `lte_snapshots` that holds the rows of `date`."""
    return {"basis_id": basis_id, "representation": REPRESENTATION, "snapshot_date": str(date)}


def write_snapshots(
    warehouse: Warehouse, rows: DataFrame, calendar: Calendar, inputs: Inputs, events_version: int
) -> list[Account]:
    """Writes the rows of the dates that the calendar makes, and then their accounts, which it returns."""
    basis_id, made_from = inputs.basis_id, None if calendar.base is None else calendar.dates[calendar.base]
    kind = {
        "lag_days": F.lit(calendar.lag_days),
        "window_days": F.lit(calendar.window_days),
        "basis_id": F.lit(basis_id),
        "representation": F.lit(REPRESENTATION),
    }
    of_dates = f"{uniform_lte_of(basis_id)} AND {dated('snapshot_date', calendar.made)}"
    hashes = {date: inputs.hash(date, calendar.lag_days, calendar.window_days) for date in calendar.made}
    there = snapshots_there(warehouse, basis_id)
    if any(there.get(date, hashes[date]) != hashes[date] for date in calendar.made):
        # An account must never stand beside rows that it doesn't describe, wherever the job is killed.
        warehouse.replace(SNAPSHOT_ACCOUNTS, warehouse.read(SNAPSHOT_ACCOUNTS).where("false"), of_dates)
    warehouse.replace(LTE_SNAPSHOTS, rows.withColumns(kind), of_dates)
    written = list_files(warehouse.path(LTE_SNAPSHOTS))
    accounts = [
        Account(date, hashes[date], made_from, written.of(partition(basis_id, date)).records) for date in calendar.made
    ]
    if not any(account.users for account in accounts):
        window = calendar.window(calendar.made[-1])
        raise LTEError(
            f"no event is dated in {window}, the window of the snapshot of {calendar.made[-1]}; ingest the history "
            "with jobs.ingest_events --since, or take a later date"
        )
    frame = warehouse.spark.createDataFrame(
        [(account.snapshot_date, account.inputs, account.made_from, account.users) for account in accounts],
        "snapshot_date DATE, inputs STRING, made_from DATE, users BIGINT",
    )
    frame = frame.withColumns(kind | {"events_version": F.lit(events_version).cast("bigint")})
    warehouse.replace(SNAPSHOT_ACCOUNTS, frame, of_dates)
    return accounts


def main() -> None:
    parser = JobParser(__doc__, "the snapshot date", ranges=True)
    parser.add_argument("--anchors", action="store_true", help="every date that the training of --date reads instead")
    parser.add_argument("--full", action="store_true", help="read all days, even where a snapshot is near")
    arguments, settings, dates = parser.read_dates()
    if arguments.anchors:
        if arguments.start:
            raise LTEError("--anchors are those of one training; give --date, not a range")
        dates = training_dates(*dates, settings.training_set).snapshot_dates
    with spark_session(settings, "snapshot_lte") as spark:
        accounts = snapshot_lte(Warehouse(spark, settings), dates, arguments.full)
    for account in accounts:
        print(f"LTE of {account.snapshot_date}: {account.users:,} users")


if __name__ == "__main__":
    run(main)

"""Publishes the snapshot of `--date` in `lte_live`: the one row per user that a reader of today finds.

Only the rows of users whose LTE may have changed since what is live are written; a user's row says from which date on
it has been as it is. Table `publications` says which date is live. An older snapshot never replaces a newer one, so
that a backfill of past dates leaves what is live alone.
"""

import datetime
from dataclasses import dataclass

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.bases import basis_in_force, load_catalogue
from jobs.command_line import JobParser
from jobs.engine.packing import BUCKETS
from jobs.session import spark_session
from jobs.snapshot_lte import REPRESENTATION, read_inputs, snapshots_there, uniform_lte_of
from jobs.tables import EVENTS, ITEMS, LTE_LIVE, LTE_SNAPSHOTS, PUBLICATIONS, Warehouse, sql_date
from lte_model.errors import LTEError, run
from lte_model.settings import Window
from lte_model.windows import lte_window


@dataclass(frozen=True)
class Publication:
    """A date that is live or was: the hash of what its LTE was made from, the users with one, and the rows written."""

    date: datetime.date
    inputs: str
    users: int
    written_users: int


def touched_users(
    events: DataFrame, items: DataFrame, live: datetime.date, date: datetime.date, window: Window
) -> DataFrame:
    """(user_id) of everyone an event of whom entered an LTE, or left it, after `live` and up to `date`.

    Nobody else's LTE has changed; theirs may have changed and changed back.
    """
    before, now = (lte_window(day, window.lag_days, window.window_days) for day in (live, date))

    def became(column: str, since: datetime.date, until: datetime.date) -> Column:
        return (F.col(column) >= since) & (F.col(column) < until)

    newly = items.where(became("known_date", live, date)).select("item_id", F.lit(True).alias("newly_known"))
    moved = (
        became("event_date", before.start, now.start)
        | became("event_date", before.end, now.end)
        | became("known_date", live, date)
        | F.col("newly_known")
    )
    inside = became("event_date", before.start, now.end)
    return events.where(inside).join(F.broadcast(newly), "item_id", "left").where(moved).select("user_id").distinct()


def publish_lte(warehouse: Warehouse, date: datetime.date) -> Publication:
    """Runs the job. Raises `LTEError` where there is no snapshot of `date`."""
    basis_id, window = basis_in_force(warehouse), warehouse.settings.window
    of_basis = uniform_lte_of(basis_id)
    there = snapshots_there(warehouse, basis_id)
    if date not in there:
        raise LTEError(
            f"table lte_snapshots holds no {REPRESENTATION} LTE of {date} in basis {basis_id}; "
            f"run jobs.snapshot_lte --date {date}"
        )
    live = newest_publication(warehouse, basis_id)
    if live and live.date > date:
        return live
    snapshot = warehouse.read(LTE_SNAPSHOTS).where(f"{of_basis} AND snapshot_date = {sql_date(date)}")
    warehouse.create(LTE_LIVE)
    inputs = read_inputs(warehouse, load_catalogue(warehouse, basis_id), basis_id)
    if live and inputs.hash(live.date, window.lag_days, window.window_days) == live.inputs:
        touched = touched_users(warehouse.read(EVENTS), warehouse.read(ITEMS), live.date, date, window)
        written = merge(warehouse, snapshot, touched, of_basis)
    else:
        warehouse.replace(LTE_LIVE, snapshot, of_basis)
        written = snapshot.count()
    users = warehouse.read(LTE_LIVE).where(of_basis).count()
    published = Publication(date, there[date], users, written)
    record(warehouse, published, basis_id)
    return published


def newest_publication(warehouse: Warehouse, basis_id: str) -> Publication | None:
    """What is live."""
    if not warehouse.exists(PUBLICATIONS):
        return None
    rows = warehouse.read(PUBLICATIONS).where(uniform_lte_of(basis_id)).orderBy(F.desc("snapshot_date"))
    newest = rows.select("snapshot_date", "inputs", "users", "written_users").first()
    return Publication(*newest) if newest else None


def merge(warehouse: Warehouse, snapshot: DataFrame, touched: DataFrame, of_basis: str) -> int:
    """Brings the touched users' rows of `lte_live` to those of the snapshot; returns how many it wrote.

    A user who has no row in the snapshot loses the live one; a row that is the same stays as it is.
    """
    now = touched.join(snapshot, "user_id", "left").withColumn(
        "user_bucket", (F.crc32(F.col("user_id").cast("binary")) % BUCKETS).cast("int")
    )
    columns = warehouse.read(LTE_LIVE).columns
    differs = " OR ".join(
        f"live.{column} <> now.{column}" for column in ("vector_sum", "event_count", "newest_event_date")
    )
    of_live = " AND ".join(f"live.{condition}" for condition in of_basis.split(" AND "))
    done = (
        DeltaTable.forPath(warehouse.spark, warehouse.path(LTE_LIVE))
        .alias("live")
        .merge(
            now.select(*columns).alias("now"),
            f"{of_live} AND live.user_bucket = now.user_bucket AND live.user_id = now.user_id",
        )
        .whenMatchedDelete("now.event_count IS NULL")
        .whenMatchedUpdateAll(differs)
        .whenNotMatchedInsertAll("now.event_count IS NOT NULL")
        .execute()
    )
    return done.first().num_affected_rows


def record(warehouse: Warehouse, published: Publication, basis_id: str) -> None:
    """Writes the publication: from here on its date is live."""
    window = warehouse.settings.window
    row = warehouse.spark.createDataFrame(
        [(published.date, published.inputs, published.users, published.written_users)],
        "snapshot_date DATE, inputs STRING, users BIGINT, written_users BIGINT",
    ).withColumns(
        {
            "lag_days": F.lit(window.lag_days),
            "window_days": F.lit(window.window_days),
            "basis_id": F.lit(basis_id),
            "representation": F.lit(REPRESENTATION),
        }
    )
    of_date = f"{uniform_lte_of(basis_id)} AND snapshot_date = {sql_date(published.date)}"
    warehouse.replace(PUBLICATIONS, row, of_date)


def main() -> None:
    _, settings, date = JobParser(__doc__, "the snapshot date to publish").read()
    with spark_session(settings, "publish_lte") as spark:
        live = publish_lte(Warehouse(spark, settings), date)
    if live.date == date:
        print(f"live: the LTE of {date}, {live.users:,} users, {live.written_users:,} rows written")
    else:
        print(f"live: the LTE of {live.date}, {live.users:,} users; the older {date} leaves it alone")


if __name__ == "__main__":
    run(main)

"""Publishes the snapshot of `--date` in `lte_live`, which holds one current row per user.

The job writes only the rows of users whose LTE may have changed since the live date; a row's `snapshot_date` is the
date since which it is unchanged. It writes all rows if event weights change with the date, or another encoder is used.
Table `publications` records which date is live. An older snapshot never replaces a newer one, so that a backfill
doesn't touch the live rows. Each representation of the settings is published separately in each basis in force. A
representation that reads the days of the targets is refused.
"""

import datetime
import itertools
from dataclasses import dataclass

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.engine.run import user_bucket
from jobs.recipes.bases import basis_in_force, load_index
from jobs.recipes.recipe import Recipe, lte_of, recipe
from jobs.snapshot_lte import read_inputs, snapshots_there
from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse, sql_date
from lte_model.command_line import CommandParser, asked_bases, asked_representations, run
from lte_model.domain.representations import REPRESENTATIONS, UNIFORM, representation
from lte_model.domain.windows import lte_window
from lte_model.errors import LTEError
from lte_model.settings import Window
from lte_model.warehouse.tables import EVENTS, ITEMS, LTE_LIVE, LTE_SNAPSHOTS, PUBLICATIONS


@dataclass(frozen=True)
class Publication:
    """A published date: the hash of its LTE's inputs, the number of users with an LTE, and the rows written."""

    date: datetime.date
    inputs: str
    users: int
    written_users: int


def touched_users(
    events: DataFrame, items: DataFrame, live: datetime.date, date: datetime.date, window: Window
) -> DataFrame:
    """(user_id) of the users with an event that entered or left their LTE after `live` and up to `date`.

    All other users' LTEs are unchanged.
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


def require_publishable(name: str) -> None:
    """Raises `LTEError` for a representation that must not go live."""
    kind = representation(name)
    if not kind.publishable:
        others = ", ".join(other.name for other in REPRESENTATIONS.values() if other.publishable)
        raise LTEError(
            f"representation {name} is never published: {kind.description}. Name others with --representation, or in "
            f"model.representations of the settings: {others}"
        )


def publish_lte(warehouse: Warehouse, date: datetime.date, name: str = UNIFORM, basis_id: str = "") -> Publication:
    """Runs the job for one representation in one basis ("": that of the settings).

    Raises `LTEError` if there is no snapshot of `date`, or the representation must not go live.
    """
    require_publishable(name)
    basis_id, window = basis_in_force(warehouse, basis_id), warehouse.settings.window
    of_basis = lte_of(basis_id, name)
    there = snapshots_there(warehouse, basis_id, name)
    if date not in there:
        raise LTEError(
            f"table lte_snapshots holds no {name} LTE of {date} in basis {basis_id}; "
            f"run jobs.snapshot_lte --date {date} --representation {name}"
        )
    live = newest_publication(warehouse, basis_id, name)
    if live and live.date > date:
        return live
    snapshot = warehouse.read(LTE_SNAPSHOTS).where(f"{of_basis} AND snapshot_date = {sql_date(date)}")
    warehouse.create(LTE_LIVE)
    inputs = read_inputs(warehouse, load_index(warehouse, basis_id), basis_id)
    now = recipe(warehouse, basis_id, name, date)
    before = recipe(warehouse, basis_id, name, live.date) if live else None
    if (
        live
        and before
        and before == now
        and before.hash(inputs, live.date) == live.inputs
        and now.hash(inputs, date) == there[date]
        and now.representation.exact
    ):
        touched = touched_users(warehouse.read(EVENTS), warehouse.read(ITEMS), live.date, date, window)
        written = merge(warehouse, snapshot, touched, of_basis)
    else:
        warehouse.replace(LTE_LIVE, snapshot, of_basis)
        written = snapshot.count()
    users = warehouse.read(LTE_LIVE).where(of_basis).count()
    published = Publication(date, there[date], users, written)
    record(warehouse, published, now)
    return published


def newest_publication(warehouse: Warehouse, basis_id: str, name: str) -> Publication | None:
    """A representation's newest publication; None if there is none."""
    if not warehouse.exists(PUBLICATIONS):
        return None
    rows = warehouse.read(PUBLICATIONS).where(lte_of(basis_id, name)).orderBy(F.desc("snapshot_date"))
    newest = rows.select("snapshot_date", "inputs", "users", "written_users").first()
    return Publication(*newest) if newest else None


def merge(warehouse: Warehouse, snapshot: DataFrame, touched: DataFrame, of_basis: str) -> int:
    """Updates the touched users' rows of `lte_live` from the snapshot; returns the number of rows affected.

    A user without a row in the snapshot loses the live row; an equal row is left unchanged.
    """
    now = touched.join(snapshot, "user_id", "left").withColumn("user_bucket", user_bucket())
    differs = " OR ".join(
        f"live.{column} <> now.{column}" for column in ("vector_sum", "event_count", "newest_event_date")
    )
    of_live = " AND ".join(f"live.{condition}" for condition in of_basis.split(" AND "))
    (done,) = (
        DeltaTable.forPath(warehouse.spark, warehouse.path(LTE_LIVE))
        .alias("live")
        .merge(
            warehouse.as_stored(LTE_LIVE, now).alias("now"),
            f"{of_live} AND live.user_bucket = now.user_bucket AND live.user_id = now.user_id",
        )
        .whenMatchedDelete("now.event_count IS NULL")
        .whenMatchedUpdateAll(differs)
        .whenNotMatchedInsertAll("now.event_count IS NOT NULL")
        .execute()
        .collect()
    )
    return done.num_affected_rows


def record(warehouse: Warehouse, published: Publication, made_by: Recipe) -> None:
    """Writes the publication, which makes its date live."""
    row = warehouse.spark.createDataFrame(
        [(published.date, published.inputs, published.users, published.written_users)],
        "snapshot_date DATE, inputs STRING, users BIGINT, written_users BIGINT",
    ).withColumns(made_by.columns)
    of_date = f"{made_by.condition} AND snapshot_date = {sql_date(published.date)}"
    warehouse.replace(PUBLICATIONS, row, of_date)


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "the snapshot date to publish")
    parser.add_representations("publish this representation")
    parser.add_bases("publish LTEs of this basis")
    arguments, settings, date = parser.read()
    names = asked_representations(arguments, settings)
    for name in names:
        require_publishable(name)
    with spark_session(settings, "publish_lte", date) as spark:
        for basis_id, name in itertools.product(asked_bases(arguments, settings), names):
            live = publish_lte(Warehouse(spark, settings), date, name, basis_id)
            lte = f"the {name} LTE of {live.date}{f' in basis {basis_id}' if basis_id else ''}, {live.users:,} users"
            what = (
                f", {live.written_users:,} rows written" if live.date == date else f"; the older {date} leaves it alone"
            )
            print(f"live: {lte}{what}", flush=True)


if __name__ == "__main__":
    run(main)

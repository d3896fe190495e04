"""Builds the training set of `--date`: each user's newest events before every anchor and both cuts.

    split        snapshot date     sequence                    target
    train        each anchor A     events of [A−L−W, A)        the `target_count` newest, dated in [A−L, A)
    refit        the test cut T    events of [T−L−W, T)        the `target_count` newest, dated in [T−L, T)
    validation   the cut V         events of [V−L−W, V)        the user's first event of the validation days
    test         the cut T         events of [T−L−W, T)        the user's first event of the test days

A sequence holds the newest `max_length` events known before its snapshot date, oldest first, without items that have no
vector. An anchor has a row for each user with an event in [A−L, A). `refit` is one more anchor: a model may train on it
after validation has chosen the model. A cut has a row for each user with a target and an earlier event. One training
set serves every policy, length and representation: a policy that reads no event before D−L takes the `target_count`
newest, and the LTEs of D are in `lte_snapshots`.

If the shop has more users than a training can hold, `training_set.user_share` samples them by the bucket of their id:
the same users for every date and split.

Events of one instant, such as the lines of a basket, are ordered by a hash. If they were ordered by item, the next item
would be easy to guess from the last one, and the first item from nothing.
"""

import datetime
from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.engine.packing import BUCKETS
from jobs.engine.run import user_bucket
from jobs.recipes.bases import basis_in_force
from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse, sql_date
from lte_model.command_line import CommandParser, run
from lte_model.domain.windows import Interval, TrainingDates, lte_window, target_window
from lte_model.errors import LTEError
from lte_model.settings import Window
from lte_model.warehouse.tables import EVENTS, ITEM_EMBEDDINGS, ITEMS, TRAINING_SET

TIE = "_tie"


def in_order(events: DataFrame) -> DataFrame:
    """The events with `_tie`, which orders a user's events of one instant."""
    return events.withColumn(TIE, F.xxhash64("user_id", "item_id", "event_ts"))


def sequences(
    events: DataFrame, items: DataFrame, dates: Sequence[datetime.date], window: Window, max_length: int
) -> DataFrame:
    """Each user's sequence before each date, in one pass over the events.

    (snapshot_date, user_id, item_ids, event_times, target_count, oldest_target_date, history_count), where
    `target_count` is the number of events at the end dated in [D−L, D). `history_count` counts all of the user's
    events in [D−L−W, D), also those that are not in the sequence.
    """
    spans = [
        (date, target_window(date, window.lag_days).start, lte_window(date, window.lag_days, window.window_days).start)
        for date in dates
    ]
    calendar = events.sparkSession.createDataFrame(spans, "snapshot_date DATE, targets_start DATE, history_start DATE")
    seen = (
        (F.col("event_date") >= F.col("history_start"))
        & (F.col("event_date") < F.col("snapshot_date"))
        & (F.col("known_date") < F.col("snapshot_date"))
    )
    step = F.when(F.col("item_known_date") < F.col("snapshot_date"), F.struct("event_ts", TIE, "item_id", "event_date"))
    return (
        in_order(events)
        .join(F.broadcast(items), "item_id", "left")
        .join(F.broadcast(calendar), seen)
        .groupBy("snapshot_date", "targets_start", "user_id")
        .agg(F.sort_array(F.collect_list(step)).alias("all_steps"), F.count("*").cast("int").alias("history_count"))
        .withColumn(
            "steps", F.slice("all_steps", F.greatest(F.size("all_steps") - max_length, F.lit(0)) + 1, max_length)
        )
        .withColumn("targets", F.filter("steps", lambda step: step["event_date"] >= F.col("targets_start")))
        .select(
            "snapshot_date",
            "user_id",
            F.col("steps.item_id").alias("item_ids"),
            F.col("steps.event_ts").alias("event_times"),
            F.size("targets").alias("target_count"),
            F.array_min("targets.event_date").alias("oldest_target_date"),
            "history_count",
        )
    )


def first_events(events: DataFrame, splits: Mapping[str, Interval]) -> DataFrame:
    """Each user's first event of each split's days: (split, snapshot_date, user_id, target_item_id, target_date)."""
    calendar = events.sparkSession.createDataFrame(
        [(split, days.start, days.end) for split, days in splits.items()], "split STRING, snapshot_date DATE, end DATE"
    )
    inside = (F.col("event_date") >= F.col("snapshot_date")) & (F.col("event_date") < F.col("end"))
    return (
        in_order(events)
        .join(F.broadcast(calendar), inside)
        .groupBy("split", "snapshot_date", "user_id")
        .agg(F.min(F.struct("event_ts", TIE, "item_id", "event_date")).alias("first"))
        .select(
            "split",
            "snapshot_date",
            "user_id",
            F.col("first.item_id").alias("target_item_id"),
            F.col("first.event_date").alias("target_date"),
        )
    )


def training_set(
    events: DataFrame, items: DataFrame, dates: TrainingDates, window: Window, max_length: int
) -> DataFrame:
    """The rows of `training_set`, without the columns that are the same in every row.

    `events` are known before the training date; `items` (item_id, item_known_date) have a vector.
    """
    known = sequences(events, items, dates.snapshot_dates, window, max_length)
    # The anchors come before the validation cut; the last date is the test cut.
    split = F.when(F.col("snapshot_date") < dates.test.start, "train").otherwise("refit")
    train = known.where("target_count > 0").withColumns(
        {"split": split, "target_item_id": F.lit(None).cast("string"), "target_date": F.lit(None).cast("date")}
    )
    targets = first_events(events, {"validation": dates.validation, "test": dates.test})
    return train.unionByName(known.join(targets, ["snapshot_date", "user_id"]))


def items_with_vectors(warehouse: Warehouse, basis_id: str) -> DataFrame:
    """(item_id, item_known_date) of the items that have a vector in the basis."""
    embedded = warehouse.read(ITEM_EMBEDDINGS).where(F.col("basis_id") == basis_id).select("item_id")
    return (
        warehouse.read(ITEMS).join(embedded, "item_id").select("item_id", F.col("known_date").alias("item_known_date"))
    )


def build_training_set(warehouse: Warehouse, date: datetime.date) -> dict[tuple[str, datetime.date], int]:
    """Runs the job; returns the number of rows by split and snapshot date."""
    settings = warehouse.settings
    basis_id = basis_in_force(warehouse)
    dates = settings.training_set.dates(date)
    events = warehouse.read(EVENTS).where(F.col("known_date") < date)
    if settings.training_set.user_share < 1:
        events = events.where(user_bucket() < settings.training_set.user_share * BUCKETS)
    rows = (
        training_set(
            events, items_with_vectors(warehouse, basis_id), dates, settings.window, settings.training_set.max_length
        )
        .withColumns(
            {
                "training_date": F.lit(date),
                "lag_days": F.lit(settings.window.lag_days),
                "window_days": F.lit(settings.window.window_days),
                "basis_id": F.lit(basis_id),
            }
        )
        .cache()
    )
    counts = {
        (row.split, row.snapshot_date): row["count"] for row in rows.groupBy("split", "snapshot_date").count().collect()
    }
    for split in ("train", "validation", "test"):
        if not any(found == split for found, _ in counts):
            raise LTEError(
                f"the training set of {date} has no row to {split} with ({describe(dates)}); take a date with more "
                "events before it, or change training_set.anchors and training_set.test_days"
            )
    warehouse.replace(TRAINING_SET, rows, f"training_date = {sql_date(date)}")
    rows.unpersist()
    return counts


def describe(dates: TrainingDates) -> str:
    """A training's dates as readable text."""
    return f"anchors {dates.anchors[0]} to {dates.anchors[-1]}, validation {dates.validation}, test {dates.test}"


def main() -> None:
    """Reads the command line and runs the job."""
    _, settings, date = CommandParser(__doc__, "the day of the training; it sees events known before it").read()
    with spark_session(settings, "build_training_set", date) as spark:
        counts = build_training_set(Warehouse(spark, settings), date)
    print(f"training set of {date}: {describe(settings.training_set.dates(date))}")
    for (split, snapshot_date), rows in sorted(counts.items(), key=lambda entry: entry[0][1]):
        print(f"{split:>10} {snapshot_date}: {rows:,} users")


if __name__ == "__main__":
    run(main)

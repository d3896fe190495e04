"""Counts each item's events before `--date`, or before every date that the training of `--date` reads.

The popularity at D counts, for each item, the events dated in the last 7, 30, 180 and W days before D. Only events
known before D count, as a ranker could know no others on D. An item without events has no row.
"""

import datetime
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse, dated
from lte_model.command_line import CommandParser, run
from lte_model.errors import LTEError
from lte_model.warehouse.tables import EVENTS, ITEM_POPULARITY

FIXED_DAYS = (7, 30, 180)


def item_popularity(events: DataFrame, dates: Sequence[datetime.date], window_days: int) -> DataFrame:
    """The rows of `item_popularity` for `dates`, in one pass over the events."""
    longest = max(*FIXED_DAYS, window_days)
    calendar = events.sparkSession.createDataFrame([(date,) for date in dates], "snapshot_date DATE")
    age = F.date_diff("snapshot_date", "event_date")  # 1 is the day before
    seen = (age >= 1) & (age <= longest) & (F.col("known_date") < F.col("snapshot_date"))

    def within(days: int) -> Column:
        return F.count_if(age <= days).cast("int")

    return (
        events.where(F.col("event_date") >= min(dates) - datetime.timedelta(days=longest))
        .join(F.broadcast(calendar), seen)
        .groupBy("snapshot_date", "item_id")
        .agg(
            *(within(days).alias(f"events_{days}d") for days in FIXED_DAYS),
            within(window_days).alias("events_window"),
        )
    )


def count_popularity(warehouse: Warehouse, dates: Sequence[datetime.date]) -> dict[datetime.date, int]:
    """Runs the job for `dates`; returns each date's number of items. Raises `LTEError` for a date without events."""
    window_days = warehouse.settings.window.window_days
    rows = item_popularity(warehouse.read(EVENTS), dates, window_days).cache()
    items = {row.snapshot_date: row["count"] for row in rows.groupBy("snapshot_date").count().collect()}
    empty = [str(date) for date in dates if date not in items]
    if empty:
        raise LTEError(
            f"table events holds no event of the {max(*FIXED_DAYS, window_days)} days before {', '.join(empty)}; "
            "ingest the history with jobs.ingest_events --since, or take a later date"
        )
    warehouse.replace(ITEM_POPULARITY, rows, dated("snapshot_date", dates))
    rows.unpersist()
    return {date: items[date] for date in dates}


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "the snapshot date")
    parser.add_argument("--anchors", action="store_true", help="every date that the training of --date reads instead")
    arguments, settings, date = parser.read()
    dates = settings.training_set.dates(date).snapshot_dates if arguments.anchors else (date,)
    with spark_session(settings, "count_popularity", *dates) as spark:
        items = count_popularity(Warehouse(spark, settings), dates)
    for counted in dates:
        print(f"popularity as of {counted}: {items[counted]:,} items")


if __name__ == "__main__":
    run(main)

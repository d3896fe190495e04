"""Ingests the events that became known on the day before `--date` from the shop's feed into the table `events`.

`--since` ingests every day from that one on, for the first load of a shop's history. Earlier days that no run has
ingested yet are included, so that runs may start in any order, and after a gap.

An event's known day is the day of its file if the feed has one file a day. Otherwise it is the event's `known_date` if
the feed has that column, else the date of the event. Rows with none of these count on the last day. A run ingests only
the rows of its own days.
"""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.feeds.accounts import (
    COPIES,
    DAY,
    RAW_ROW,
    REASON,
    FeedAccount,
    days_known,
    distinct_rows,
    first_reason,
    with_missing_days,
    write_feed,
)
from jobs.feeds.columns import (
    CORRUPT,
    FILE_DAY,
    NUMBER,
    SOURCE_FILE,
    TEXT,
    TIME,
    day,
    not_a,
    number,
    optional,
    require_columns,
    text,
    time,
    unfit_id,
)
from jobs.feeds.sources import read_source, reading
from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse, sql_date
from lte_model.command_line import CommandParser, run
from lte_model.domain.windows import ONE_DAY, Interval, parse_date
from lte_model.errors import LTEError
from lte_model.settings import Settings
from lte_model.warehouse.tables import EVENTS

FEED = "events"
TYPES = {
    "user_id": TEXT,
    "item_id": TEXT,
    "event_ts": TIME,
    "event_type": TEXT,
    "price": NUMBER,
    "quantity": NUMBER,
    "rating": NUMBER,
    "known_date": TIME,
}
REQUIRED = ("user_id", "item_id", "event_ts")
MEASURES = ("price", "quantity", "rating")


def rows_of(feed: DataFrame, days: Interval) -> DataFrame:
    """The feed's rows that became known in `days`, with `_day`; rows without a day get the last one."""
    said = (day(feed, "known_date"), day(feed, "event_ts"), F.lit(days.end - ONE_DAY))
    known = F.coalesce(optional(feed, FILE_DAY).cast("date"), *said)
    return feed.withColumn(DAY, known).where((F.col(DAY) >= days.start) & (F.col(DAY) < days.end))


def classify(rows: DataFrame) -> DataFrame:
    """The distinct rows with the columns of `events`, and `_reason` where a row can't be kept."""
    feed_columns = [name for name in rows.columns if name not in (DAY, SOURCE_FILE)]
    distinct = distinct_rows(rows, feed_columns)
    event_ts = time(distinct, "event_ts")
    known_date = day(distinct, "known_date")
    return distinct.select(
        text(distinct, "user_id").alias("user_id"),
        text(distinct, "item_id").alias("item_id"),
        event_ts.alias("event_ts"),
        event_ts.cast("date").alias("event_date"),
        text(distinct, "event_type").alias("event_type"),
        *[number(distinct, column).alias(column) for column in MEASURES],
        F.col(DAY).alias("known_date"),
        DAY,
        COPIES,
        SOURCE_FILE,
        RAW_ROW,
        first_reason(
            (F.col(CORRUPT).isNotNull(), "the line cannot be taken apart"),
            *unfit_id(distinct, "user_id"),
            *unfit_id(distinct, "item_id"),
            (event_ts.isNull(), "event_ts is not a time"),
            not_a("time", known_date, distinct, "known_date"),
            (known_date > F.col(DAY), "known_date is after the day of the file"),
            (event_ts.cast("date") > F.col(DAY), "event_ts is after the day on which the event became known"),
            *[not_a("number", number(distinct, column), distinct, column) for column in MEASURES],
        ).alias(REASON),
    )


def ingest_events(warehouse: Warehouse, settings: Settings, days: Interval) -> FeedAccount:
    """Runs the job for events that became known in `days`. Raises `LTEError` if there are none."""
    source = settings.sources.events
    feed = read_source(warehouse.spark, source, days, TYPES)
    require_columns(feed, source, TYPES, REQUIRED)
    rows = rows_of(feed, days)
    with reading(source):
        if rows.isEmpty():
            raise LTEError(
                f"no event became known in {days} in source {source}; if the day's feed is late, run the job again "
                "when it is there"
            )
        classified = classify(rows).cache()
        classified.count()

    def write_kept(kept: DataFrame) -> None:
        known = f"known_date >= {sql_date(days.start)} AND known_date < {sql_date(days.end)}"
        warehouse.replace(EVENTS, kept.repartitionByRange("known_date"), known)

    return write_feed(warehouse, FEED, rows, classified, days, write_kept)


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "the snapshot date that these events are for")
    parser.add_argument("--since", help="ingest every day from this one up to --date")
    arguments, settings, date = parser.read()
    days = days_known(date, parse_date(arguments.since) if arguments.since else None)
    with spark_session(settings, "ingest_events", date) as spark:
        warehouse = Warehouse(spark, settings)
        days = with_missing_days(warehouse, FEED, days)
        account = ingest_events(warehouse, settings, days)
    print(f"events known in {days}: {account}")


if __name__ == "__main__":
    run(main)

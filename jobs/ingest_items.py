"""Merges the shop's catalogue, as it was known before `--date`, into the table `items`.

An item is known from its `known_date` if the feed has that column. Otherwise the items of the first load are known
from the start, and an item that first appears in a later run is known from the day before that run's date.
The earliest known content is kept: an item's vector never changes within a basis.
"""

import datetime

from delta.tables import DeltaTable
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.window import Window

from jobs.feeds.accounts import (
    COPIES,
    DAY,
    RAW_ROW,
    REASON,
    FeedAccount,
    days_known,
    distinct_rows,
    first_reason,
    write_feed,
)
from jobs.feeds.columns import (
    CORRUPT,
    NUMBER,
    SOURCE_FILE,
    TEXT,
    TIME,
    day,
    not_a,
    number,
    require_columns,
    text,
    unfit_id,
)
from jobs.feeds.sources import read_source, reading
from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse
from lte_model.command_line import CommandParser, run
from lte_model.domain.basis import CONTENT_COLUMNS
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.settings import Settings
from lte_model.warehouse.tables import ITEMS

FEED = "items"
TYPES = {"item_id": TEXT, **dict.fromkeys(CONTENT_COLUMNS, TEXT), "price": NUMBER, "known_date": TIME}
REQUIRED = ("item_id", "title")

ALWAYS = datetime.date(1970, 1, 1)
"""The known date of items of the first load, when the feed has no dates."""


def rows_of(feed: DataFrame, date: datetime.date, known_by_default: datetime.date) -> DataFrame:
    """The catalogue's rows known before `date`; each gets the day before `date` as its `_day`."""
    known = F.coalesce(day(feed, "known_date"), F.lit(known_by_default))
    return feed.withColumn("_known", known).where(F.col("_known") < date).withColumn(DAY, F.lit(date - ONE_DAY))


def classify(rows: DataFrame) -> DataFrame:
    """The distinct rows with the columns of `items`, and `_reason` where a row can't be kept.

    If an item has several known dates, the earliest version is written; the later ones still count as kept.
    """
    feed_columns = [name for name in rows.columns if name not in (DAY, SOURCE_FILE)]
    distinct = distinct_rows(rows, feed_columns)
    item_id = text(distinct, "item_id")
    has_content = F.coalesce(*[text(distinct, column) for column in CONTENT_COLUMNS]).isNotNull()
    versions_of_a_day = F.count("*").over(Window.partitionBy(item_id, "_known"))
    return distinct.select(
        item_id.alias("item_id"),
        *[text(distinct, column).alias(column) for column in CONTENT_COLUMNS],
        number(distinct, "price").alias("price"),
        F.col("_known").alias("known_date"),
        DAY,
        COPIES,
        SOURCE_FILE,
        RAW_ROW,
        first_reason(
            (F.col(CORRUPT).isNotNull(), "the line cannot be taken apart"),
            *unfit_id(distinct, "item_id"),
            (~has_content, "the item has no title, description, category or brand"),
            not_a("time", day(distinct, "known_date"), distinct, "known_date"),
            not_a("number", number(distinct, "price"), distinct, "price"),
            (versions_of_a_day > 1, "item_id stands more than once with different content"),
        ).alias(REASON),
    )


def merge_items(warehouse: Warehouse, kept: DataFrame) -> None:
    """Adds new items, and replaces an item's content if an earlier version of it arrives."""
    first = Window.partitionBy("item_id").orderBy("known_date")
    earliest = warehouse.as_stored(ITEMS, kept.withColumn("_version", F.row_number().over(first)).where("_version = 1"))
    target = DeltaTable.forPath(warehouse.spark, warehouse.path(ITEMS))
    (
        target.alias("ours")
        .merge(earliest.alias("theirs"), "ours.item_id = theirs.item_id")
        .whenMatchedUpdateAll("theirs.known_date < ours.known_date")
        .whenNotMatchedInsertAll()
        .execute()
    )


def ingest_items(warehouse: Warehouse, settings: Settings, date: datetime.date) -> FeedAccount:
    """Runs the job for `date`. Raises `LTEError` if the catalogue has no row known before it."""
    source = settings.sources.items
    days = days_known(date, None)
    feed = read_source(warehouse.spark, source, days, TYPES)
    require_columns(feed, source, TYPES, REQUIRED)
    warehouse.create(ITEMS)
    known_by_default = ALWAYS if warehouse.read(ITEMS).isEmpty() else days.start
    rows = rows_of(feed, date, known_by_default)
    with reading(source):
        classified = classify(rows).cache()
        if not classified.count():
            raise LTEError(f"source {source} holds no item known before {date}; check the path and the date")
    return write_feed(warehouse, FEED, rows, classified, days, lambda kept: merge_items(warehouse, kept))


def main() -> None:
    """Reads the command line and runs the job."""
    _, settings, date = CommandParser(__doc__, "the snapshot date that these items are for").read()
    with spark_session(settings, "ingest_items", date) as spark:
        account = ingest_items(Warehouse(spark, settings), settings, date)
    print(f"items known before {date}: {account}")


if __name__ == "__main__":
    run(main)

"""Writes a feed's kept rows, its quarantine, and an account that adds up, for both ingesting jobs.

    rows read = rows kept + rows in quarantine + exact duplicates

An exact duplicate is a row that equals another in every column of its feed. Both jobs tag each row with `_day`, the
day in whose account it counts, and `_reason`, why it can't be kept.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.feeds.columns import CORRUPT, FILE_DAY, SOURCE_FILE, quoted
from jobs.spark.warehouse import Warehouse, sql_date, sql_text
from lte_model.domain.windows import ONE_DAY, Interval, every
from lte_model.errors import LTEError
from lte_model.warehouse.tables import INGESTED_DAYS, QUARANTINE

DAY = "_day"
REASON = "_reason"
COPIES = "_copies"
RAW_ROW = "_raw_row"
"""The raw row: JSON, or the line that could not be parsed."""


@dataclass(frozen=True)
class FeedAccount:
    """The number of rows of a feed over some days, and where they went."""

    rows_read: int
    rows_kept: int
    rows_quarantined: int
    exact_duplicates: int

    def __str__(self) -> str:
        return (
            f"read {self.rows_read:,} = kept {self.rows_kept:,} + quarantined {self.rows_quarantined:,} "
            f"+ exact duplicates {self.exact_duplicates:,}"
        )

    @property
    def adds_up(self) -> bool:
        """Whether every row that was read is kept, in quarantine or a duplicate."""
        return self.rows_read == self.rows_kept + self.rows_quarantined + self.exact_duplicates


def days_known(date: datetime.date, since: datetime.date | None) -> Interval:
    """The days whose rows a run for `date` ingests: the day before it, or every day from `since` on."""
    if since is not None and since >= date:
        raise LTEError(f"--since {since} is not before --date {date}; give an earlier day")
    return Interval(since or date - ONE_DAY, date)


def with_missing_days(warehouse: Warehouse, feed: str, days: Interval) -> Interval:
    """`days`, extended back to the first earlier day without an account, if there is one.

    Runs may therefore come in any order or be skipped: the next run ingests all days missing before its date.
    """
    if not warehouse.exists(INGESTED_DAYS):
        return days
    missing = missing_days(warehouse.read(INGESTED_DAYS), feed, days.start)
    return Interval(min(missing, default=days.start), days.end)


def missing_days(accounts: DataFrame, feed: str, before: datetime.date) -> list[datetime.date]:
    """The days without an account between the feed's first account and `before`, ascending."""
    rows = accounts.where((F.col("feed") == feed) & (F.col("known_date") < before)).select("known_date").collect()
    ingested = {row.known_date for row in rows}
    first = min(ingested, default=before)
    return [day for day in every(1, first, before) if day not in ingested]


def distinct_rows(rows: DataFrame, feed_columns: Sequence[str]) -> DataFrame:
    """One row for each group of rows equal in every column of the feed.

    `_copies` counts the group; `_raw_row` holds the row as text.
    """
    whole = [quoted(column) for column in feed_columns if column not in (CORRUPT, FILE_DAY)]
    return (
        rows.groupBy(DAY, *map(quoted, feed_columns))
        .agg(F.count("*").alias(COPIES), F.min(SOURCE_FILE).alias(SOURCE_FILE))
        .withColumn(RAW_ROW, F.make_valid_utf8(F.coalesce(F.col(CORRUPT), F.to_json(F.struct(*whole)))))
    )


def first_reason(*rules: tuple[Column, str]) -> Column:
    """The reason of the first rule whose condition holds, else null."""
    return F.coalesce(*[F.when(condition, F.lit(reason)) for condition, reason in rules])


def write_feed(
    warehouse: Warehouse,
    feed: str,
    rows: DataFrame,
    classified: DataFrame,
    days: Interval,
    write_kept: Callable[[DataFrame], None],
) -> FeedAccount:
    """Writes the quarantine, then the kept rows, then the account of each day; returns the account of all days.

    `rows` is the feed as read; `classified` has its distinct rows with `_reason`. The account comes last: a day without
    one was not fully ingested.
    """
    of_the_days = (
        f"feed = {sql_text(feed)} AND known_date >= {sql_date(days.start)} AND known_date < {sql_date(days.end)}"
    )
    in_quarantine = classified.where(F.col(REASON).isNotNull()).select(
        F.lit(feed).alias("feed"),
        F.col(DAY).alias("known_date"),
        F.col(REASON).alias("reason"),
        F.col(SOURCE_FILE).alias("source"),
        F.col(RAW_ROW).alias("row"),
    )
    warehouse.replace(QUARANTINE, in_quarantine, of_the_days)
    write_kept(classified.where(F.col(REASON).isNull()))
    accounts = _accounts(feed, rows, classified, days).cache()
    totals = [F.coalesce(F.sum(field.name), F.lit(0)) for field in fields(FeedAccount)]
    (row,) = accounts.agg(*totals).collect()
    account = FeedAccount(*row)
    if not account.adds_up:
        raise LTEError(
            f"feed {feed} of {days}: {account} does not add up; the feed changed under the job: run it again"
        )
    warehouse.replace(INGESTED_DAYS, accounts, of_the_days)
    accounts.unpersist()
    return account


def _accounts(feed: str, rows: DataFrame, classified: DataFrame, days: Interval) -> DataFrame:
    """The rows of `ingested_days` for `days`: one a day, also for a day without rows.

    `content_hash` depends on the kept rows but not on their order. By it, a snapshot detects changed events.
    """
    content = [name for name in classified.columns if name not in (DAY, COPIES, SOURCE_FILE, RAW_ROW, REASON)]
    of_row = F.xxhash64(*content).cast("decimal(20, 0)")
    kept, quarantined, duplicates, content_hash = (
        F.sum(F.when(F.col(REASON).isNull(), 1).otherwise(0)).alias("rows_kept"),
        F.sum(F.when(F.col(REASON).isNotNull(), 1).otherwise(0)).alias("rows_quarantined"),
        F.sum(F.col(COPIES) - 1).alias("exact_duplicates"),
        F.sum(F.when(F.col(REASON).isNull(), of_row)).alias("content_hash"),
    )
    calendar = rows.sparkSession.range(days.days).select(
        F.date_add(F.lit(days.start), F.col("id").cast("int")).alias(DAY)
    )
    return (
        calendar.join(rows.groupBy(DAY).agg(F.count("*").alias("rows_read")), DAY, "left")
        .join(classified.groupBy(DAY).agg(kept, quarantined, duplicates, content_hash), DAY, "left")
        .na.fill(0)
        .select(
            F.lit(feed).alias("feed"),
            F.col(DAY).alias("known_date"),
            F.lit(days.end).alias("ingested_for"),
            *[field.name for field in fields(FeedAccount)],
            F.lit(0).cast("bigint").alias("rows_erased"),
            F.col("content_hash").cast("decimal(38, 0)").alias("content_hash"),
        )
        .coalesce(1)
    )

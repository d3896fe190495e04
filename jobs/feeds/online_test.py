"""Reads the two feeds of an online test, exposures and outcomes, and decides the fate of each row.

Frames of exposures and outcomes have one row for each row of their feed. `fate` says whether the row is part of the
test, and if not, why.
"""

import datetime
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.feeds.accounts import first_reason
from jobs.feeds.columns import (
    CORRUPT,
    FILE_DAY,
    NUMBER,
    SOURCE_FILE,
    TEXT,
    TIME,
    number,
    optional,
    quoted,
    require_columns,
    text,
    time,
)
from jobs.feeds.sources import read_source
from jobs.spark.warehouse import Warehouse
from lte_model.domain.windows import Interval
from lte_model.online_test.statistics import CONTROL, REHEARSED, UNIT

EXPOSURES, OUTCOMES = "exposures", "outcomes"
FATE = "fate"
"""What became of a row. The next three are part of the test."""
FIRST, IN_TEST, BEFORE = "first exposure", "in the test", "in the days before the test"

LARGEST = 1e10
"""The bound on a row's metric: sums of squares of whole units then fit DECIMAL(38)."""


def read_exposures(warehouse: Warehouse, days: Interval) -> DataFrame:
    """The exposures feed on `days`. Raises `LTEError` if a column is missing or can't hold its values."""
    source = warehouse.settings.sources.exposures
    types = {"user_id": TEXT, "variant": TEXT, "exposure_ts": TIME, "test": TEXT}
    feed = read_source(warehouse.spark, source, days, types)
    require_columns(feed, source, types, ("user_id", "variant", "exposure_ts"))
    return feed


def read_outcomes(warehouse: Warehouse, metrics: Sequence[str], days: Interval) -> DataFrame:
    """The outcomes feed on `days`. Raises `LTEError` if a column is missing or can't hold its values."""
    source = warehouse.settings.sources.outcomes
    types = {"user_id": TEXT, "outcome_ts": TIME, **dict.fromkeys(metrics, NUMBER)}
    feed = read_source(warehouse.spark, source, days, types)
    require_columns(feed, source, types, ("user_id", "outcome_ts", *metrics))
    return feed


def days_before(period: Interval) -> Interval:
    """The interval of equal length that ends where the period starts."""
    return Interval(period.start - datetime.timedelta(days=period.days), period.start)


def exposures_by_fate(feed: DataFrame, test: str, period: Interval) -> DataFrame:
    """(user_id, variant, exposed_ts, fate) of every row of the exposures feed."""
    exposed_ts = time(feed, "exposure_ts")
    of_test = text(feed, "test")
    wrong = [
        (F.col(CORRUPT).isNotNull(), "the line cannot be taken apart"),
        (text(feed, "user_id").isNull(), "user_id is missing"),
        (text(feed, "variant").isNull(), "variant is missing"),
        (exposed_ts.isNull(), "exposure_ts is not a time"),
        (exposed_ts >= _midnight(period.end), "after the period"),
    ]
    if "test" in feed.columns:
        wrong = [(of_test.isNull(), "test is missing"), (of_test != test, "of another test"), *wrong]
    rows = feed.select(
        text(feed, "user_id").alias("user_id"),
        text(feed, "variant").alias("variant"),
        exposed_ts.alias("exposed_ts"),
        first_reason(*wrong).alias("wrong"),
    )
    # A user's rows in the test. Of equal times any may come first, since all are of one variant.
    mine = Window.partitionBy("user_id", F.col("wrong").isNull())
    variants, first = F.size(F.collect_set("variant").over(mine)), F.min("exposed_ts").over(mine)
    return rows.select(
        "user_id",
        "variant",
        "exposed_ts",
        F.coalesce(
            "wrong",
            F.when(first < _midnight(period.start), "of a user exposed before the period"),
            F.when(variants > 1, "of a user of several variants"),
            F.when(F.row_number().over(mine.orderBy("exposed_ts")) == 1, FIRST),
            F.lit("later exposure"),
        ).alias(FATE),
    )


def rehearsed_exposures(outcomes: DataFrame, test: str, period: Interval) -> DataFrame:
    """A rehearsal's exposures: each user's first outcome in the period counts as the exposure."""
    whole = outcomes.where(F.col(CORRUPT).isNull())
    rows = whole.select(text(whole, "user_id").alias("user_id"), time(whole, "outcome_ts").alias("exposed_ts"))
    again = F.pmod(F.xxhash64("user_id", F.lit(test)), F.lit(2)) == 1
    return (
        rows.where(_within("exposed_ts", period) & F.col("user_id").isNotNull())
        .groupBy("user_id")
        .agg(F.min("exposed_ts").alias("exposed_ts"))
        .select("user_id", F.when(again, REHEARSED).otherwise(CONTROL).alias("variant"), "exposed_ts", _as(FIRST))
    )


def outcomes_by_fate(feed: DataFrame, exposures: DataFrame, metrics: Sequence[str], period: Interval) -> DataFrame:
    """(user_id, variant, exposed_ts, outcome_ts, each metric in whole units, fate) of every outcomes row.

    A missing metric is 0. Rows equal in every column count once; the others are exact duplicates.
    """
    columns = [quoted(name) for name in feed.columns if name not in (SOURCE_FILE, FILE_DAY)]
    distinct = feed.groupBy(*columns).agg(F.count("*").alias("copies"))
    outcome_ts = time(distinct, "outcome_ts")
    both = Interval(days_before(period).start, period.end)
    wrong = [
        (F.col(CORRUPT).isNotNull(), "the line cannot be taken apart"),
        (text(distinct, "user_id").isNull(), "user_id is missing"),
        (outcome_ts.isNull(), "outcome_ts is not a time"),
    ]
    for metric in metrics:
        value = number(distinct, metric)
        usable = value.isNotNull() & (F.abs(value) < LARGEST)  # NaN is greater than any number
        wrong.append(
            (optional(distinct, metric).isNotNull() & ~usable, f"{metric} is not a number below {LARGEST:.0e}")
        )
    wrong.append((~_within(outcome_ts, both), "outside the period and the days before it"))
    rows = distinct.select(
        text(distinct, "user_id").alias("user_id"),
        outcome_ts.alias("outcome_ts"),
        *[F.coalesce(_whole_units(number(distinct, metric)), F.lit(0)).alias(metric) for metric in metrics],
        "copies",
        first_reason(*wrong).alias("wrong"),
    )
    known = (
        rows.join(exposures.where(F.col(FATE) == FIRST).drop(FATE), "user_id", "left")
        .withColumn(
            FATE,
            F.coalesce(
                "wrong",
                F.when(F.col("variant").isNull(), "of a user who is not in the test"),
                F.when(F.col("outcome_ts") < _midnight(period.start), BEFORE),
                F.when(F.col("outcome_ts") < F.col("exposed_ts"), "before the first exposure"),
                F.lit(IN_TEST),
            ),
        )
        .drop("wrong")
    )
    copies = known.where("copies > 1").select(
        *[name for name in known.columns if name not in ("copies", FATE)],
        F.explode(F.sequence(F.lit(2).cast("bigint"), F.col("copies"))).alias("copies"),
        _as("exact duplicate"),
    )
    return known.unionByName(copies).drop("copies")


def _as(fate: str) -> Column:
    return F.lit(fate).alias(FATE)


def _midnight(day: datetime.date) -> Column:
    return F.lit(day).cast("timestamp")


def _within(at: Column | str, days: Interval) -> Column:
    at = F.col(at) if isinstance(at, str) else at
    return (at >= _midnight(days.start)) & (at < _midnight(days.end))


def _whole_units(value: Column) -> Column:
    return F.when(F.abs(value) < LARGEST, F.round(value * UNIT).cast("bigint"))

"""Makes LTEs with event weights, always in full, because the weights change with the date.

1. Spark sums the weights of each user's events by date, user and item: integers, in units of 2^-12.
2. These pairs are grouped by user. The task of a group multiplies a sparse matrix of weights (users, items) by the item
   vectors, which gives Σ w·E in grid units. Only ids and weights are shuffled.
3. An average is stored as a sum and a count, as in every LTE: the sum is Σ w·E · n / Σ w, rounded to the nearest grid
   unit, half to even, and the count n is the number of events. Readers need not know that events had weights.

Integer arithmetic gives the same result whatever the partitions. Nothing overflows: at most 131,071 < 2^17 events weigh
at most 2^12 each, with components of at most 2^14, so Σ w·E · n is below 2^60.

An erasure changes item counts, and so the weights that inverse_popularity would give other users if it were made again.
Existing snapshots stay.
"""

import datetime
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import scipy.sparse
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from jobs.engine.items import ItemVectors
from jobs.engine.packing import BUCKETS
from jobs.engine.run import EVENTS_OF_A_GROUP, ROWS_IN_SQL, Shipped, user_bucket
from jobs.engine.sums import ROWS, USERS_AT_ONCE, require_countable
from jobs.recipes.recipe import Recipe
from lte_model.domain.representations import INVERSE_POPULARITY, RECENCY
from lte_model.domain.windows import lte_window

SCALE = 2**12
"""The greatest weight of an event. The least is 1: an event in the window always counts."""


def recency_weights(window_days: int, half_life_days: float) -> list[int]:
    """The event weights for ages 1 (the day before D−L) to `window_days`, in days before D−L."""
    return [max(1, round(SCALE * math.exp2(-age / half_life_days))) for age in range(1, window_days + 1)]


def weighted_pairs(
    events: DataFrame, items: DataFrame, dates: Sequence[datetime.date], recipe: Recipe, half_life_days: float
) -> DataFrame:
    """(snapshot_date, user_id, item, weight, event_count, newest_event_date), a row for each date, user and item.

    `events` has (user_id, item_id, event_date, known_date); `items` has (item_id, item, item_known_date), where `item`
    is the row of the item's vector. A date counts only events and items known before it.
    """
    windows = [(date, lte_window(date, recipe.lag_days, recipe.window_days)) for date in dates]
    calendar = events.sparkSession.createDataFrame(
        [(date, window.start, window.end) for date, window in windows],
        "snapshot_date DATE, window_start DATE, window_end DATE",
    )
    inside = (
        (F.col("event_date") >= F.col("window_start"))
        & (F.col("event_date") < F.col("window_end"))
        & (F.col("known_date") < F.col("snapshot_date"))
        & (F.col("item_known_date") < F.col("snapshot_date"))
    )
    # A condition on the dates only, so that Delta skips files of other days.
    near = (F.col("event_date") >= windows[0][1].start) & (F.col("event_date") < windows[-1][1].end)
    pairs = (
        events.where(near & (F.col("known_date") < dates[-1]))
        .join(F.broadcast(items), "item_id")
        .join(F.broadcast(calendar), inside)
        .groupBy("snapshot_date", "user_id", "item")
        .agg(
            F.sum(_weight_of_event(recipe, half_life_days)).alias("weight"),
            F.count("*").alias("event_count"),
            F.max("event_date").alias("newest_event_date"),
        )
    )
    return _by_inverse_popularity(pairs) if recipe.representation.name == INVERSE_POPULARITY else pairs


def _weight_of_event(recipe: Recipe, half_life_days: float) -> Column:
    """The weight as BIGINT. `_by_inverse_popularity` applies the item's factor later, from event counts."""
    if recipe.representation.name != RECENCY:
        return F.lit(1).cast("bigint")
    weights = F.lit(recency_weights(recipe.window_days, half_life_days))
    return F.element_at(weights, F.date_diff("window_end", "event_date")).cast("bigint")


def _by_inverse_popularity(pairs: DataFrame) -> DataFrame:
    """The pairs with event weights 2^12 · √(m/n): n events of the item at the date, m of the rarest item."""
    sold = pairs.groupBy("snapshot_date", "item").agg(F.sum("event_count").alias("sold"))
    rarest = F.min("sold").over(Window.partitionBy("snapshot_date"))
    rounded = F.floor(SCALE * F.sqrt(rarest / F.col("sold")) + 0.5).cast("bigint")
    of_item = sold.select("snapshot_date", "item", F.greatest(rounded, F.lit(1)).alias("item_weight"))
    weighed = pairs.join(F.broadcast(of_item), ["snapshot_date", "item"])
    return weighed.withColumn("weight", F.col("event_count") * F.col("item_weight")).drop("item_weight")


def weighted_rows(pairs: pa.Table, units: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The snapshot rows (`ROWS`) of a group's users, from all of their pairs.

    `units` is (items, dimensions) int64 in grid units. Raises `LTEError` for a user with more than `MAX_EVENTS` events
    in a window.
    """
    if not len(pairs):
        return
    pairs = pairs.sort_by([(name, "ascending") for name in ("snapshot_date", "user_id", "item")]).combine_chunks()
    dates = pairs["snapshot_date"].cast(pa.int32()).to_numpy()
    users = pairs["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    weight, event_count = (pairs[name].to_numpy() for name in ("weight", "event_count"))
    another = (np.diff(dates) != 0) | (np.diff(users) != 0)
    starts = np.concatenate(([0], np.flatnonzero(another) + 1))  # (rows,): the first pair of each snapshot row
    counts = np.add.reduceat(event_count, starts)
    newest = np.maximum.reduceat(pairs["newest_event_date"].cast(pa.int32()).to_numpy(), starts)
    weights = np.add.reduceat(weight, starts)
    named = pairs.select(["user_id", "user_bucket", "snapshot_date"]).take(pa.array(starts))
    require_countable(named["user_id"].combine_chunks(), counts, named["snapshot_date"][int(counts.argmax())].as_py())
    bounds = np.append(starts, len(pairs))
    matrix = scipy.sparse.csr_matrix((weight, pairs["item"].to_numpy(), bounds), shape=(len(starts), len(units)))
    for first in range(0, len(starts), USERS_AT_ONCE):
        block = slice(first, first + USERS_AT_ONCE)
        sums = matrix[block] @ units  # (rows, dimensions)
        vectors = rounded_quotient(sums * counts[block, None], weights[block, None]).astype(np.int32)
        offsets = np.arange(len(vectors) + 1, dtype=np.int32) * units.shape[1]
        of_block = named.slice(first, len(vectors)).combine_chunks()
        yield pa.RecordBatch.from_arrays(
            [
                of_block["user_id"].combine_chunks(),
                of_block["user_bucket"].combine_chunks(),
                pa.ListArray.from_arrays(offsets, vectors.ravel()),
                pa.array(counts[block].astype(np.int32)),
                pa.array(newest[block]).cast(pa.date32()),
                of_block["snapshot_date"].combine_chunks(),
            ],
            schema=ROWS,
        )


def rounded_quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient rounded to integers, half to even; both int64, the denominator positive."""
    quotient, rest = np.divmod(numerator, denominator)
    twice = 2 * rest
    return quotient + ((twice > denominator) | ((twice == denominator) & (quotient % 2 == 1)))


def run_weighted(
    spark: SparkSession,
    events: DataFrame,
    records: int,
    vectors: ItemVectors,
    dates: Sequence[datetime.date],
    recipe: Recipe,
    half_life_days: float,
) -> DataFrame:
    """The snapshot rows of `dates`, ascending, lazily, with the engine's columns.

    `records` is the number of rows of `events`; it decides the number of groups.
    """
    shipped = Shipped.ship(spark, vectors)
    tasks = spark.sparkContext.defaultParallelism
    groups = min(BUCKETS, max(tasks, -(-records * len(dates) // EVENTS_OF_A_GROUP)))
    index = vectors.index
    items = spark.createDataFrame(
        pa.table(
            {
                "item_id": index.item_ids,
                "item": pa.array(np.arange(len(index), dtype=np.int32)),
                "item_known_date": pa.array(index.known_day).cast(pa.date32()),
            }
        )
    )
    bucket = user_bucket()
    pairs = weighted_pairs(events, items, dates, recipe, half_life_days).withColumns(
        {"user_bucket": bucket, "group": F.floor(bucket * groups / BUCKETS).cast("int")}
    )

    def rows_of_group(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tables = [pa.Table.from_batches([batch]) for batch in batches]
        if tables:
            yield from weighted_rows(pa.concat_tables(tables), shipped.matrix().astype(np.int64))

    return pairs.repartitionById(groups, "group").mapInArrow(rows_of_group, ROWS_IN_SQL)

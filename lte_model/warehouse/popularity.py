"""Reads table `item_popularity` as an item bias: one small matrix of counts per date."""

import datetime
from collections.abc import Sequence

import numpy as np
import polars as pl

from lte_model.errors import LTEError

POPULARITY_COUNTS = ("events_7d", "events_30d", "events_window", "events_180d")
"""The counts of `item_popularity` in the item bias, each with a learned scale. New counts go last: a model of an
earlier release reads only the first ones."""


def popularity_matrix(
    counts: pl.LazyFrame, rows: pl.Enum, dates: Sequence[datetime.date], training_date: datetime.date
) -> np.ndarray:
    """log(1 + count) of every item at each of `dates`, (dates, counts, items) float32, each row standardised.

    `counts` is table `item_popularity`; an item without a row counts 0. A softmax ignores a row's mean, and unit
    variance lets one learned scale serve dates with few events and with many. Raises `LTEError` for a date without
    counts, or with the fewer counts of an earlier release.
    """
    older = [count for count in POPULARITY_COUNTS if count not in counts.collect_schema()]
    frame = (
        counts.with_columns(pl.lit(None, pl.Int32).alias(count) for count in older)
        .filter(pl.col("snapshot_date").is_in(list(dates)))
        .select(
            "snapshot_date", pl.col("item_id").cast(rows, strict=False).to_physical().alias("row"), *POPULARITY_COUNTS
        )
        .collect()
    )
    frame = frame.drop_nulls(POPULARITY_COUNTS)
    missing = sorted(set(dates) - set(frame["snapshot_date"].unique()))
    if missing:
        raise LTEError(
            f"item_popularity holds no counts of {', '.join(map(str, missing))}, or those of an earlier release; "
            f"run python -m jobs.count_popularity --date {training_date} --anchors"
        )
    matrix = np.zeros((len(dates), len(POPULARITY_COUNTS), len(rows.categories)), dtype=np.float32)
    frame = frame.drop_nulls("row")
    number = {date: place for place, date in enumerate(dates)}
    date = frame["snapshot_date"].replace_strict(number, return_dtype=pl.Int64).to_numpy()
    for place, count in enumerate(POPULARITY_COUNTS):
        matrix[date, place, frame["row"].to_numpy()] = frame[count].to_numpy()
    return standardised(matrix)


def standardised(counts: np.ndarray) -> np.ndarray:
    """log(1 + `counts`), (…, items) float32, scaled to mean 0 and variance 1 over the items."""
    logarithms = np.log1p(counts, dtype=np.float32)
    logarithms -= logarithms.mean(axis=-1, keepdims=True)
    deviation = logarithms.std(axis=-1, keepdims=True)
    return logarithms / np.where(deviation > 0, deviation, 1)

"""The measurements of an online test for one date, from the tables that `jobs.measure_test` writes."""

import datetime
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from deltalake import DeltaTable

from lte_model.domain.windows import Interval
from lte_model.errors import LTEError
from lte_model.online_test.statistics import SUMS
from lte_model.settings import Settings
from lte_model.warehouse.reading import place_of, scan


@dataclass(frozen=True)
class Measurements:
    """The measurements of a test for one date.

    `sums` are {(variant, metric): (days, 6)} integers, a row per day of `period`. `accounts` are dicts (feed, fate,
    rows, users) that say what became of a feed's rows. `version` is the version of table test_measurements.
    """

    test: str
    date: datetime.date
    period: Interval
    sums: dict[tuple[str, str], np.ndarray]
    accounts: tuple[dict[str, Any], ...]
    version: int


def read_measurements(settings: Settings, date: datetime.date, test: str) -> Measurements:
    """The measurements of a test for a date. Raises `LTEError` where there are none."""
    options = f"--date {date} --test {test} --from … --to …"
    path = place_of(settings, "test_measurements", options)
    of_test = (pl.col("test_name") == test) & (pl.col("measured_for") == date)
    rows = pl.scan_delta(path).filter(of_test).collect()
    if rows.is_empty():
        raise LTEError(f"test {test} has no measurements for {date}; run jobs.measure_test {options} first")
    period = Interval(rows["test_start"][0], rows["test_end"][0])
    metrics = [name for name in settings.online_test.metrics if name in set(rows["metric"])]
    metrics += sorted(set(rows["metric"]) - set(metrics))  # the settings' first metric decides the verdict
    sums = {
        (variant, metric): np.full((period.days, len(SUMS)), 0, dtype=object)
        for variant in sorted(set(rows["variant"]))
        for metric in metrics
    }
    for row in rows.to_dicts():
        sums[row["variant"], row["metric"]][(row["day"] - period.start).days] = [int(row[name]) for name in SUMS]
    accounts = scan(settings, "test_accounts").filter(of_test).sort("feed", "fate").collect()
    return Measurements(
        test,
        date,
        period,
        sums,
        tuple(accounts.select("feed", "fate", "rows", "users").to_dicts()),
        DeltaTable(path).version(),
    )

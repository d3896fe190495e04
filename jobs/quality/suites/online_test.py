"""The rules of an online test's measurements."""

import datetime

import polars as pl
from great_expectations import expectations as gxe

from jobs.quality.suites.rules import CheckedRows, at_least_one_row, later, present
from lte_model.settings import Settings
from lte_model.warehouse.reading import scan


def test_measurements(settings: Settings, date: datetime.date, test: str) -> list[CheckedRows]:
    """The measurements of one online test as of `date`: by day, and summed by variant and metric."""
    keys = ("variant", "metric", "day")
    sums = ("sum_y", "sum_yy", "sum_x", "sum_xx", "sum_xy")
    rows = (
        scan(settings, "test_measurements")
        .filter((pl.col("test_name") == test) & (pl.col("measured_for") == date))
        # pandas has no decimals. The rules check signs and orders, for which floats suffice.
        .select(*keys, "test_start", "test_end", "users", pl.col(*sums).cast(pl.Float64))
    )
    spread = pl.col("users") * pl.col("sum_yy") - pl.col("sum_y").pow(2)
    totals = (
        rows.group_by("variant", "metric")
        .agg(pl.col("users", *sums).sum())
        .with_columns(spread=(spread / (pl.col("users") * pl.col("sum_yy")).clip(lower_bound=1)))
    )
    metrics = totals.group_by("metric").agg(variants=pl.len())
    divisions = totals.group_by("variant").agg(user_counts=pl.col("users").n_unique())
    return [
        CheckedRows(
            "test_measurements",
            rows,
            keys,
            (
                at_least_one_row(),
                *present(*keys, "users", *sums),
                gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
                gxe.ExpectColumnValuesToBeBetween(column="users", min_value=0),
                later("day", "test_start", or_equal=True),
                later("test_end", "day"),
            ),
        ),
        CheckedRows(
            "test_measurements_totals",
            totals,
            ("variant", "metric"),
            (
                gxe.ExpectColumnValuesToBeBetween(column="users", min_value=2),
                gxe.ExpectColumnValuesToBeBetween(column="sum_xx", min_value=0),
                # A variance is at least 0, up to rounding.
                gxe.ExpectColumnValuesToBeBetween(column="spread", min_value=-1e-9),
            ),
        ),
        CheckedRows(
            "test_measurements_metrics",
            metrics,
            ("metric",),
            (gxe.ExpectColumnValuesToBeBetween(column="variants", min_value=2),),
        ),
        CheckedRows(
            "test_measurements_variants",
            divisions,
            ("variant",),
            (gxe.ExpectColumnValuesToBeInSet(column="user_counts", value_set=[1]),),
        ),
    ]

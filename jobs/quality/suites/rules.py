"""What must hold of each table, as Great Expectations suites, and the rows that they look at.

A batch is a frame of the checked rows with a few derived columns; vectors never enter it, only their length and norm.
Each suite is built for one date, so that a rule can name the very day: the leak rule says that the newest event in the
snapshot of D is dated before D−L.
"""

from dataclasses import dataclass

import polars as pl
from deltalake import DeltaTable
from great_expectations import expectations as gxe
from great_expectations.expectations.expectation import Expectation

from lte_model.errors import LTEError
from lte_model.settings import Settings


@dataclass(frozen=True)
class Batch:
    """Rows of one table and one date, and the rules for them. `keys` name a row where it breaks one."""

    name: str
    rows: pl.LazyFrame
    keys: tuple[str, ...]
    rules: tuple[Expectation, ...]


def scan(settings: Settings, table: str) -> pl.LazyFrame:
    """The table's rows, read without a JVM. Raises `LTEError` where the table isn't there."""
    path = settings.table_path(table)
    if not DeltaTable.is_deltatable(path):
        raise LTEError(f"table {table} does not exist at {path}; run the job that writes it")
    return pl.scan_delta(path)


def present(*columns: str) -> list[Expectation]:
    return [gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns]


def at_least_one_row() -> Expectation:
    return gxe.ExpectTableRowCountToBeBetween(min_value=1)


def later(column: str, than: str, or_equal: bool = False) -> Expectation:
    """One value, mostly a date, is after another.

    A missing one is not compared; `present` asks for it where it must be there.
    """
    return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A=column, column_B=than, or_equal=or_equal, ignore_row_if="either_value_is_missing"
    )


def first_value(rows: pl.LazyFrame, column: str) -> list[object]:
    """The value of the first row; every other row must have it too."""
    return rows.select(column).head(1).collect()[column].to_list()

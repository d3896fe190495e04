"""What must hold of each table, as Great Expectations suites, and the rows that they look at.

A batch is a frame of the checked rows with a few derived columns; vectors never enter it, only their length and norm.
Each suite is built for one date, so that a rule can name the very day: the leak rule says that the newest event in the
snapshot of D is dated before D−L.
"""

from dataclasses import dataclass

import polars as pl
from great_expectations import expectations as gxe
from great_expectations.expectations.expectation import Expectation


@dataclass(frozen=True)
class CheckedRows:
    """Rows of one table and one date, and the rules for them. `keys` name a row where it breaks one."""

    name: str
    rows: pl.LazyFrame
    keys: tuple[str, ...]
    rules: tuple[Expectation, ...]


def present(*columns: str) -> list[Expectation]:
    """Each of the columns has a value in every row."""
    return [gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns]


def at_least_one_row() -> Expectation:
    """There is a row."""
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

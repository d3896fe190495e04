"""The building blocks of the tables' Great Expectations suites, and the rows that a suite checks.

A batch is a frame of the checked rows with a few derived columns: not vectors, only their length and norm. Each suite
is built for one date, so that a rule can use it: the leak rule says that the newest event in the snapshot of D is
dated before D−L.
"""

from dataclasses import dataclass

import polars as pl
from great_expectations import expectations as gxe
from great_expectations.expectations.expectation import Expectation


@dataclass(frozen=True)
class CheckedRows:
    """Rows of one table and date, and their rules. `keys` are the columns that identify a row in a report."""

    name: str
    rows: pl.LazyFrame
    keys: tuple[str, ...]
    rules: tuple[Expectation, ...]


def present(*columns: str) -> list[Expectation]:
    """Every row has a value in each of the columns."""
    return [gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns]


def at_least_one_row() -> Expectation:
    """The rule that there is at least one row."""
    return gxe.ExpectTableRowCountToBeBetween(min_value=1)


def later(column: str, than: str, or_equal: bool = False) -> Expectation:
    """The rule that a value of `column`, mostly a date, is after that of `than`.

    Missing values are not compared; `present` requires them.
    """
    return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A=column, column_B=than, or_equal=or_equal, ignore_row_if="either_value_is_missing"
    )


def first_value(rows: pl.LazyFrame, column: str) -> list[object]:
    """The first row's value, for a rule that every other row has it too."""
    return rows.select(column).head(1).collect()[column].to_list()

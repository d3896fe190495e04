"""The columns of a feed: which types hold their values, what a value must be, and why one can't be kept.

Each function takes the frame of a feed as `jobs.feeds.sources.read_source` returns it, and returns columns of it. What
can't be read as the type that it should have is null, for `first_reason` of jobs/feeds/accounts.py to name.
"""

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from lte_model.errors import LTEError

SOURCE_FILE = "_source_file"
CORRUPT = "_corrupt_row"
FILE_DAY = "_file_day"
OURS = (SOURCE_FILE, FILE_DAY, "_day", "_known", "_reason", "_copies", "_raw_row", "_metadata")
"""Names that a feed's columns can't have."""

LONGEST_ID = 1024
"""Characters. An item's id stands in the list of every user whom it is recommended to."""
NOT_IN_AN_ID = "[\\x00-\\x1F\\x7F\\uFEFF]"
"""Control characters and the byte order mark: no list of ids, a line each, could name such an id."""
REPLACED = "\N{REPLACEMENT CHARACTER}"
"""What stands where bytes were no UTF-8. Different ids may have become the same one by it."""

FULL_DATE = r"^\s*\d{4}-\d{1,2}-\d{1,2}([T\s].*)?$"
"""Text that can be a time. Spark would also read 2024 as New Year's Day, and 12:00 and now as of the run's own day."""
TIMES = ("1678-01-01", "2262-01-01")
"""Times lie in between: readers of a Parquet file may count nanoseconds in 64 bits."""

TEXT = (T.StringType, T.IntegerType, T.LongType, T.ShortType)
NUMBER = (T.StringType, T.DoubleType, T.FloatType, T.IntegerType, T.LongType, T.ShortType, T.DecimalType)
TIME = (T.StringType, T.TimestampType, T.TimestampNTZType, T.DateType)


def require_columns(
    frame: DataFrame, source: str, types: Mapping[str, Sequence[type[T.DataType]]], required: Sequence[str]
) -> None:
    """Raises `LTEError` where a required column is missing, or a column has a type that can't hold its values."""
    present = {field.name: field.dataType for field in frame.schema}
    for column in required:
        if column not in present:
            ours = [name for name in present if name not in (SOURCE_FILE, CORRUPT, FILE_DAY)]
            raise LTEError(f"source {source} has no column {column!r}; it has {', '.join(ours)}")
    for column, accepted in types.items():
        if column in present and not isinstance(present[column], tuple(accepted)):
            raise LTEError(
                f"column {column!r} of source {source} has type {present[column].simpleString()}; "
                f"give {' or '.join(sorted({kind.typeName() for kind in accepted}))}"
            )


def quoted(column: str) -> Column:
    """The column of a feed, whatever its name: a dot in it is no way into a struct."""
    return F.col(f"`{column.replace('`', '``')}`")


def optional(frame: DataFrame, column: str) -> Column:
    """The column, or null where the source has none."""
    return F.col(column) if column in frame.columns else F.lit(None).cast("string")


def text(frame: DataFrame, column: str) -> Column:
    """The column as text without surrounding space; null where that leaves nothing."""
    return F.nullif(F.trim(F.make_valid_utf8(optional(frame, column).cast("string"))), F.lit(""))


def unfit_id(frame: DataFrame, column: str) -> list[tuple[Column, str]]:
    """Why a value of the column is no id, with the condition of each reason."""
    value = text(frame, column)
    return [
        (value.isNull(), f"{column} is missing"),
        (F.contains(value, F.lit(REPLACED)), f"{column} is not UTF-8"),
        (value.rlike(NOT_IN_AN_ID), f"{column} holds a control character"),
        (F.length(value) > LONGEST_ID, f"{column} is longer than {LONGEST_ID:,} characters"),
    ]


def number(frame: DataFrame, column: str) -> Column:
    """The column as a double; null where it isn't a number, and where it is infinite."""
    value = optional(frame, column).try_cast("double")
    return F.when(F.abs(value) < float("inf"), value)  # NaN is greater than any number


def not_a(what: str, value: Column, frame: DataFrame, column: str) -> tuple[Column, str]:
    """The condition that the column says something of which `value` could not be made, and the reason."""
    return text(frame, column).isNotNull() & value.isNull(), f"{column} is not a {what}"


def time(frame: DataFrame, column: str) -> Column:
    """The column as a timestamp, read as UTC where it names no zone; null where it isn't one."""
    value = optional(frame, column)
    if isinstance(frame.select(value).schema[0].dataType, T.StringType):
        value = F.when(value.rlike(FULL_DATE), value)
    value = value.try_cast("timestamp")
    first, end = (F.lit(date).cast("timestamp") for date in TIMES)
    return F.when((value >= first) & (value < end), value)


def day(frame: DataFrame, column: str) -> Column:
    """The column as a date of UTC; null where it isn't one."""
    return time(frame, column).cast("date")

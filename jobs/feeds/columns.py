"""Parses the columns of a feed: their accepted types, their valid values, and the reasons to reject one.

The functions take a frame that `jobs.feeds.sources.read_source` returned, and return columns of it. A value that can't
be parsed becomes null, and `first_reason` of jobs/feeds/accounts.py gives the reason.
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
"""In characters. An item's id is repeated for every user whom it is recommended to."""
NOT_IN_AN_ID = "[\\x00-\\x1F\\x7F\\uFEFF]"
"""Control characters and the byte order mark: a list with one id per line couldn't name such an id."""
REPLACED = "\N{REPLACEMENT CHARACTER}"
"""Replaces bytes that aren't UTF-8. Different ids may become equal by it."""

FULL_DATE = r"^\s*\d{4}-\d{1,2}-\d{1,2}([T\s].*)?$"
"""Text that can be a time. Spark would also parse 2024 (New Year's Day), 12:00 and now (the run's day)."""
TIMES = ("1678-01-01", "2262-01-01")
"""The range of valid times: readers of a Parquet file may count nanoseconds in 64 bits."""

TEXT = (T.StringType, T.IntegerType, T.LongType, T.ShortType)
NUMBER = (T.StringType, T.DoubleType, T.FloatType, T.IntegerType, T.LongType, T.ShortType, T.DecimalType)
TIME = (T.StringType, T.TimestampType, T.TimestampNTZType, T.DateType)


def require_columns(
    frame: DataFrame, source: str, types: Mapping[str, Sequence[type[T.DataType]]], required: Sequence[str]
) -> None:
    """Raises `LTEError` if a required column is missing, or a column's type can't hold its values."""
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
    """A feed's column by any name; a dot in it doesn't select a struct's field."""
    return F.col(f"`{column.replace('`', '``')}`")


def optional(frame: DataFrame, column: str) -> Column:
    """The column, or null if the source has none."""
    return F.col(column) if column in frame.columns else F.lit(None).cast("string")


def text(frame: DataFrame, column: str) -> Column:
    """The column as text without surrounding spaces; null if nothing is left."""
    return F.nullif(F.trim(F.make_valid_utf8(optional(frame, column).cast("string"))), F.lit(""))


def unfit_id(frame: DataFrame, column: str) -> list[tuple[Column, str]]:
    """The conditions under which a value isn't an id, each with its reason."""
    value = text(frame, column)
    return [
        (value.isNull(), f"{column} is missing"),
        (F.contains(value, F.lit(REPLACED)), f"{column} is not UTF-8"),
        (value.rlike(NOT_IN_AN_ID), f"{column} holds a control character"),
        (F.length(value) > LONGEST_ID, f"{column} is longer than {LONGEST_ID:,} characters"),
    ]


def number(frame: DataFrame, column: str) -> Column:
    """The column as a double; null if it is infinite or not a number."""
    value = optional(frame, column).try_cast("double")
    return F.when(F.abs(value) < float("inf"), value)  # NaN is greater than any number


def not_a(what: str, value: Column, frame: DataFrame, column: str) -> tuple[Column, str]:
    """The condition that the column has text but its parsed `value` is null, and the reason."""
    return text(frame, column).isNotNull() & value.isNull(), f"{column} is not a {what}"


def time(frame: DataFrame, column: str) -> Column:
    """The column as a timestamp, in UTC if it names no zone; null if it isn't one."""
    value = optional(frame, column)
    if isinstance(frame.select(value).schema[0].dataType, T.StringType):
        value = F.when(value.rlike(FULL_DATE), value)
    value = value.try_cast("timestamp")
    first, end = (F.lit(date).cast("timestamp") for date in TIMES)
    return F.when((value >= first) & (value < end), value)


def day(frame: DataFrame, column: str) -> Column:
    """The column as a UTC date; null if it isn't a time."""
    return time(frame, column).cast("date")

"""Reading a shop's feed: Parquet, CSV, JSON lines or Delta; a path, any Hadoop URL, or a table of the catalogue.

A source in the settings is `table:shop.events`, or a path or URL. `{date}` in a path stands for the day on which the
rows became known, for feeds that are delivered as a file or folder a day: every day that is asked for must be there.
A folder is read as Delta where it holds a Delta log, else by the ending of its name, else as Parquet.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from lte_model.errors import LTEError
from lte_model.windows import Interval, every

CATALOGUE = "table:"
DATE = "{date}"
SOURCE_FILE = "_source_file"
CORRUPT = "_corrupt_row"

TEXT = (T.StringType, T.IntegerType, T.LongType, T.ShortType)
NUMBER = (T.StringType, T.DoubleType, T.FloatType, T.IntegerType, T.LongType, T.ShortType, T.DecimalType)
TIME = (T.StringType, T.TimestampType, T.TimestampNTZType, T.DateType)


def read_source(spark: SparkSession, source: str, days: Interval) -> DataFrame:
    """The feed's rows as they are, of the files of `days` where it has files a day, and two columns of ours.

    `_source_file` is the file of the row; `_corrupt_row` is the text of a CSV or JSON line that could not be taken
    apart, else null. Raises `LTEError` where the source isn't there or can't be read.
    """
    if DATE in source:
        places = [source.replace(DATE, day.isoformat()) for day in every(1, days.start, days.end)]
    else:
        places = [source]
    with reading(source):
        if source.startswith(CATALOGUE):
            return spark.table(source.removeprefix(CATALOGUE)).withColumns(
                {SOURCE_FILE: F.lit(source), CORRUPT: F.lit(None).cast("string")}
            )
        frame = _read_files(spark, places)
        if CORRUPT not in frame.columns:
            frame = frame.withColumn(CORRUPT, F.lit(None).cast("string"))
        return frame.withColumn(SOURCE_FILE, F.col("_metadata.file_path"))


def _read_files(spark: SparkSession, places: list[str]) -> DataFrame:
    name = places[0].rstrip("/").removesuffix(".gz")
    if _holds_delta_log(spark, places[0]):
        tables = [spark.read.format("delta").load(place) for place in places]
        return reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), tables)
    if name.endswith(".csv"):
        # As RFC 4180 has it: a quote inside quotes is doubled, and a quoted field may run over lines.
        lines = spark.read.options(header=True, escape='"', multiLine=True, columnNameOfCorruptRecord=CORRUPT)
        header = lines.csv(places[0]).schema
        # Only a schema that has the column keeps the lines that don't fit the header.
        return lines.schema(T.StructType([*header.fields, T.StructField(CORRUPT, T.StringType())])).csv(places)
    if name.endswith((".json", ".jsonl")):
        # Numbers as text too: an id such as 007 must not lose its zeros to a guess.
        return spark.read.options(columnNameOfCorruptRecord=CORRUPT, primitivesAsString=True).json(places)
    return spark.read.option("mergeSchema", len(places) > 1).parquet(*places)


def _holds_delta_log(spark: SparkSession, place: str) -> bool:
    log = spark.sparkContext._jvm.org.apache.hadoop.fs.Path(f"{place.rstrip('/')}/_delta_log")
    return log.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration()).exists(log)


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Turns what Spark says of an unreadable source into one line that names it."""
    try:
        yield
    except (PySparkException, Py4JError) as error:
        causes = [line for line in str(error).splitlines() if line.strip()]
        detail = next((line for line in causes if "Exception" in line or "[" in line), causes[0])
        raise LTEError(f"source {place} cannot be read: {detail[:300]}; check the path and the file") from None


def require_columns(
    frame: DataFrame, source: str, types: Mapping[str, Sequence[type]], required: Sequence[str]
) -> None:
    """Raises `LTEError` where a required column is missing, or a column has a type that can't hold its values."""
    present = {field.name: field.dataType for field in frame.schema}
    for column in required:
        if column not in present:
            ours = [name for name in present if name not in (SOURCE_FILE, CORRUPT)]
            raise LTEError(f"source {source} has no column {column!r}; it has {', '.join(ours)}")
    for column, accepted in types.items():
        if column in present and not isinstance(present[column], tuple(accepted)):
            raise LTEError(
                f"column {column!r} of source {source} has type {present[column].simpleString()}; "
                f"give {' or '.join(sorted({kind.typeName() for kind in accepted}))}"
            )


def optional(frame: DataFrame, column: str) -> Column:
    """The column, or null where the source has none."""
    return F.col(column) if column in frame.columns else F.lit(None).cast("string")


def text(frame: DataFrame, column: str) -> Column:
    """The column as text without surrounding space; null where that leaves nothing."""
    return F.nullif(F.trim(optional(frame, column).cast("string")), F.lit(""))


def number(frame: DataFrame, column: str) -> Column:
    """The column as a double; null where it isn't a number."""
    return optional(frame, column).try_cast("double")


def time(frame: DataFrame, column: str) -> Column:
    """The column as a timestamp, read as UTC where it names no zone; null where it isn't one."""
    return optional(frame, column).try_cast("timestamp")


def day(frame: DataFrame, column: str) -> Column:
    """The column as a date of UTC; null where it isn't one."""
    return optional(frame, column).try_cast("timestamp").cast("date")

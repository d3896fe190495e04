"""Reads a shop's feed: Parquet, CSV, JSON lines or Delta, from a path, a Hadoop URL or a catalogue table.

A source in the settings is a table, such as `table:shop.events`, or a path or URL. `{date}` in a path is the day on
which rows became known, for feeds with a file or folder a day; every requested day must exist. A folder is read as
Delta if it holds a Delta log, else by the ending of its name, else as Parquet. The case of the pipeline's columns is
ignored. The feed's other columns are kept as they are; exact duplicates are equal in these too.
"""

import re
import urllib.parse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs.feeds.columns import CORRUPT, FILE_DAY, OURS, SOURCE_FILE, quoted
from jobs.spark.session import hadoop_files
from lte_model.domain.windows import Interval, every
from lte_model.errors import LTEError

CATALOGUE = "table:"
DATE = "{date}"


def read_source(spark: SparkSession, source: str, days: Interval, columns: Iterable[str]) -> DataFrame:
    """The feed's raw rows, from the files of `days` if it has one file a day, with added columns.

    `_source_file` is the row's file. `_corrupt_row` is the text of a CSV or JSON line that could not be parsed, whose
    other columns are null; for all other rows it is null. A feed with one file a day has `_file_day`, the day of the
    row's file. `columns` that the feed writes in another case are renamed. Raises `LTEError` if the source doesn't
    exist or can't be read.
    """
    if DATE in source:
        places = [source.replace(DATE, day.isoformat()) for day in every(1, days.start, days.end)]
    else:
        places = [source]
    with reading(source):
        if source.startswith(CATALOGUE):
            return _with_ours(spark.table(source.removeprefix(CATALOGUE)), source, columns, F.lit(source))
        file = F.col("_metadata.file_path")
        frames = [_with_ours(frame, source, columns, file) for frame in _read_files(spark, places)]
    return reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), frames)


def _with_ours(frame: DataFrame, source: str, columns: Iterable[str], file: Column) -> DataFrame:
    """The frame with `columns` renamed to our case, and with the added columns."""
    written = {name.lower(): name for name in frame.columns}
    reserved = [written[name] for name in OURS if name in written]
    if reserved:
        raise LTEError(f"column {reserved[0]!r} of source {source} has a name that ingesting needs; rename it")
    frame = frame.withColumnsRenamed({written[name]: name for name in columns if name in written})
    ours = {SOURCE_FILE: file}
    if CORRUPT in frame.columns:
        # No value of a broken line is used: not its date, nor an id, which may be another row's.
        whole = F.col(CORRUPT).isNull()
        ours |= {name: F.when(whole, quoted(name)) for name in frame.columns if name != CORRUPT}
    else:
        ours[CORRUPT] = F.lit(None).cast("string")
    if DATE in source:
        ours[FILE_DAY] = _day_of_file(source)
    return frame.withColumns(ours)


def _day_of_file(source: str) -> Column:
    """The day in the row's path, where the source has {date}."""
    segment = next(part for part in source.split("/") if DATE in part)
    escaped = re.escape(urllib.parse.quote(segment, safe="!$&'()*+,;=:@{}"))
    place = "/" + escaped.replace(re.escape(DATE), r"(\d{4}-\d{2}-\d{2})") + "(/|$)"
    return F.regexp_extract("_metadata.file_path", place, 1).try_cast("date")


def _read_files(spark: SparkSession, places: list[str]) -> list[DataFrame]:
    name = places[0].rstrip("/").removesuffix(".gz")
    if _holds_delta_log(spark, places[0]):
        return [spark.read.format("delta").load(place) for place in places]
    if name.endswith(".csv"):
        return [_read_csv(spark, alike, header) for header, alike in _by_header(spark, places).items()]
    if name.endswith((".json", ".jsonl")):
        # Read numbers as text: an id such as 007 must not lose its zeros to type inference.
        lines = spark.read.options(columnNameOfCorruptRecord=CORRUPT, primitivesAsString=True).json(places)
        # Spark parses only the columns that a query reads, and finds a broken line only there. This filter reads all
        # columns, so that every query sees the same lines as broken.
        return [lines.where(F.to_json(F.struct("*")).isNotNull())]
    return [spark.read.option("mergeSchema", len(places) > 1).parquet(*places)]


def _read_csv(spark: SparkSession, places: list[str], header: tuple[str, ...]) -> DataFrame:
    # Spark keeps lines that don't fit the header only if the schema has the corrupt column.
    schema = T.StructType([T.StructField(name, T.StringType()) for name in (*header, CORRUPT)])
    # Files in a folder have a header each, and all must match. A single file's header is the given one, even if Spark
    # had to make up a name.
    one_file_each = all(_is_file(spark, place) for place in places)
    return _csv_lines(spark).options(enforceSchema=one_file_each).schema(schema).csv(places)


def _by_header(spark: SparkSession, places: list[str]) -> dict[tuple[str, ...], list[str]]:
    """The files grouped by their column names, which may differ in order and content from day to day."""
    found: dict[tuple[str, ...], list[str]] = {}
    for place in places:
        found.setdefault(tuple(_csv_lines(spark).csv(place).columns), []).append(place)
    return found


def _csv_lines(spark: SparkSession) -> DataFrameReader:
    # RFC 4180: a quote inside quotes is doubled, and a quoted field may span lines.
    return spark.read.options(header=True, escape='"', multiLine=True, columnNameOfCorruptRecord=CORRUPT)


def _holds_delta_log(spark: SparkSession, place: str) -> bool:
    files, log = hadoop_files(spark, f"{place.rstrip('/')}/_delta_log")
    return files.exists(log)


def _is_file(spark: SparkSession, place: str) -> bool:
    files, path = hadoop_files(spark, place)
    return files.isFile(path)


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Turns Spark's errors about an unreadable source into an `LTEError` of one line that names it."""
    try:
        yield
    except (PySparkException, Py4JError) as error:
        causes = [line for line in str(error).splitlines() if line.strip()]
        detail = next((line for line in causes if "Exception" in line or "[" in line), causes[0])
        advice = "write times in microseconds" if "NANOS" in detail else "check the path and the file"
        raise LTEError(f"source {place} cannot be read: {detail[:300]}; {advice}") from None

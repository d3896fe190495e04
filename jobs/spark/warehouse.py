"""The few ways in which a job may touch a table of the warehouse; lte_model/warehouse/tables.py has the tables.

A table is a Delta table in the folder `<warehouse>/<name>`. A job writes with `replace`, which swaps the rows of
one date and leaves every other row alone, so that a second run, or a run after a kill, ends in the same table.
"""

import datetime
from collections.abc import Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from jobs.spark.session import hadoop_files
from lte_model.errors import LTEError
from lte_model.settings import Settings
from lte_model.warehouse.reading import missing
from lte_model.warehouse.tables import Table


class Warehouse:
    """The Delta tables of one installation, as one Spark session sees them."""

    def __init__(self, spark: SparkSession, settings: Settings):
        self.spark = spark
        self.settings = settings

    def path(self, table: Table) -> str:
        """Where the table lies, or will."""
        return self.settings.table_path(table.name)

    def exists(self, table: Table) -> bool:
        """Whether the table is there."""
        from delta.tables import DeltaTable

        return DeltaTable.isDeltaTable(self.spark, self.path(table))

    def create(self, table: Table) -> None:
        """Creates the table if it isn't there. A table that is there keeps its rows, and gets the columns that it
        lacks, if an earlier release made it.
        """
        if self.exists(table):
            self._add_missing_columns(table)
        else:
            self._clear_log(table)
            self.spark.sql(
                f"CREATE TABLE IF NOT EXISTS delta.`{self.path(table)}` ({table.columns}) USING delta {table.layout}"
            )

    def _clear_log(self, table: Table) -> None:
        """Removes the log of a creation that ended before its commit, by a kill or on a full disk.

        Spark's catalog takes the mere folder for a table, and would create none.
        """
        files, log = hadoop_files(self.spark, f"{self.path(table)}/_delta_log")
        files.delete(log, True)

    def require(self, *tables: Table) -> None:
        """Raises `LTEError` for a table that isn't there yet."""
        for table in tables:
            if not self.exists(table):
                raise missing(table, self.path(table))

    def read(self, table: Table) -> DataFrame:
        """The table's rows. Raises `LTEError` where the table isn't there yet."""
        self.require(table)
        return self.spark.read.format("delta").load(self.path(table))

    def replace(self, table: Table, frame: DataFrame, where: str) -> None:
        """Swaps the rows that match the SQL condition `where` for those of `frame`, in one commit.

        Delta refuses a frame with a row that doesn't match, so that a job can't touch another date's rows.
        """
        self.create(table)
        rows = self.as_stored(table, frame)
        rows.write.format("delta").mode("overwrite").option("replaceWhere", where).save(self.path(table))

    def as_stored(self, table: Table, frame: DataFrame) -> DataFrame:
        """The frame with the columns that the table has where it lies, in their order. One that this release doesn't
        know, for a later one added it, is null.
        """
        ours = _columns(table).names
        stored = self.spark.read.format("delta").load(self.path(table)).schema
        return frame.select(
            *[
                F.col(column.name) if column.name in ours else F.lit(None).cast(column.dataType).alias(column.name)
                for column in stored
            ]
        )

    def _add_missing_columns(self, table: Table) -> None:
        there = self.spark.read.format("delta").load(self.path(table)).columns
        for column in _columns(table):
            if column.name not in there:
                column_in_sql = f"{column.name} {column.dataType.simpleString()}"
                self.spark.sql(f"ALTER TABLE delta.`{self.path(table)}` ADD COLUMNS ({column_in_sql})")


def _columns(table: Table) -> StructType:
    """The columns of the table as this release knows them."""
    schema = StructType.fromDDL(table.columns)
    if not isinstance(schema, StructType):
        raise LTEError(f"table {table.name} is declared with {table.columns!r}, which is no list of columns")
    return schema


def dated(column: str, dates: Sequence[datetime.date]) -> str:
    """The SQL condition that `column` is one of `dates`."""
    return f"{column} IN ({', '.join(sql_date(date) for date in dates)})"


def sql_date(date: datetime.date) -> str:
    """A SQL date literal."""
    return f"DATE'{date.isoformat()}'"


def sql_text(text: str) -> str:
    """A SQL string literal; quotes and backslashes in `text` are its own."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

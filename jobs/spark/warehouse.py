"""How a job reads and writes the warehouse's tables, which lte_model/warehouse/tables.py declares.

A table is a Delta table in the folder `<warehouse>/<name>`. A job writes with `replace`, which swaps the rows of
one date and leaves all other rows alone. Writes are therefore idempotent, also after a kill.
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
        """The table's folder, whether or not it exists yet."""
        return self.settings.table_path(table.name)

    def exists(self, table: Table) -> bool:
        """Whether the table exists."""
        from delta.tables import DeltaTable

        return DeltaTable.isDeltaTable(self.spark, self.path(table))

    def create(self, table: Table) -> None:
        """Creates the table if it doesn't exist.

        An existing table keeps its rows, and gets the columns that an earlier release didn't have.
        """
        if self.exists(table):
            self._add_missing_columns(table)
        else:
            self._clear_log(table)
            self.spark.sql(
                f"CREATE TABLE IF NOT EXISTS delta.`{self.path(table)}` ({table.columns}) USING delta {table.layout}"
            )

    def _clear_log(self, table: Table) -> None:
        """Removes the log folder of a creation that failed before its commit, by a kill or on a full disk.

        Spark's catalog would take the folder for a table, and create none.
        """
        files, log = hadoop_files(self.spark, f"{self.path(table)}/_delta_log")
        files.delete(log, True)

    def require(self, *tables: Table) -> None:
        """Raises `LTEError` for a table that doesn't exist yet."""
        for table in tables:
            if not self.exists(table):
                raise missing(table, self.path(table))

    def read(self, table: Table) -> DataFrame:
        """The table's rows. Raises `LTEError` if the table doesn't exist yet."""
        self.require(table)
        return self.spark.read.format("delta").load(self.path(table))

    def replace(self, table: Table, frame: DataFrame, where: str) -> None:
        """Replaces the rows that match the SQL condition `where` by those of `frame`, in one commit.

        Delta refuses a frame with a row that doesn't match, so that a job can't write another date's rows.
        """
        self.create(table)
        rows = self.as_stored(table, frame)
        rows.write.format("delta").mode("overwrite").option("replaceWhere", where).save(self.path(table))

    def as_stored(self, table: Table, frame: DataFrame) -> DataFrame:
        """The frame with the columns of the stored table, in their order.

        Columns that a later release added are null.
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
    """The table's columns in this release."""
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
    """A SQL string literal, with quotes and backslashes escaped."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

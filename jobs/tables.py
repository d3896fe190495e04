"""Every table of the warehouse, its columns in one place, and the few ways in which a job may touch one.

A table is a Delta table in the folder `<warehouse>/<name>`. A job writes with `replace`, which swaps the rows of
one date and leaves every other row alone, so that a second run, or a run after a kill, ends in the same table.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession

from lte_model.errors import LTEError
from lte_model.settings import Settings


@dataclass(frozen=True)
class Table:
    """A table's name, its columns as SQL, the columns it is partitioned by, and the job that writes it."""

    name: str
    columns: str
    partitioned_by: tuple[str, ...]
    written_by: str


EVENTS = Table(
    "events",
    """user_id STRING NOT NULL, item_id STRING NOT NULL, event_ts TIMESTAMP NOT NULL, event_date DATE NOT NULL,
    event_type STRING, price DOUBLE, quantity DOUBLE, rating DOUBLE, known_date DATE NOT NULL""",
    # A file holds some days, and its statistics of known_date and event_date say which: a folder a day would be
    # thousands of tiny files for a small shop with a long history.
    (),
    "jobs.ingest_events",
)
ITEMS = Table(
    "items",
    """item_id STRING NOT NULL, title STRING, description STRING, category STRING, brand STRING, price DOUBLE,
    known_date DATE NOT NULL""",
    (),
    "jobs.ingest_items",
)
QUARANTINE = Table(
    "quarantine",
    """feed STRING NOT NULL, known_date DATE NOT NULL, reason STRING NOT NULL, source STRING, row STRING""",
    ("feed",),
    "jobs.ingest_events and jobs.ingest_items",
)
INGESTED_DAYS = Table(
    "ingested_days",
    """feed STRING NOT NULL, known_date DATE NOT NULL, rows_read BIGINT NOT NULL, rows_kept BIGINT NOT NULL,
    rows_quarantined BIGINT NOT NULL, exact_duplicates BIGINT NOT NULL""",
    ("feed",),
    "jobs.ingest_events and jobs.ingest_items",
)
SEMANTIC_BASES = Table(
    "semantic_bases",
    """basis_id STRING NOT NULL, encoder STRING NOT NULL, dimensions INT NOT NULL, text_template STRING NOT NULL,
    fitted_on DATE NOT NULL, fitted_items BIGINT NOT NULL, state BINARY NOT NULL""",
    (),
    "jobs.fit_basis",
)
ITEM_EMBEDDINGS = Table(
    "item_embeddings",
    "basis_id STRING NOT NULL, item_id STRING NOT NULL, vector ARRAY<FLOAT> NOT NULL",
    ("basis_id",),
    "jobs.embed_items",
)
_LTE = """user_id STRING NOT NULL, vector_sum ARRAY<INT> NOT NULL, event_count INT NOT NULL,
    newest_event_date DATE NOT NULL, lag_days INT NOT NULL, window_days INT NOT NULL, snapshot_date DATE NOT NULL,
    basis_id STRING NOT NULL, representation STRING NOT NULL"""
LTE_SNAPSHOTS = Table("lte_snapshots", _LTE, ("basis_id", "representation", "snapshot_date"), "jobs.snapshot_lte")
LTE_LIVE = Table("lte_live", _LTE, ("basis_id", "representation"), "jobs.publish_lte")
ITEM_POPULARITY = Table(
    "item_popularity",
    """snapshot_date DATE NOT NULL, item_id STRING NOT NULL, events_7d INT NOT NULL, events_30d INT NOT NULL,
    events_window INT NOT NULL""",
    ("snapshot_date",),
    "jobs.count_popularity",
)
TRAINING_SET = Table(
    "training_set",
    """training_date DATE NOT NULL, split STRING NOT NULL, snapshot_date DATE NOT NULL, user_id STRING NOT NULL,
    item_ids ARRAY<STRING> NOT NULL, event_times ARRAY<TIMESTAMP> NOT NULL, target_count INT NOT NULL,
    oldest_target_date DATE, target_item_id STRING, target_date DATE, history_count INT NOT NULL,
    lag_days INT NOT NULL, window_days INT NOT NULL, basis_id STRING NOT NULL""",
    ("training_date", "split"),
    "jobs.build_training_set",
)

TABLES = {
    table.name: table
    for table in (
        EVENTS,
        ITEMS,
        QUARANTINE,
        INGESTED_DAYS,
        SEMANTIC_BASES,
        ITEM_EMBEDDINGS,
        LTE_SNAPSHOTS,
        LTE_LIVE,
        ITEM_POPULARITY,
        TRAINING_SET,
    )
}


class Warehouse:
    """The Delta tables of one installation, as one Spark session sees them."""

    def __init__(self, spark: SparkSession, settings: Settings):
        self.spark = spark
        self.settings = settings

    def path(self, table: Table) -> str:
        return self.settings.table_path(table.name)

    def exists(self, table: Table) -> bool:
        from delta.tables import DeltaTable

        return DeltaTable.isDeltaTable(self.spark, self.path(table))

    def create(self, table: Table) -> None:
        """Creates the table if it isn't there. A table that is there keeps its rows."""
        if self.exists(table):
            return
        partitioning = f"PARTITIONED BY ({', '.join(table.partitioned_by)})" if table.partitioned_by else ""
        self.spark.sql(
            f"CREATE TABLE IF NOT EXISTS delta.`{self.path(table)}` ({table.columns}) USING delta {partitioning}"
        )

    def read(self, table: Table) -> DataFrame:
        """The table's rows. Raises `LTEError` where the table isn't there yet."""
        if not self.exists(table):
            raise LTEError(f"table {table.name} does not exist at {self.path(table)}; run {table.written_by} first")
        return self.spark.read.format("delta").load(self.path(table))

    def replace(self, table: Table, frame: DataFrame, where: str) -> None:
        """Swaps the rows that match the SQL condition `where` for those of `frame`, in one commit.

        Delta refuses a frame with a row that doesn't match, so that a job can't touch another date's rows.
        """
        self.create(table)
        columns = [field.name for field in self.spark.read.format("delta").load(self.path(table)).schema]
        frame.select(*columns).write.format("delta").mode("overwrite").option("replaceWhere", where).save(
            self.path(table)
        )


def dated(column: str, dates: Sequence[datetime.date]) -> str:
    """The SQL condition that `column` is one of `dates`."""
    return f"{column} IN ({', '.join(sql_date(date) for date in dates)})"


def sql_date(date: datetime.date) -> str:
    return f"DATE'{date.isoformat()}'"


def sql_text(text: str) -> str:
    """A SQL string literal; quotes and backslashes in `text` are its own."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

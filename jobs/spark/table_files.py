"""The files of a table: lists those in its folder and in a version, and deletes those that nobody needs.

Three properties of Delta 4.4 matter here:

- VACUUM takes its retention only from the table property `delta.deletedFileRetentionDuration`; it ignores the hours of
  its RETAIN clause, unless they are 0.
- The log records when a file was removed, but only until the retention is over. After that, VACUUM can't tell the file
  from one that never belonged to the table. So VACUUM gets a list without the files of versions that must stay.
- A version needs its commits too; any later commit deletes those older than `delta.logRetentionDuration`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pyspark.sql import SparkSession

from jobs.spark.session import hadoop_files
from jobs.spark.warehouse import Warehouse
from lte_model.warehouse.tables import Table

_LIST = "files_that_may_go"


@dataclass(frozen=True)
class DataFile:
    """A file in a table's folder. `name` is relative to the folder; `modified` is in milliseconds since 1970."""

    name: str
    path: str
    size: int
    modified: int


def data_files(warehouse: Warehouse, table: Table) -> list[DataFile]:
    """Every file in the table's folder, also files of no version, except the log."""
    filesystem, root = hadoop_files(warehouse.spark, warehouse.path(table))
    prefix = filesystem.makeQualified(root).toString() + "/"
    listed, found = filesystem.listFiles(root, True), []
    while listed.hasNext():
        status = listed.next()
        path = status.getPath().toString()
        name = path.removeprefix(prefix)
        if not name.startswith("_delta_log/"):
            found.append(DataFile(name, path, status.getLen(), status.getModificationTime()))
    return found


def files_of_version(warehouse: Warehouse, table: Table, version: int | None = None) -> pl.DataFrame:
    """(name, size, and one `partition.…` column per partition column) of the files of a version (None: the newest).

    Raises `DeltaError` if the log no longer reaches back to the version. An unreachable store raises another error.
    """
    actions = DeltaTable(warehouse.path(table), version=version).get_add_actions(flatten=True)
    files = pl.DataFrame(pa.table(actions))
    return files.select(
        pl.col("path").map_elements(unquote, return_dtype=pl.String).alias("name"),
        pl.col("size_bytes").alias("size"),
        pl.col("^partition\\..*$"),
    )


def is_readable(warehouse: Warehouse, table: Table, version: int, there: Iterable[DataFile]) -> bool:
    """Whether the log has the version and `there` includes all its files."""
    try:
        files = files_of_version(warehouse, table, version)
    except DeltaError:
        return False
    return set(files["name"]) <= {file.name for file in there}


def stale_files(warehouse: Warehouse, table: Table, there: Iterable[DataFile]) -> list[DataFile]:
    """The files that the newest version doesn't read. Its deletion vectors are listed too."""
    current = set(files_of_version(warehouse, table)["name"])
    return [file for file in there if file.name not in current]


def purge(warehouse: Warehouse, table: Table) -> None:
    """Deletes every file that the newest version doesn't read, whatever its age or use by models."""
    place = f"delta.`{warehouse.path(table)}`"
    if table.deletion_vectors:
        warehouse.spark.sql(f"REORG TABLE {place} APPLY (PURGE)")
    with configured(warehouse.spark, {"spark.databricks.delta.retentionDurationCheck.enabled": "false"}):
        warehouse.spark.sql(f"VACUUM {place} RETAIN 0 HOURS")


def vacuum(warehouse: Warehouse, table: Table, candidates: Iterable[DataFile]) -> None:
    """Deletes the candidates that no version has read for the table's retention.

    VACUUM's logging is off: even a run that finds nothing would add two commits.
    """
    rows = [(file.path, file.size, False, file.modified) for file in candidates]
    listed = warehouse.spark.createDataFrame(rows, "path STRING, length BIGINT, isDir BOOLEAN, modificationTime BIGINT")
    listed.createOrReplaceTempView(_LIST)
    try:
        with configured(warehouse.spark, {"spark.databricks.delta.vacuum.logging.enabled": "false"}):
            inventory = f"SELECT * FROM {_LIST}"  # noqa: S608 – a name of ours
            warehouse.spark.sql(f"VACUUM delta.`{warehouse.path(table)}` USING INVENTORY ({inventory})")
    finally:
        warehouse.spark.catalog.dropTempView(_LIST)


@contextmanager
def configured(spark: SparkSession, options: Mapping[str, str]) -> Iterator[None]:
    """Sets the session's options for the block, and restores them afterwards."""
    before = {key: spark.conf.get(key, None) for key in options}
    for key, value in options.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        for key, old in before.items():
            if old is None:
                spark.conf.unset(key)
            else:
                spark.conf.set(key, old)

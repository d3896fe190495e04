"""The files of a table: what lies in its folder, what a version of it names, and how what nobody needs goes.

Three things of Delta 4.4 decide how:

- VACUUM takes its retention from the table property `delta.deletedFileRetentionDuration` alone; the hours that are
  asked for are ignored, unless they are 0.
- When a file was removed stands in the log until that time is over. From then on VACUUM can't tell the file from one
  that never belonged to the table. So the files of versions that must stay are not even shown to it: it gets a list.
- A version needs its commits too; they are deleted after `delta.logRetentionDuration`, with any later commit.
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
    """A file in a table's folder. `name` is its path within; `modified` is in milliseconds since 1970."""

    name: str
    path: str
    size: int
    modified: int


def data_files(warehouse: Warehouse, table: Table) -> list[DataFile]:
    """Every file in the table's folder, those of no version too, but not its log."""
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
    """(name, size, and a column `partition.…` for each) of the files of a version, or of the newest.

    Raises `DeltaError` where the log no longer reaches back to the version. A store that doesn't answer is another
    error.
    """
    actions = DeltaTable(warehouse.path(table), version=version).get_add_actions(flatten=True)
    files = pl.DataFrame(pa.table(actions))
    return files.select(
        pl.col("path").map_elements(unquote, return_dtype=pl.String).alias("name"),
        pl.col("size_bytes").alias("size"),
        pl.col("^partition\\..*$"),
    )


def is_readable(warehouse: Warehouse, table: Table, version: int, there: Iterable[DataFile]) -> bool:
    """Whether the log knows the version and all its files are among those that are `there`."""
    try:
        files = files_of_version(warehouse, table, version)
    except DeltaError:
        return False
    return set(files["name"]) <= {file.name for file in there}


def stale_files(warehouse: Warehouse, table: Table, there: Iterable[DataFile]) -> list[DataFile]:
    """The files that the newest version doesn't read. Deletion vectors are not told from stale files, and listed."""
    current = set(files_of_version(warehouse, table)["name"])
    return [file for file in there if file.name not in current]


def purge(warehouse: Warehouse, table: Table) -> None:
    """Deletes every file that the newest version doesn't read, however young, and whoever may want it."""
    place = f"delta.`{warehouse.path(table)}`"
    if table.deletion_vectors:
        warehouse.spark.sql(f"REORG TABLE {place} APPLY (PURGE)")
    with configured(warehouse.spark, {"spark.databricks.delta.retentionDurationCheck.enabled": "false"}):
        warehouse.spark.sql(f"VACUUM {place} RETAIN 0 HOURS")


def vacuum(warehouse: Warehouse, table: Table, candidates: Iterable[DataFile]) -> None:
    """Deletes those of the candidates that no version has read for the table's retention.

    It leaves no commit: a second run, which finds nothing, would make two.
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
    """The session with these options, for the block."""
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

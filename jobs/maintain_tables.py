"""Keeps the tables small and fast to read: thins old snapshots, compacts small files, deletes stale files.

For each table, or for `--table` only, the job

1. sets `delta.deletedFileRetentionDuration` and `delta.logRetentionDuration` to `maintenance.retention_days`, or longer
   if the oldest table version that a registered model names needs it. This comes first, because any later commit may
   delete commits older than the log retention;
2. deletes snapshots in `lte_snapshots` more than `maintenance.daily_snapshots_days` before `--date`, unless a row of
   `training_set` or the training of a registered model names their date. A kept date keeps every representation, since
   any may be trained on. Accounts go first: a run could otherwise start from a deleted snapshot. `recommendations` more
   than `maintenance.recommendations_days` before `--date` are deleted too;
3. compacts partitions with many small files. Snapshots of the daily period are left alone: their files are cut by
   users, for the run that starts from them;
4. deletes files that no version has read for the retention. Files of a version that a registered model names stay,
   whatever the retention is.

The job is idempotent.
"""

import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl
from delta.tables import DeltaTable
from pyspark.sql import functions as F

from jobs.spark.session import spark_session
from jobs.spark.table_files import configured, data_files, files_of_version, is_readable, stale_files, vacuum
from jobs.spark.warehouse import Warehouse, dated, sql_text
from lte_model.command_line import CommandParser, run
from lte_model.domain.windows import ONE_DAY
from lte_model.settings import Settings
from lte_model.tracking import lineage
from lte_model.tracking.lineage import RegisteredVersion
from lte_model.warehouse.tables import LTE_SNAPSHOTS, RECOMMENDATIONS, SNAPSHOT_ACCOUNTS, TABLES, TRAINING_SET, Table

MARGIN_DAYS = 30
"""How many days without maintenance a version that a model names survives."""

MB = 2**20


@dataclass(frozen=True)
class Maintained:
    """What was done to a table.

    `files` and `size` (bytes) are counts of its folder before and after. `readable` and `unreadable` are the versions
    that registered models name, each with its models.
    """

    table: str
    files: tuple[int, int]
    size: tuple[int, int]
    retention_days: int
    thinned_dates: int = 0
    thinned_rows: int = 0
    compacted: int = 0
    readable: tuple[tuple[int, str], ...] = ()
    unreadable: tuple[tuple[int, str], ...] = ()


def maintain(
    warehouse: Warehouse, table: Table, date: datetime.date, versions: list[RegisteredVersion]
) -> Maintained | None:
    """Runs the job for one table; None if it doesn't exist. `versions` are the registered models."""
    if not warehouse.exists(table):
        return None
    options = warehouse.settings.maintenance
    before = data_files(warehouse, table)
    named = lineage.tables_in_use(versions).get(table.name, {})
    kept = [number for number in sorted(named) if is_readable(warehouse, table, number, before)]
    retention_days = max(options.retention_days, _days_needed(warehouse, table, kept))
    _set_retention(warehouse, table, retention_days)

    daily_from = date - ONE_DAY * options.daily_snapshots_days
    thinned: list[datetime.date] = []
    rows = 0
    if table == LTE_SNAPSHOTS:
        thinned, rows = thin_snapshots(warehouse, daily_from, versions)
    elif table == RECOMMENDATIONS:
        thinned, rows = thin_recommendations(warehouse, date - ONE_DAY * options.recommendations_days)
    compacted = _compact(warehouse, table, daily_from)
    _vacuum(warehouse, table, kept, retention_days)

    after = data_files(warehouse, table)
    models = {number: ", ".join(map(str, by)) for number, by in named.items()}
    still = {number: is_readable(warehouse, table, number, after) for number in named}
    return Maintained(
        table.name,
        files=(len(before), len(after)),
        size=(sum(file.size for file in before), sum(file.size for file in after)),
        retention_days=retention_days,
        thinned_dates=len(thinned),
        thinned_rows=rows,
        compacted=compacted,
        readable=tuple((number, models[number]) for number in sorted(named) if still[number]),
        unreadable=tuple((number, models[number]) for number in sorted(named) if not still[number]),
    )


def _days_needed(warehouse: Warehouse, table: Table, kept: Sequence[int]) -> int:
    """The retention in days that keeps the versions `kept` readable for `MARGIN_DAYS` more.

    It is the age of the oldest one plus the margin: their files can only have been removed since they were written.
    """
    if not kept:
        return 0
    commits = DeltaTable.forPath(warehouse.spark, warehouse.path(table)).history().select("version", "timestamp")
    made = {row.version: row.timestamp for row in commits.collect()}
    oldest = min(made.get(number, min(made.values())) for number in kept)
    age = datetime.datetime.now() - oldest  # PySpark's timestamps are local times
    return math.ceil(age / ONE_DAY) + MARGIN_DAYS


def _set_retention(warehouse: Warehouse, table: Table, days: int) -> None:
    """Sets both properties in one commit, if they differ.

    Delta refuses a log retention shorter than the file retention.
    """
    wanted = {
        f"delta.{name}": f"interval {days} days" for name in ("logRetentionDuration", "deletedFileRetentionDuration")
    }
    (detail,) = DeltaTable.forPath(warehouse.spark, warehouse.path(table)).detail().collect()
    if any(detail.properties.get(key) != value for key, value in wanted.items()):
        listed = ", ".join(f"{sql_text(key)} = {sql_text(value)}" for key, value in wanted.items())
        warehouse.spark.sql(f"ALTER TABLE delta.`{warehouse.path(table)}` SET TBLPROPERTIES ({listed})")


def thin_snapshots(
    warehouse: Warehouse, daily_from: datetime.date, versions: list[RegisteredVersion]
) -> tuple[list[datetime.date], int]:
    """Deletes the accounts and then the rows of snapshots to thin; returns their dates and number of rows."""
    tables = [table for table in (SNAPSHOT_ACCOUNTS, LTE_SNAPSHOTS) if warehouse.exists(table)]
    there = {date for table in tables for date in _dates(warehouse, table)}
    trained = set(_dates(warehouse, TRAINING_SET)) if warehouse.exists(TRAINING_SET) else set()
    gone = dates_to_thin(there, daily_from, trained | named_dates(versions, warehouse.settings))
    rows = 0
    if gone:
        condition = dated("snapshot_date", gone)
        rows = warehouse.read(LTE_SNAPSHOTS).where(condition).count()
        for table in tables:
            warehouse.spark.sql(f"DELETE FROM delta.`{warehouse.path(table)}` WHERE {condition}")  # noqa: S608 – dates
    return gone, rows


def thin_recommendations(warehouse: Warehouse, kept_from: datetime.date) -> tuple[list[datetime.date], int]:
    """Deletes the recommendations before `kept_from`; returns their dates and number of rows."""
    old = warehouse.read(RECOMMENDATIONS).where(F.col("date") < kept_from).groupBy("date").count().orderBy("date")
    found = old.collect()
    if found:
        condition = dated("date", [row.date for row in found])
        table = f"delta.`{warehouse.path(RECOMMENDATIONS)}`"
        warehouse.spark.sql(f"DELETE FROM {table} WHERE {condition}")  # noqa: S608 – dates alone
    return [row.date for row in found], sum(row["count"] for row in found)


def dates_to_thin(
    there: Iterable[datetime.date], daily_from: datetime.date, trained: Iterable[datetime.date]
) -> list[datetime.date]:
    """The dates before `daily_from` that no training reads, ascending."""
    return sorted(date for date in set(there) - set(trained) if date < daily_from)


def named_dates(versions: Iterable[RegisteredVersion], settings: Settings) -> set[datetime.date]:
    """The snapshot dates that the trainings of the registered versions read, by the current settings."""
    return {
        date
        for version in versions
        if version.training_date
        for date in settings.training_set.dates(version.training_date).snapshot_dates
    }


def _dates(warehouse: Warehouse, table: Table) -> list[datetime.date]:
    return [row.snapshot_date for row in warehouse.read(table).select("snapshot_date").distinct().collect()]


def _compact(warehouse: Warehouse, table: Table, daily_from: datetime.date) -> int:
    """Compacts partitions with many small files; returns the number of partitions."""
    options = warehouse.settings.maintenance
    crowded = crowded_partitions(files_of_version(warehouse, table), options.small_file_mb * MB, options.small_files)
    if "snapshot_date" in table.partitioned_by:
        crowded = crowded.filter(pl.col("partition.snapshot_date").cast(pl.Date) < daily_from)
    if crowded.is_empty():
        return 0
    target = str(options.target_file_mb * MB)
    sizes = {
        "spark.databricks.delta.optimize.minFileSize": str(options.small_file_mb * MB),
        "spark.databricks.delta.optimize.maxFileSize": target,
        # Clustered tables are rewritten in cubes of this size; Delta's default of 100 GB would rewrite all of it.
        "spark.databricks.delta.optimize.clustering.mergeStrategy.minCubeSize.threshold": target,
        "spark.databricks.delta.optimize.clustering.mergeStrategy.minCubeSize.targetCubeSize": target,
    }
    partitions = [
        " AND ".join(
            f"CAST({column} AS STRING) = {sql_text(str(row[f'partition.{column}']))}" for column in table.partitioned_by
        )
        for row in crowded.to_dicts()
    ]
    where = f" WHERE {' OR '.join(f'({partition})' for partition in partitions)}" if table.partitioned_by else ""
    with configured(warehouse.spark, sizes):
        warehouse.spark.sql(f"OPTIMIZE delta.`{warehouse.path(table)}`{where}")
    return len(crowded)


def crowded_partitions(files: pl.DataFrame, small: int, most: int) -> pl.DataFrame:
    """The partitions of the files (name, size, partition.…) that have more than `most` files below `small` bytes."""
    partition = [column for column in files.columns if column.startswith("partition.")]
    few = files.filter(pl.col("size") < small)
    return few.group_by(partition or pl.lit(0).alias("table")).len().filter(pl.col("len") > most).sort(pl.all())


def _vacuum(warehouse: Warehouse, table: Table, kept: Sequence[int], retention_days: int) -> None:
    there = data_files(warehouse, table)
    needed = {name for number in kept for name in files_of_version(warehouse, table, number)["name"]}
    oldest = datetime.datetime.now(datetime.UTC) - ONE_DAY * retention_days
    candidates = [
        file
        for file in stale_files(warehouse, table, there)
        if file.name not in needed
        and file.modified < oldest.timestamp() * 1000
        # Delta doesn't list which deletion vectors an old version needs.
        and (not kept or file.name.endswith(".parquet"))
    ]
    if candidates:
        vacuum(warehouse, table, candidates)


def describe(done: Maintained) -> list[str]:
    """What was done to a table, as lines of readable text."""
    files, size = done.files, [f"{size / MB:,.1f} MB" for size in done.size]
    changed = f"{files[0]:,} → {files[1]:,} files, {size[0]} → {size[1]}; {done.compacted:,} partitions compacted"
    lines = [f"{done.table}: {changed}; removed files stay for {done.retention_days} days"]
    if done.thinned_dates:
        lines.append(f"  thinned: {done.thinned_dates:,} dates, {done.thinned_rows:,} rows")
    lines += [f"  version {number} is kept readable: named by {models}" for number, models in done.readable]
    lines += [f"  version {number} can't be read any more: named by {models}" for number, models in done.unreadable]
    return lines


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "the day from which the age of a snapshot counts")
    parser.add_argument("--table", choices=list(TABLES), help="maintain this table alone")
    arguments, settings, date = parser.read()
    versions = lineage.registered_versions(settings)
    with spark_session(settings, "maintain_tables", date) as spark:
        warehouse = Warehouse(spark, settings)
        for table in [TABLES[arguments.table]] if arguments.table else TABLES.values():
            done = maintain(warehouse, table, date, versions)
            print(*(describe(done) if done else [f"{table.name}: not there yet"]), sep="\n", flush=True)


if __name__ == "__main__":
    run(main)

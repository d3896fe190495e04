"""Erases the users of a list from every table, from the files that trainings and gates write, and the online store.

    python -m jobs.erase_users --users FILE                   everything, in the order below
    python -m jobs.erase_users --users FILE --table events    one table
    python -m jobs.erase_users --users FILE --files reports   reports (and MLflow copies), data_docs or online_store
    python -m jobs.erase_users --models                       list the models that past erasures concern

FILE has one user id per line, in UTF-8. What can't be seen around an id is ignored: spaces, tabs, carriage returns,
byte order marks, no-break spaces. Lines that name nobody are counted and listed by number, for no log may name a user.
For each table that can name a user:

1. `events` only: the number of erased rows is added to the accounts of their days (`ingested_days.rows_erased`).
2. `training_set` only: registered models that were trained on one of the users get a tag that says so.
3. The rows are deleted by a merge with the list: a condition on ids would stay in the table's log for good.
4. If a file outside the newest version names one of the users, all files outside the newest version are deleted.
   Erasure overrides the protection of table versions: a registered model may then name an unreadable version. Such a
   model is listed and tagged.

The tables are erased in the order of the pipeline, so that erased rows can't be made again from later tables. The job
is idempotent, also after a kill at any instant. It doesn't touch the shop's feed: remove the users from it first, or
the next ingest of their days brings them back.

Longer than 350 lines, because an auditor reads in one place what an erasure does to every table.
"""

import datetime
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
from delta.tables import DeltaTable
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.feeds.columns import NOT_IN_AN_ID
from jobs.ingest_events import FEED
from jobs.quality.erasure import erase_from_gates
from jobs.spark.session import spark_session
from jobs.spark.table_files import DataFile, configured, data_files, is_readable, purge, stale_files
from jobs.spark.warehouse import Warehouse, sql_text
from lte_model.command_line import CommandParser, run
from lte_model.domain.windows import today
from lte_model.errors import LTEError
from lte_model.evaluation.erasure import erase_from_artifacts, erase_from_reports
from lte_model.serving.online_store import erase_from_online_store
from lte_model.settings import Settings
from lte_model.tracking import lineage
from lte_model.tracking.lineage import RegisteredVersion
from lte_model.warehouse.tables import EVENTS, INGESTED_DAYS, QUARANTINE, TABLES, TRAINING_SET, Table

TABLES_WITH_USERS = {
    name: table for name, table in TABLES.items() if table == QUARANTINE or "user_id STRING" in table.columns
}
"""The tables that can name a user, in the order of the pipeline."""

FILES: dict[str, tuple[Callable[[Settings, frozenset[str]], list[str]], ...]] = {
    "reports": (erase_from_reports, erase_from_artifacts),
    "data_docs": (erase_from_gates,),
    "online_store": (erase_from_online_store,),
}
"""How to erase from files and stores beside the tables, by the name of the Airflow pool."""

_FILE_BY_FILE = {
    "spark.sql.files.maxPartitionBytes": str(128 * 2**20),
    "spark.sql.files.openCostInBytes": str(128 * 2**20),
    "spark.databricks.delta.merge.repartitionBeforeWrite.enabled": "false",
}
"""A task rewrites one file into one file, which keeps the file's range of days and user buckets."""

DAYS_NAMED, LINES_NAMED = 5, 1000

AROUND_AN_ID = "^[\\x00-\\x20\\x7F\\uFEFF]+|[\\x00-\\x20\\x7F\\uFEFF]+$"
"""What the ingest trims, and what it takes for no part of an id, at the ends of one."""


@dataclass(frozen=True)
class Erased:
    """What an erasure removed from a table.

    `unreadable` are the table versions that models name and that can't be read any more. `trained` are the models
    trained on erased users, each with the number of these users, or None if it is unknown. `users` are those whom a
    row named.
    """

    table: str
    rows: int
    files: int
    unreadable: tuple[int, ...] = ()
    trained: tuple[tuple[RegisteredVersion, int | None], ...] = ()
    training_dates: tuple[datetime.date, ...] = ()
    users: frozenset[str] = frozenset()


def read_lines(file: str) -> dict[int, frozenset[str]]:
    """{number of a line: the ids that it may name}, without the empty lines.

    A line names two ids if something invisible stands around it which the ingest keeps: the id with it and without.
    Raises `LTEError` if no line names anybody, and for a line with a control character within, which no id has.
    """
    try:
        lines = re.split("\r\n|\r|\n", Path(file).read_bytes().decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LTEError(f"the list of users {file} can't be read: {error}; give a text file, an id per line") from None
    named: dict[int, frozenset[str]] = {}
    for number, line in enumerate(lines, start=1):
        user = re.sub(AROUND_AN_ID, "", line)
        seen = _seen(user)
        if re.search(NOT_IN_AN_ID, seen):
            raise LTEError(
                f"line {number} of the list of users {file} holds a control character, which no id does: nobody was "
                "erased; give an id per line, and nothing beside it"
            )
        if seen:
            named[number] = frozenset({seen} if re.search(NOT_IN_AN_ID, user) else {user, seen})
    if not named:
        raise LTEError(f"the list of users {file} is empty; give an id per line")
    return named


def users_of(lines: Mapping[int, frozenset[str]]) -> frozenset[str]:
    """The ids that the lines may name, each once."""
    return frozenset(user for of_line in lines.values() for user in of_line)


def _seen(text: str) -> str:
    """The text without what can't be seen at its ends: separators, controls and format characters of Unicode."""
    visible = [place for place, character in enumerate(text) if unicodedata.category(character)[0] not in "ZC"]
    return text[visible[0] : visible[-1] + 1] if visible else ""


def erase_from_table(warehouse: Warehouse, table: Table, users: frozenset[str]) -> Erased:
    """Runs the job for one table.

    Raises `LTEError` if the table's log can name users, the accounts of `events` don't add up, or stale files remain.
    """
    if not warehouse.exists(table):
        return Erased(table.name, 0, 0)
    _require_silent_log(warehouse, table)
    versions = lineage.registered_versions(warehouse.settings)
    trained: tuple[tuple[RegisteredVersion, int | None], ...] = ()
    training_dates: tuple[datetime.date, ...] = ()
    if table == TRAINING_SET:
        training_dates = _training_dates(warehouse, users)
        trained = tuple(_trained_on(warehouse, versions, users))
        for version, count in trained:
            if count and lineage.ERASED_TAG not in version.tags:
                lineage.leave_tag(warehouse.settings, version, lineage.ERASED_TAG, str(today()))
    rows, found = _delete_rows(warehouse, table, users)
    files = _purge(warehouse, table, users)
    unreadable = _unreadable(warehouse, table, versions)
    return Erased(table.name, rows, files, unreadable, trained, training_dates, found)


def _require_silent_log(warehouse: Warehouse, table: Table) -> None:
    """Raises `LTEError` if the table's log keeps min/max statistics of columns that name users."""
    (detail,) = DeltaTable.forPath(warehouse.spark, warehouse.path(table)).detail().collect()
    noted = detail.properties.get("delta.dataSkippingStatsColumns")
    if noted is None or {"user_id", "row"} & {column.strip() for column in noted.split(",")}:
        raise LTEError(
            f"the log of table {table.name} notes ranges of user ids, and they can't be erased from it; move the "
            f"table away, write it anew with {table.written_by}, and delete the old one"
        )


def _ids(warehouse: Warehouse, users: frozenset[str]) -> DataFrame:
    """One column, `user_id`, broadcast so that a join doesn't shuffle the table."""
    frame = warehouse.spark.createDataFrame(pa.table({"user_id": pa.array(sorted(users), pa.string())}))
    return F.broadcast(frame)


def _delete_rows(warehouse: Warehouse, table: Table, users: frozenset[str]) -> tuple[int, frozenset[str]]:
    """Deletes the users' rows in one commit; returns their number, and the users whom they named."""
    if table == QUARANTINE:
        theirs = rows_that_name(warehouse.read(table), warehouse, users)
        key: tuple[str, ...] = ("feed", "known_date", "row")
    else:
        theirs = warehouse.read(table).join(_ids(warehouse, users), "user_id", "left_semi")
        key = ("user_id",)
    theirs = theirs.select(*key).cache()
    rows, named = theirs.count(), theirs.select("user_id") if table != QUARANTINE else _named(theirs, warehouse, users)
    found = frozenset(row.user_id for row in named.distinct().collect())
    if rows:
        if table == EVENTS:
            _correct_accounts(warehouse, users)
        merge = (
            DeltaTable.forPath(warehouse.spark, warehouse.path(table))
            .alias("table")
            .merge(
                F.broadcast(theirs.distinct()).alias("erased"),
                " AND ".join(f"table.{column} = erased.{column}" for column in key),
            )
            .whenMatchedDelete()
        )
        with configured(warehouse.spark, _FILE_BY_FILE):
            merge.execute()
    theirs.unpersist()
    return rows, found


def rows_that_name(quarantine: DataFrame, warehouse: Warehouse, users: frozenset[str]) -> DataFrame:
    """The rows of `quarantine` whose raw row belongs to one of the users.

    A row matches by its JSON `user_id`; without one, by any mention of an id, plain or as JSON and CSV escape it.
    """
    return _matched(quarantine, warehouse, users, "left_semi")


def _named(quarantine: DataFrame, warehouse: Warehouse, users: frozenset[str]) -> DataFrame:
    """Which of the users the rows of `quarantine` are of, one column `user_id`."""
    return _matched(quarantine, warehouse, users, "inner").select("user_id")


def _matched(quarantine: DataFrame, warehouse: Warehouse, users: frozenset[str], how: str) -> DataFrame:
    # A row may be there because of what stands around its id, and the list has none of that.
    named = F.regexp_replace(F.get_json_object("row", "$.user_id"), AROUND_AN_ID, "")
    by_text = {
        text: user
        for user in sorted(users)
        for text in (
            user, json.dumps(user)[1:-1], json.dumps(user, ensure_ascii=False)[1:-1], user.replace('"', '""')
        )
    }  # fmt: skip
    written = pa.table({"text": list(by_text), "user_id": list(by_text.values())})
    texts = F.broadcast(warehouse.spark.createDataFrame(written))
    by_id = quarantine.join(_ids(warehouse, users), named == F.col("user_id"), how)
    by_mention = quarantine.where(named.isNull()).join(texts, F.contains("row", "text"), how)
    return by_id.unionByName(by_mention.drop("text"))


def _correct_accounts(warehouse: Warehouse, users: frozenset[str]) -> None:
    """Adds the users' rows to `rows_erased` of their days, before the rows go.

    Accounts that an earlier run corrected before it was killed are left unchanged. Raises `LTEError` if a day's
    account is neither corrected nor uncorrected.
    """
    theirs = _ids(warehouse, users).withColumn("erased", F.lit(1))
    days = (
        warehouse.read(EVENTS)
        .join(theirs, "user_id", "left")
        .groupBy("known_date")
        .agg(F.count("*").alias("rows"), F.count("erased").alias("erased"))
        .where("erased > 0")
    )
    accounts = warehouse.read(INGESTED_DAYS).where(F.col("feed") == FEED)
    accounted = accounts.select("known_date", (F.col("rows_kept") - F.col("rows_erased")).alias("accounted"))
    found = days.join(accounted, "known_date", "left").orderBy("known_date").collect()
    wrong = [day.known_date for day in found if day.accounted not in (day.rows, day.rows - day.erased)]
    if wrong:
        more = f" and {len(wrong) - DAYS_NAMED} more days" if len(wrong) > DAYS_NAMED else ""
        raise LTEError(
            f"the accounts of {', '.join(map(str, wrong[:DAYS_NAMED]))}{more} don't count the rows that table events "
            "holds of them: an ingest, or an erasure with another list, was broken off. Run that again, then this; "
            f"jobs.ingest_events --since {wrong[0]} brings days anew"
        )
    due = [(day.known_date, day.erased) for day in found if day.accounted == day.rows]
    if due:
        (
            DeltaTable.forPath(warehouse.spark, warehouse.path(INGESTED_DAYS))
            .alias("account")
            .merge(
                warehouse.spark.createDataFrame(due, "known_date DATE, erased BIGINT").alias("day"),
                f"account.feed = {sql_text(FEED)} AND account.known_date = day.known_date",
            )
            .whenMatchedUpdate(set={"rows_erased": "account.rows_erased + day.erased"})
            .execute()
        )


def _purge(warehouse: Warehouse, table: Table, users: frozenset[str]) -> int:
    """Purges the table if a file that it doesn't need names one of the users; returns the number deleted.

    Raises `LTEError` if a stale file remains.
    """
    before = data_files(warehouse, table)
    # With deletion vectors, files of the newest version may still hold deleted rows.
    suspects = before if table.deletion_vectors else stale_files(warehouse, table, before)
    if not _name_a_user(warehouse, table, suspects, users):
        return 0
    purge(warehouse, table)
    after = data_files(warehouse, table)
    left = [file.name for file in stale_files(warehouse, table, after) if file.name.endswith(".parquet")]
    if left:
        raise LTEError(
            f"{len(left)} files of table {table.name} that it no longer needs are still there, first {left[0]}; "
            "another job wrote meanwhile? Run the erasure again"
        )
    return len({file.name for file in before} - {file.name for file in after})


def _name_a_user(warehouse: Warehouse, table: Table, files: Sequence[DataFile], users: frozenset[str]) -> bool:
    """Whether any row in the files, deleted or never committed ones too, belongs to one of the users."""
    paths = [file.path for file in files if file.name.endswith(".parquet")]
    if not paths:
        return False
    column = "row" if table == QUARANTINE else "user_id"
    # Without partition discovery: the column is in the file, not in its path.
    rows = warehouse.spark.read.schema(f"{column} STRING").option("recursiveFileLookup", True).parquet(*paths)
    try:
        if table == QUARANTINE:
            return not rows_that_name(rows, warehouse, users).isEmpty()
        return not rows.join(_ids(warehouse, users), "user_id", "left_semi").isEmpty()
    except (PySparkException, Py4JError):
        return True  # the file is truncated, because its job was killed: assume that it names a user


def _unreadable(warehouse: Warehouse, table: Table, versions: list[RegisteredVersion]) -> tuple[int, ...]:
    """The table versions that registered models name and that can't be read; tags those models."""
    named = lineage.tables_in_use(versions).get(table.name, {})
    there = data_files(warehouse, table) if named else []
    lost = sorted(number for number in named if not is_readable(warehouse, table, number, there))
    for version in versions:
        numbers = [number for number in version.tables.get(table.name, ()) if number in lost]
        if numbers:
            tag = f"{lineage.UNREADABLE_TAG}{table.name}"
            lineage.leave_tag(warehouse.settings, version, tag, ", ".join(map(str, numbers)))
    return tuple(lost)


def _training_dates(warehouse: Warehouse, users: frozenset[str]) -> tuple[datetime.date, ...]:
    """The training dates whose training set holds any of the users, ascending."""
    rows = warehouse.read(TRAINING_SET).join(_ids(warehouse, users), "user_id", "left_semi")
    return tuple(sorted(row.training_date for row in rows.select("training_date").distinct().collect()))


def _trained_on(
    warehouse: Warehouse, versions: list[RegisteredVersion], users: frozenset[str]
) -> list[tuple[RegisteredVersion, int | None]]:
    """The registered versions trained on some of the users, and how many; None if no row is left to tell by.

    The count comes from the table version that the model names, or from the newest if that one can't be read.
    """
    there = data_files(warehouse, TRAINING_SET)
    found = []
    for version in versions:
        named: list[int | None] = [
            number
            for number in version.tables.get(TRAINING_SET.name, ())
            if is_readable(warehouse, TRAINING_SET, number, there)
        ]
        per_number = [_users_of(warehouse, number, version, users) for number in named or [None]]
        known = [count for count in per_number if count is not None]
        if max(known, default=None) != 0:
            found.append((version, max(known, default=None)))
    return found


def _users_of(
    warehouse: Warehouse, number: int | None, version: RegisteredVersion, users: frozenset[str]
) -> int | None:
    """How many of the users the training set's version holds for the model's date; None without such rows."""
    rows = pl.scan_delta(warehouse.path(TRAINING_SET), version=number).filter(
        pl.col("training_date") == version.training_date
    )
    counted = rows.select(
        pl.len().alias("rows"),
        pl.col("user_id").filter(pl.col("user_id").is_in(sorted(users))).n_unique().alias("users"),
    )
    row = counted.collect().row(0, named=True)
    return row["users"] if row["rows"] else None


def describe(erased: Sequence[Erased]) -> list[str]:
    """What was erased from the tables, as lines of readable text; no line names a user."""
    if not any(of_table.rows or of_table.files for of_table in erased):
        lines = [f"no file of {', '.join(of_table.table for of_table in erased)} names one of these users"]
    else:
        lines = [f"{'table':<16} {'rows removed':>14} {'files removed':>14}"]
        lines += [f"{of_table.table:<16} {of_table.rows:>14,} {of_table.files:>14,}" for of_table in erased]
    for of_table in erased:
        if of_table.training_dates:
            dates = ", ".join(map(str, of_table.training_dates))
            lines.append(f"they were part of the training sets of {dates}")
        for version, users in of_table.trained:
            of_date = f"{version}, training of {version.dated},"
            if users is None:
                lines.append(f"{of_date} may have been trained on them: no row of its training set is left to tell by")
            else:
                lines.append(f"{of_date} was trained on {users:,} of them: train anew, and promote that")
        if of_table.unreadable:
            numbers = ", ".join(map(str, of_table.unreadable))
            lines.append(
                f"{of_table.table}: versions named by registered models that can't be read any more: {numbers}"
            )
    return lines


def describe_lines(erased: Sequence[Erased], lines: Mapping[int, frozenset[str]]) -> str:
    """How many lines of the list name nobody in the tables, and which; by number, for no log may name a user."""
    found = frozenset(user for of_table in erased for user in of_table.users)
    unmatched = [number for number, users in lines.items() if not users & found]
    tables = ", ".join(of_table.table for of_table in erased)
    if not unmatched:
        return f"each of {len(lines):,} lines names somebody in the rows of {tables}"
    more = f" and {len(unmatched) - LINES_NAMED:,} more" if len(unmatched) > LINES_NAMED else ""
    return (
        f"{len(unmatched):,} of {len(lines):,} lines name nobody in the rows of {tables}, or somebody erased before: "
        f"{'line' if len(unmatched) == 1 else 'lines'} {', '.join(map(str, unmatched[:LINES_NAMED]))}{more}"
    )


def describe_files(what: str, changed: Sequence[str]) -> list[str]:
    """What was erased from `FILES`, as lines of readable text."""
    kind = "views" if what == "online_store" else "files"
    return [f"{what}: {len(changed)} {kind} changed or deleted", *[f"  {one}" for one in changed]]


def describe_models(settings: Settings) -> list[str]:
    """Lines about the registered models that any erasure so far concerns."""
    lines = lineage.erasures(lineage.registered_versions(settings))
    return lines or ["no registered model was trained on an erased user, as far as is known"]


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__)
    parser.add_argument("--users", metavar="FILE", help="the list: a user id per line")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--table", choices=list(TABLES_WITH_USERS), help="erase from this table alone")
    part.add_argument("--files", choices=list(FILES), help="erase from these files alone")
    part.add_argument("--models", action="store_true", help="erase nothing; list the models that erasures concern")
    arguments, settings = parser.read_settings()
    if not arguments.models:
        if not arguments.users:
            raise LTEError("give --users, the file with the list of users")
        lines = read_lines(arguments.users)
        users = users_of(lines)
        print(f"erasing {len(set(lines.values())):,} users of {len(lines):,} lines")
        if not arguments.files:
            tables = [TABLES[arguments.table]] if arguments.table else TABLES_WITH_USERS.values()
            with spark_session(settings, "erase_users", today()) as spark:
                erased = [erase_from_table(Warehouse(spark, settings), table, users) for table in tables]
            print(*describe(erased), describe_lines(erased, lines), sep="\n")
        if not arguments.table:
            for what in [arguments.files] if arguments.files else FILES:
                changed = [line for erase in FILES[what] for line in erase(settings, users)]
                print(*describe_files(what, changed), sep="\n")
    if not (arguments.table or arguments.files):
        print(*describe_models(settings), sep="\n")


if __name__ == "__main__":
    run(main)

"""Every commit records its job, dates, DAG run and code version, and never names a user."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from jobs.erase_users import erase_from_table
from jobs.maintain_tables import maintain
from jobs.monitor_lte import keep
from jobs.spark.commits import RUN_VARIABLES, commit_note
from lte_model.domain.windows import ONE_DAY
from lte_model.tracking.code_version import code_version
from lte_model.warehouse.tables import EVENTS, INGESTED_DAYS, LTE_LIVE, LTE_MONITORING
from tests.jobs.rows import DAY, account, event, frame, lte
from tests.repository import REPOSITORY

RUN = ("lte_daily", "scheduled__2024-06-01T00:00:00+00:00", "publish_lte", "2")


@pytest.fixture
def in_airflow(monkeypatch):
    for name, value in zip(RUN_VARIABLES, RUN, strict=True):
        monkeypatch.setenv(name, value)


def test_a_note_names_job_dates_run_and_code(in_airflow):
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, text=True)
    note = json.loads(commit_note("snapshot_lte", DAY, DAY + ONE_DAY, DAY - ONE_DAY))
    assert note.pop("code").removesuffix("-dirty") == commit[:12]
    assert note == {
        "job": "snapshot_lte",
        "dates": [str(DAY - ONE_DAY), str(DAY + ONE_DAY)],
        "run": "lte_daily scheduled__2024-06-01T00:00:00+00:00 publish_lte 2",
    }


def test_a_job_of_one_date_by_hand_names_the_date_and_no_run(monkeypatch):
    for name in RUN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert json.loads(commit_note("publish_lte", DAY)) == {
        "job": "publish_lte",
        "dates": [str(DAY)],
        "code": code_version(),
    }


def history(warehouse, table):
    """(operation, note) of every commit of a table."""
    rows = warehouse.spark.sql(f"DESCRIBE HISTORY delta.`{warehouse.path(table)}`").collect()
    return {row.operation: json.loads(row.userMetadata or "{}") for row in rows}, len(rows)


@pytest.mark.spark
def test_every_way_to_write_a_table_leaves_the_note_and_no_user(warehouse):
    gone = "user-to-be-erased"
    for number in range(3):
        day = DAY + ONE_DAY * number
        rows = frame(warehouse, EVENTS, [event(user, day) for user in (gone, "other")])
        warehouse.replace(EVENTS, rows, f"known_date = DATE'{day}'")
        accounts = frame(warehouse, INGESTED_DAYS, [account(day, 2)])
        warehouse.replace(INGESTED_DAYS, accounts, f"known_date = DATE'{day}'")
    warehouse.replace(LTE_LIVE, frame(warehouse, LTE_LIVE, [lte(user, DAY) for user in (gone, "other")]), "true")
    options = warehouse.settings.maintenance.model_copy(update={"small_files": 1})
    warehouse.settings = warehouse.settings.model_copy(update={"maintenance": options})
    maintain(warehouse, EVENTS, DAY, [])
    for table in (EVENTS, LTE_LIVE):
        assert erase_from_table(warehouse, table, frozenset({gone})).rows
    operations = set()
    for table in (EVENTS, INGESTED_DAYS, LTE_LIVE):
        notes, _ = history(warehouse, table)
        operations |= set(notes)
        for operation, note in notes.items():
            assert note == {"job": "tests", "code": code_version()}, f"{table.name}: {operation}"
    written = {"CREATE TABLE", "WRITE", "MERGE", "OPTIMIZE", "SET TBLPROPERTIES", "VACUUM START", "VACUUM END"}
    assert written <= operations
    files = [file for file in Path(warehouse.settings.warehouse).rglob("*") if file.is_file()]
    assert len(files) > 20
    assert [file for file in files if gone.encode() in file.read_bytes()] == []


@pytest.mark.spark
def test_a_table_that_is_written_without_a_jvm_has_the_note_too(warehouse, in_airflow):
    keep(warehouse.settings, DAY, "basis", [])
    notes, commits = history(warehouse, LTE_MONITORING)
    assert commits == 2
    for operation, note in notes.items():
        assert note["job"] == "monitor_lte" and note["dates"] == [str(DAY)], operation
        assert note["run"].split() == list(RUN) and re.match("[0-9a-f]{12}|sha256", note["code"])

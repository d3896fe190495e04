"""Erasure is physical: no file holds the user afterwards, the accounts add up, and other users' rows are unchanged."""

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from great_expectations import expectations as gxe
from pyspark.sql import functions as F

from jobs import erase_users as job
from jobs.erase_users import TABLES_WITH_USERS, describe, describe_lines, erase_from_table, read_lines, users_of
from jobs.quality.check import check
from jobs.quality.erasure import erase_from_gates
from jobs.quality.suites.rules import CheckedRows
from jobs.spark.warehouse import Warehouse
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.tracking.lineage import ERASED_TAG, UNREADABLE_TAG, RegisteredVersion
from lte_model.warehouse.tables import (
    EVENTS,
    INGESTED_DAYS,
    LTE_LIVE,
    LTE_SNAPSHOTS,
    QUARANTINE,
    RECOMMENDATIONS,
    TABLES,
    TRAINING_SET,
)
from tests.jobs.conftest import small_settings
from tests.jobs.rows import DAY, account, case, event, frame, lte, recommendation

GONE = """o'Neil "the 2nd", gäst-4711"""
"""An id with characters that JSON, CSV and SQL escape."""

OTHERS = (
    *(f"user-{number}" for number in range(34)),
    *("%", "_", "'; DROP TABLE events; --", "../../etc/passwd", GONE[6:], GONE.upper()),
)
"""Includes ids that a pattern match or a substring match would erase too."""

ERASED = frozenset({GONE, "nobody"})


@pytest.fixture(scope="module")
def template(spark, tmp_path_factory):
    """Every table that can name a user, written more than once, with GONE in the newest or an earlier version."""
    warehouse = Warehouse(spark, small_settings(tmp_path_factory.mktemp("template")))
    everyone = (GONE, *OTHERS)
    days = [DAY - ONE_DAY * back for back in (3, 2, 1)]
    events = [event(user, day, second) for day in days for user in everyone for second in range(2)]
    warehouse.replace(EVENTS, frame(warehouse, EVENTS, events).repartitionByRange(3, "known_date"), "true")
    warehouse.replace(EVENTS, frame(warehouse, EVENTS, [event("late", DAY)]), f"known_date = DATE'{DAY}'")
    accounts = [account(day, 2 * len(everyone)) for day in days] + [account(DAY, 1)]
    warehouse.replace(INGESTED_DAYS, frame(warehouse, INGESTED_DAYS, accounts), "true")
    raw = [
        json.dumps({"user_id": f" {GONE} ", "item_id": None}, ensure_ascii=False),
        f'"{GONE.replace(chr(34), chr(34) * 2)}",i,view,a column too many',
        json.dumps({"user_id": GONE})[:-1],
        json.dumps({"user_id": OTHERS[0], "item_id": None}),
        "user-1,i,view,a column too many",
    ]
    refused = [{"feed": "events", "known_date": DAY, "reason": "r", "row": row} for row in raw]
    warehouse.replace(QUARANTINE, frame(warehouse, QUARANTINE, refused), "true")
    for date in days[:2]:
        rows = frame(warehouse, LTE_SNAPSHOTS, [lte(user, date) for user in everyone])
        warehouse.replace(LTE_SNAPSHOTS, rows, f"snapshot_date = DATE'{date}'")
    warehouse.replace(LTE_LIVE, frame(warehouse, LTE_LIVE, [lte(user, days[0]) for user in everyone]), "true")
    rows = frame(warehouse, RECOMMENDATIONS, [recommendation(user, days[0]) for user in everyone])
    warehouse.replace(RECOMMENDATIONS, rows, f"date = DATE'{days[0]}'")
    # In table training_set only files of an old version name GONE.
    for users in (everyone, OTHERS):
        rows = [case(user, split) for split in ("train", "test") for user in users]
        warehouse.replace(TRAINING_SET, frame(warehouse, TRAINING_SET, rows), "true")
    return warehouse.settings.warehouse


@pytest.fixture
def filled(template, warehouse):
    """A copy of the template; Delta tables can be copied, because their logs use relative paths."""
    shutil.copytree(template, warehouse.settings.warehouse)
    return warehouse


def erase(warehouse, users=ERASED):
    return {name: erase_from_table(warehouse, table, users) for name, table in TABLES_WITH_USERS.items()}


def traces(folder, user_id):
    """The files under `folder` that hold the id as bytes, as a JSON string, or as a value in a Parquet column."""
    written = {
        user_id.encode(),
        json.dumps(user_id)[1:-1].encode(),
        json.dumps(user_id, ensure_ascii=False)[1:-1].encode(),
    }
    found = []
    for path in sorted(Path(folder).rglob("*")):
        if not path.is_file():
            continue
        said = path.read_bytes()
        if path.suffix == ".parquet":
            said += str(pq.ParquetFile(path).read().to_pylist()).encode() + repr(pq.ParquetFile(path).metadata).encode()
        if any(form in said for form in written):
            found.append(str(path.relative_to(folder)))
    return found


def rows_of_others(warehouse):
    """{table: all rows except those of GONE}."""
    others = {}
    for name, table in TABLES_WITH_USERS.items():
        rows = [row.asDict() for row in warehouse.read(table).collect()]
        others[name] = sorted(str(row) for row in rows if GONE not in str(row) and "Neil" not in str(row))
    return others


def accounts_add_up(warehouse):
    """Asserts for every known day that rows in `events` = rows_kept − rows_erased."""
    held = {row.known_date: row["count"] for row in warehouse.read(EVENTS).groupBy("known_date").count().collect()}
    accounts = warehouse.read(INGESTED_DAYS).where("feed = 'events'").collect()
    return held == {row.known_date: row.rows_kept - row.rows_erased for row in accounts}


def versions(warehouse):
    return {name: DeltaTable(warehouse.path(table)).version() for name, table in TABLES_WITH_USERS.items()}


def test_no_file_of_the_warehouse_names_an_erased_user(filled):
    assert len(traces(filled.settings.warehouse, GONE)) > len(TABLES_WITH_USERS)
    before = rows_of_others(filled)
    erased = erase(filled)
    assert traces(filled.settings.warehouse, GONE) == []
    assert rows_of_others(filled) == before
    assert {name: of_table.rows for name, of_table in erased.items()} == {
        "events": 6, "quarantine": 3, "lte_snapshots": 2, "lte_live": 1, "training_set": 0, "recommendations": 1,
    }  # fmt: skip
    assert all(of_table.files for of_table in erased.values())
    assert accounts_add_up(filled)
    days = {row.known_date: row.rows_erased for row in filled.read(INGESTED_DAYS).collect()}
    assert days == {DAY - ONE_DAY * back: 2 * (back > 0) for back in range(4)}

    before = versions(filled)
    again = erase(filled)
    assert not any(of_table.rows or of_table.files for of_table in again.values())
    assert describe(list(again.values())) == [f"no file of {', '.join(TABLES_WITH_USERS)} names one of these users"]
    assert versions(filled) == before


def test_models_that_were_trained_on_the_user_are_found_by_the_version_that_they_name(filled, monkeypatch):
    """Only version 1 of the training set held GONE. A purge makes it unreadable, and two tags record that."""
    on_user, on_others, unknown = (
        RegisteredVersion("ranker", number, date, {"training_set": (version,)}, {})
        for number, date, version in ((1, DAY, 1), (2, DAY, 2), (3, DAY - ONE_DAY, 99))
    )
    tags = {}
    monkeypatch.setattr(job.lineage, "registered_versions", lambda _: [on_user, on_others, unknown])
    monkeypatch.setattr(
        job.lineage,
        "leave_tag",
        lambda _, version, tag, value: tags.setdefault(version.version, {}).update({tag: value}),
    )
    erased = erase_from_table(filled, TRAINING_SET, ERASED)
    assert erased.trained == ((on_user, 1), (unknown, None)) and erased.unreadable == (1, 99)
    assert {number: set(left) for number, left in tags.items()} == {
        1: {ERASED_TAG, f"{UNREADABLE_TAG}training_set"},
        3: {f"{UNREADABLE_TAG}training_set"},
    }
    said = "\n".join(describe([erased]))
    assert "ranker version 1, training of 2024-03-01, was trained on 1 of them" in said
    assert "ranker version 3, training of 2024-02-29, may have been trained on them" in said


@pytest.mark.parametrize("killed_before", ["DeltaTable.merge of events", "purge"])
def test_a_kill_changes_nothing_about_the_end(filled, monkeypatch, killed_before):
    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    if killed_before == "purge":
        monkeypatch.setattr(job, "purge", kill)
    else:
        correct = job._correct_accounts
        monkeypatch.setattr(job, "_correct_accounts", lambda *arguments: (correct(*arguments), kill()))
    with pytest.raises(Killed):
        erase_from_table(filled, EVENTS, ERASED)
    monkeypatch.undo()
    erase_from_table(filled, EVENTS, ERASED)
    assert accounts_add_up(filled)
    assert traces(filled.path(EVENTS), GONE) == []
    days = {row.known_date: row.rows_erased for row in filled.read(INGESTED_DAYS).collect()}
    assert days == {DAY - ONE_DAY * back: 2 * (back > 0) for back in range(4)}


def test_a_day_whose_account_is_wrong_is_named_and_nothing_is_erased(filled):
    wrong = frame(filled, INGESTED_DAYS, [account(DAY - ONE_DAY, 83)])
    filled.replace(INGESTED_DAYS, wrong, f"known_date = DATE'{DAY - ONE_DAY}'")
    with pytest.raises(LTEError, match="the accounts of 2024-02-29 don't count the rows"):
        erase_from_table(filled, EVENTS, ERASED)
    assert filled.read(EVENTS).where(F.col("user_id") == GONE).count() == 6


def test_a_file_covers_no_more_days_after_an_erasure(filled):
    """A snapshot finds files by their ranges of days, so an erasure must not mix days in one file."""

    def ranges():
        rows = filled.read(EVENTS).groupBy(F.col("_metadata.file_path"))
        return sorted(tuple(row)[1:] for row in rows.agg(F.min("known_date"), F.max("known_date")).collect())

    before = ranges()
    erase_from_table(filled, EVENTS, ERASED)
    assert ranges() == before


def test_every_table_that_can_name_a_user_is_among_them():
    assert set(TABLES_WITH_USERS) == {
        name for name, table in TABLES.items() if re.search(r"user_id|\brow\b", table.columns)
    }


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b" \n\n", "is empty"), (b"\xff", "can't be read")]
)
def test_a_list_without_users_is_refused(tmp_path, content, message):
    (tmp_path / "users.txt").write_bytes(content)
    with pytest.raises(LTEError, match=message):
        users_of(read_lines(str(tmp_path / "users.txt")))
    with pytest.raises(LTEError, match="can't be read"):
        users_of(read_lines(str(tmp_path / "no-file.txt")))


def test_a_list_is_read_as_the_feed_is(tmp_path):
    (tmp_path / "users.txt").write_bytes("\ufeffu 1 \r\n'q\",\u2028x\n\n u 1\n".encode())
    assert users_of(read_lines(str(tmp_path / "users.txt"))) == {"u 1", "'q\",\u2028x"}


AROUND = ("\t", "\r", "\u00a0", "\u202f", "\u2028", "\ufeff", "\u200b", "\x7f", "\x85", " \t ", "\u00a0\t", "\x00")
"""What an editor, a spreadsheet or a copied page leaves around an id without a trace on the screen."""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("around", AROUND, ids=ascii)
def test_what_cannot_be_seen_around_an_id_is_no_part_of_it(tmp_path, around, end):
    ids = [GONE, "u 1", "gäst"]
    lists = (
        end.join(f"{user}{around}" for user in ids),
        end.join(f"{around}{user}{around}" for user in ids) + end,
        "\ufeff" + end.join([around, *(f"{around}{user}" for user in ids), "", around]),
    )
    for content in lists:
        (tmp_path / "users.txt").write_bytes(content.encode())
        assert set(ids) <= users_of(read_lines(str(tmp_path / "users.txt")))
        lines = read_lines(str(tmp_path / "users.txt"))
        assert [min(users, key=len) for users in lines.values()] == ids
    # The ingest keeps an id with a no-break space around it, and a list may mean that one.
    (tmp_path / "users.txt").write_bytes("u\u00a0\n".encode())
    assert users_of(read_lines(str(tmp_path / "users.txt"))) == {"u", "u\u00a0"}


@pytest.mark.parametrize("within", ["\t", "\x00", "\x1f", "\x7f", "\ufeff", "\x0b"], ids=ascii)
def test_a_control_character_within_a_line_is_refused_by_its_number(tmp_path, within):
    (tmp_path / "users.txt").write_bytes(f"u 1\n\nu 2{within}Anna\n".encode())
    with pytest.raises(LTEError, match=r"line 3 of the list of users .* holds a control character") as refused:
        users_of(read_lines(str(tmp_path / "users.txt")))
    assert "u 2" not in str(refused.value)


NOBODY = "name nobody in the rows of events, lte_live, or somebody erased before: "


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["user-1", "user-2\u00a0", "", "user-3\t"], "each of 3 lines names somebody in the rows of events, lte_live"),
        (["# users", "user-1", "USER-1", "user-1,Anna"], f"3 of 4 lines {NOBODY}lines 1, 3, 4"),
        (["late", "nobody"], f"1 of 2 lines {NOBODY}line 2"),
    ],
)
def test_lines_that_name_nobody_are_counted_and_listed(filled, tmp_path, lines, said):
    (tmp_path / "users.txt").write_text("\n".join(lines))
    named, users = read_lines(str(tmp_path / "users.txt")), users_of(read_lines(str(tmp_path / "users.txt")))
    erased = [erase_from_table(filled, table, users) for table in (EVENTS, LTE_LIVE)]
    assert describe_lines(erased, named) == said


def test_a_row_that_was_refused_for_what_stands_around_its_id_goes_too(filled):
    """An id with a control character is in quarantine, and the list has it without."""
    rows = [json.dumps({"user_id": user}) for user in (f"{GONE}\t", f"\ufeff{GONE}", f" {GONE}\r")]
    rows.append(json.dumps({"user_id": f"{GONE}\tx"}))
    refused = [{"feed": "events", "known_date": DAY + ONE_DAY, "reason": "r", "row": row} for row in rows]
    warehouse = filled
    frame(warehouse, QUARANTINE, refused).write.format("delta").mode("append").save(warehouse.path(QUARANTINE))
    erased = erase_from_table(warehouse, QUARANTINE, frozenset({GONE, "nobody"}))
    assert erased.users == {GONE}
    left = [row.row for row in warehouse.read(QUARANTINE).collect()]
    assert not set(rows[:3]) & set(left) and rows[3] in left


def test_no_file_of_the_gates_names_an_erased_user(settings):
    def gate(user):
        rows = pl.DataFrame({"user_id": [user, "good"], "price": [-1.0, 2.0]}).lazy()
        rules = (
            gxe.ExpectColumnValuesToBeBetween(column="price", min_value=0),
            gxe.ExpectColumnValuesToBeInSet(column="user_id", value_set=["good"]),
        )
        with pytest.raises(LTEError):
            check(settings, "events", [CheckedRows("events", rows, ("user_id",), rules)], DAY)

    gate(GONE)
    gate(OTHERS[0])
    pages = {path for path in Path(settings.data_docs).rglob("*.html") if "validations" in path.parts}
    gone = erase_from_gates(settings, ERASED)
    assert {Path(path).suffix for path in gone} == {".json", ".html"} and len(gone) == 2
    for path in Path(settings.data_docs).rglob("*"):
        assert not path.is_file() or "Neil" not in path.read_text(errors="replace"), path
    assert {path for path in pages if not path.exists()} == {Path(path) for path in gone if path.endswith("html")}
    assert OTHERS[0] in Path(settings.data_docs, "site", "gates.html").read_text()
    assert erase_from_gates(settings, ERASED) == []

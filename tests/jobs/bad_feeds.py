r"""Random feeds with every kind of error, and an oracle in plain Python for each row's fate.

A `Said` is what a feed says in one column, and what it means: the value to keep, or the reason to refuse the row.
`rows_of_events` and `rows_of_items` draw them at random. Every row has a number in an extra column, so that only
intended duplicates are exact duplicates. Text is written as bytes: `\udce9` is a single byte that isn't UTF-8.

Longer than 350 lines, because inputs and their expected outcomes stand side by side.
"""

import csv
import datetime
import io
import itertools
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.ingest_items import ALWAYS
from lte_model.domain.windows import Interval

DAYS = Interval(datetime.date(2024, 2, 20), datetime.date(2024, 3, 1))
LAST = datetime.date(2024, 2, 29)
NUMBER = "n.o. `1`"
"""The column with the row's number. Its dot and backtick test that column names are quoted."""
EVENTS = ("user_id", "item_id", "EVENT_TS", "event_type", "Price", "quantity", "known_date", NUMBER)
ITEMS = ("Item_ID", "title", "description", "BRAND", "price", "known_date", NUMBER)
FORMATS = ("parquet", "csv", "jsonl")
BROKEN = "the line cannot be taken apart"
MEGABYTE = "m" * 2**20


@dataclass(frozen=True)
class Said:
    written: str | None
    means: Any = None
    reason: str = ""
    """Why the row is refused; {} stands for the column. Empty if it is kept."""


def _ids(kind: str) -> list[Said]:
    missing, control = "{} is missing", "{} holds a control character"
    return [
        *[Said(text, text) for text in ODD_IDS],
        *[Said(f"{kind}{number}", f"{kind}{number}") for number in range(20)],
        Said(f"  {kind}1 ", f"{kind}1"),
        Said("i" * 1024, "i" * 1024),
        Said(None, reason=missing),
        Said("", reason=missing),
        Said("   ", reason=missing),
        *[
            Said(text, reason=control)
            for text in ("a\nb", "a\r\nb", "tab\t", "nul\0", "\0", "\x7f", "\ufeffbom", "\x1b[31m")
        ],
        *[Said(text, reason="{} is not UTF-8") for text in ("caf\udce9", "caf\udce8", "\udcff\udcfe", "\ufffd")],
        Said("i" * 1025, reason="{} is longer than 1,024 characters"),
    ]


ODD_IDS = (
    "../../etc/passwd",
    "'; DROP TABLE events; --",
    "%2e%2e%2f",
    "$(rm -rf .)",
    "`id`",
    "{{ ds }}",
    "{date}",
    "<script>alert(1)</script>",
    'o"Neil, the "2nd"',
    "C:\\temp\\n",
    "%",
    "_",
    "NULL",
    "null",
    "nan",
    "007",
    "1e3",
    "true",
    '{"a": 1}',
    "日本",
    "👩‍👩‍👧",
    "e\u0301",
    "\u00e9",
    "\u202etxt.exe",
    "\u200fשלום",  # noqa: RUF001 - Hebrew is meant
    "a\u2028b",
    "=1+1",
)
"""Valid ids that look like paths, SQL, templates, markup, numbers or nulls."""


def _utc(*parts: int) -> datetime.datetime:
    return datetime.datetime(*parts, tzinfo=datetime.UTC)


TIMES = [
    *[
        Said(f"2024-02-{day}T{hour:02}:00:00Z", _utc(2024, 2, day, hour))
        for day, hour in itertools.product(range(20, 30), (0, 9, 23))
    ],
    Said("2024-02-29 23:59:59.999999", _utc(2024, 2, 29, 23, 59, 59, 999999)),
    Said("2024-02-29T01:30:00+05:30", _utc(2024, 2, 28, 20)),
    Said("2024-02-29T09:30:00-05:00", _utc(2024, 2, 29, 14, 30)),
    Said("2024-02-29 12:00:00 Europe/Berlin", _utc(2024, 2, 29, 11)),
    Said(" 2024-2-9 ", _utc(2024, 2, 9)),
    Said("1969-12-31T23:59:59Z", _utc(1969, 12, 31, 23, 59, 59)),
    Said("1700-01-01", _utc(1700, 1, 1)),
    *[
        Said(text, reason="{} is not a time")
        for text in (
            None, "", " ", "yesterday", "now", "today", "epoch", "12:00:00", "T12:00", "2024", "2024-02", "2024-02-30",
            "2024-13-01", "2024-02-29T23:59:60Z", "2024-02-29T25:00:00Z", "2024-02-29T12:00:00Zebra", "0000-01-01",
            "0001-01-01", "-0044-03-15", "+2024-02-29", "9999-12-31", "10000-01-01", "1709208000", "170920", "NaN",
            "1e9", "2024-02-29\0", "\u0662\u0660\u0662\u0664-02-29", "29.02.2024", "02/29/2024", "caf\udce9",
        )
    ],
]  # fmt: skip
KNOWN = [
    *[Said(f"2024-02-{day}", datetime.date(2024, 2, day)) for day in range(20, 30)],
    *[Said("2024-02-29", LAST)] * 10,
    Said("2024-02-28T23:30:00-01:00", LAST),
    Said(None),
    Said(""),
    *[
        Said(text, reason="{} is not a time")
        for text in ("soon", "2024-02-31", "9999-12-31", "0000-00-00", "now", "2024", "-1")
    ],
]
NUMBERS = [
    Said(None),
    Said(""),
    Said("  "),
    *[Said(text, float(text)) for text in ("1.5", "-2", "0", "1e3", " 7 ", "007", "1e-300", "1.7976931348623157e308")],
    *[
        Said(text, reason="{} is not a number")
        for text in (
            "cheap", "NaN", "nan", "Infinity", "-Infinity", "inf", "1e400", "-1e400", "1,5", "1.5.0", "€ 2", "--1",
            "1_0", "one\ntwo", "\u0661", "true", "caf\udce9",
        )
    ],
]  # fmt: skip
TEXTS = [
    Said(None),
    Said(""),
    *[Said(text, text) for text in (*ODD_IDS, "view", "two\nlines", "a,b", '"quoted"', "nul\0", "tab\tstop")],
    Said("  view ", "view"),
    Said("caf\udce9", "caf\ufffd"),
]


@dataclass(frozen=True)
class Row:
    """One row of a feed by column, or a malformed line; the feed contains it `times` times."""

    said: dict[str, Said]
    line: str | None = None
    times: int = 1


def rows_of_events(random: random.Random, count: int, mutated: float = 0.3) -> list[Row]:
    """Valid rows, in which a share `mutated` of the columns is redrawn from all valid and invalid values."""
    everything = {
        "user_id": _ids("u"),
        "item_id": _ids("i"),
        "EVENT_TS": TIMES,
        "event_type": TEXTS,
        "Price": NUMBERS,
        "quantity": NUMBERS,
        "known_date": KNOWN,
    }
    good = {
        "EVENT_TS": Said("2024-02-29T12:00:00Z", _utc(2024, 2, 29, 12)),
        "known_date": Said("2024-02-29", LAST),
        "event_type": Said("view", "view"),
        "Price": Said("9.5", 9.5),
        "quantity": Said(None),
    }

    def row(number: int) -> Row:
        said = {"user_id": Said(f"u{number % 997}", f"u{number % 997}"), "item_id": Said("i1", "i1")} | good
        if random.random() < mutated:
            for column in random.sample(sorted(everything), random.choice((1, 1, 2, 7))):
                said[column] = random.choice(everything[column])
        return Row(said, times=random.choice((1,) * 30 + (2, 3)))

    return [row(number) for number in range(count)]


def rows_of_items(random: random.Random, count: int) -> list[Row]:
    everything = {"title": TEXTS, "description": TEXTS, "BRAND": TEXTS, "price": NUMBERS, "known_date": KNOWN}
    # Two rows with one id would be one item: use each odd id once.
    ids = [*{said.written: said for said in _ids("i")}.values()]

    def row(number: int) -> Row:
        # Two ids may become equal when spaces around them or bytes that aren't UTF-8 are removed.
        distinct = number < len(ids) and not (ids[number].written or "").startswith("  ")
        said = {"Item_ID": ids[number] if distinct else Said(f"item {number}", f"item {number}")}
        said |= {column: random.choice(values) for column, values in everything.items()}
        return Row(said, times=random.choice((1,) * 30 + (2, 3)))

    return [row(number) for number in range(count)]


def broken_lines(form: str, width: int) -> list[Row]:
    """Malformed lines of the given file format."""
    lines = {
        "parquet": [],
        "csv": ["one field", "," * width + "one too many", '"a quote"," that',  "caf\udce9"],
        "jsonl": ['{"user_id": "u9", "item', "123", '"text"', "null", '{"user_id": "u\0"}', "{]", "caf\udce9",
                  "\ufeff{"],
    }  # fmt: skip
    # The open quote swallows the rest of the file, so its line comes last.
    return [Row({}, line) for line in sorted(lines[form], key=lambda line: line.startswith('"a quote'))]


def write(path: Path, form: str, columns: Sequence[str], rows: Sequence[Row]) -> Path:
    """Writes the feed in format `form`, with each row's number; returns the path."""
    if form == "parquet":
        table = {column: _strings([row.said[column].written for row in rows for _ in range(row.times)])
                 for column in columns if column != NUMBER}  # fmt: skip
        table[NUMBER] = [str(number) for number, row in enumerate(rows) for _ in range(row.times)]
        pq.write_table(pa.table(table), path)
        return path
    lines = [_header(columns)] if form == "csv" else []
    for number, row in enumerate(rows):
        line = row.line if row.line is not None else _line(form, columns, row, number)
        lines += [line] * row.times
    path.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    return path


def _strings(values: Sequence[str | None]) -> pa.Array:
    """A Parquet string column that may hold bytes that aren't UTF-8."""
    in_bytes = pa.array(
        [None if value is None else value.encode("utf-8", "surrogateescape") for value in values], pa.binary()
    )
    return pa.Array.from_buffers(pa.string(), len(values), in_bytes.buffers(), in_bytes.null_count)


def _header(columns: Sequence[str]) -> str:
    return ",".join(columns)


def _line(form: str, columns: Sequence[str], row: Row, number: int) -> str:
    values = {column: said.written for column, said in row.said.items()} | {NUMBER: str(number)}
    if form == "csv":
        line = io.StringIO()
        csv.writer(line).writerow([values[column] for column in columns])  # quotes values with line breaks
        return line.getvalue().removesuffix("\r\n")
    # Some text escaped as JSON allows, some as raw bytes.
    whole = any("\udc80" <= char <= "\udcff" for value in values.values() if value for char in value)
    return json.dumps(values, ensure_ascii=not whole and number % 2 == 0)


@dataclass(frozen=True)
class Expected:
    """The expected outcome of a feed: its row count, the rows kept, and the possible reasons of the others."""

    read: int
    duplicates: int
    kept: Counter
    quarantined: Counter
    """Counts rows by the sorted tuple of all reasons that apply; the ingest gives one of them."""

    @property
    def account(self) -> tuple[int, int, int, int]:
        return self.read, self.kept.total(), self.quarantined.total(), self.duplicates


def expected_events(rows: Sequence[Row], form: str) -> Expected:
    read, duplicates, kept, quarantined = 0, 0, Counter(), Counter()
    for row in rows:
        if row.line is not None or _is_broken(row, form):
            reasons, day, values = [BROKEN], LAST, None
        else:
            event_ts, known = row.said["EVENT_TS"], row.said["known_date"]
            day = known.means or (event_ts.means and event_ts.means.date()) or LAST
            reasons = _reasons(row, {"EVENT_TS": "event_ts", "Price": "price"})
            if event_ts.means and event_ts.means.date() > day:
                reasons.append("event_ts is after the day on which the event became known")
            values = tuple(
                row.said[name].means for name in ("user_id", "item_id", "EVENT_TS", "event_type", "Price", "quantity")
            )
            values += (day,)
        if day not in DAYS:
            continue
        read += row.times
        duplicates += row.times - 1
        if reasons:
            quarantined[tuple(sorted(reasons))] += 1
        else:
            kept[values] += 1
    return Expected(read, duplicates, kept, quarantined)


def expected_items(rows: Sequence[Row], form: str) -> Expected:
    read, duplicates, kept, quarantined = 0, 0, Counter(), Counter()
    for row in rows:
        read += row.times
        duplicates += row.times - 1
        if row.line is not None or _is_broken(row, form):
            quarantined[(BROKEN,)] += 1
            continue
        reasons = _reasons(row, {"Item_ID": "item_id"})
        values = tuple(row.said[name].means for name in ("Item_ID", "title", "description", "BRAND", "price"))
        if not any(values[1:4]):
            reasons.append("the item has no title, description, category or brand")
        if reasons:
            quarantined[tuple(sorted(reasons))] += 1
        else:
            kept[(*values, row.said["known_date"].means or ALWAYS)] += 1
    return Expected(read, duplicates, kept, quarantined)


def _reasons(row: Row, names: dict[str, str]) -> list[str]:
    return [said.reason.format(names.get(column, column)) for column, said in row.said.items() if said.reason]


def _is_broken(row: Row, form: str) -> bool:
    """Whether the line can't be parsed: JSON must be UTF-8."""
    written = [said.written for said in row.said.values() if said.written]
    return form == "jsonl" and any("\udc80" <= char <= "\udcff" for text in written for char in text)


def values_of_events(frame: DataFrame) -> Counter:
    """The rows that the ingest kept, in the form of `in_micros`."""
    rows = frame.select(
        "user_id", "item_id", F.unix_micros("event_ts"), "event_type", "price", "quantity", "known_date"
    )
    return Counter(map(tuple, rows.collect()))


def in_micros(kept: Counter) -> Counter:
    """The oracle's rows, with times in microseconds since 1970, as in Spark."""
    epoch = _utc(1970, 1, 1)
    return Counter({(*row[:2], (row[2] - epoch) // epoch.resolution, *row[3:]): count for row, count in kept.items()})


def require_reasons(found: Mapping[str, int], quarantined: Counter) -> None:
    """Asserts the number of quarantined rows, and for each reason at least the rows with that reason only."""
    assert sum(found.values()) == quarantined.total()
    assert set(found) <= {reason for reasons in quarantined for reason in reasons}
    for reasons, count in quarantined.items():
        assert len(reasons) > 1 or found[reasons[0]] >= count, reasons

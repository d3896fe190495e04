"""Invariant 6 on random bad feeds: each row is kept with its meaning, or quarantined for a reason that applies.

bad_feeds.py has the oracle and the feeds.
"""

import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F

from jobs.feeds.accounts import COPIES, RAW_ROW, REASON
from jobs.feeds.sources import read_source
from jobs.ingest_events import FEED, TYPES, classify, ingest_events, rows_of
from lte_model.domain.windows import ONE_DAY, Interval
from lte_model.errors import LTEError
from lte_model.warehouse.tables import EVENTS, QUARANTINE
from tests.jobs import bad_feeds as bad
from tests.jobs.feed_files import reads

few_examples = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("form", bad.FORMATS)
@few_examples
@given(seed=st.integers(0, 2**32))
def test_a_row_is_kept_as_it_was_meant_or_refused_for_a_reason_that_holds(spark, tmp_path_factory, form, seed):
    rows = bad.rows_of_events(random.Random(seed), 150, mutated=0.8) + bad.broken_lines(form, len(bad.EVENTS))
    path = bad.write(tmp_path_factory.mktemp("feed") / f"events.{form}", form, bad.EVENTS, rows)
    expected = bad.expected_events(rows, form)
    feed = read_source(spark, str(path), bad.DAYS, TYPES)
    classified = classify(rows_of(feed, bad.DAYS)).cache()
    reasons = Counter()
    copies = 0
    for row in classified.select(REASON, COPIES, RAW_ROW).collect():
        copies += row[COPIES]
        if row[REASON]:
            reasons[row[REASON]] += 1
        if row[REASON] and row[REASON] != bad.BROKEN:
            number = int(json.loads(row[RAW_ROW])[bad.NUMBER])
            of_row = bad.expected_events([rows[number]], form).quarantined
            assert row[REASON] in next(iter(of_row), ()), rows[number]
    assert copies == expected.read
    assert bad.values_of_events(classified.where(F.col(REASON).isNull())) == bad.in_micros(expected.kept)
    bad.require_reasons(reasons, expected.quarantined)
    classified.unpersist()


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_a_day_may_have_its_columns_in_another_order_and_late_rows_count_on_its_day(warehouse, tmp_path):
    """A late event counts on its file's day; an event that became known after that day is refused."""
    write(tmp_path / "in 2024-02-28, out.csv", ",user_id,item_id,event_ts\n0,u1,i1,2024-02-28\n")
    write(
        tmp_path / "in 2024-02-29, out.csv",
        "ITEM_ID,event_ts,Price,user_id,known_date\ni2,2024-02-20,3,u2,\ni3,2024-02-29,4,u3,2024-02-21\n"
        "i4,2024-02-29,5,u4,2024-03-02\n",
    )
    reads(warehouse, events=tmp_path / "in {date}, out.csv")
    account = ingest_events(warehouse, warehouse.settings, Interval(bad.LAST - ONE_DAY, bad.DAYS.end))
    assert (account.rows_read, account.rows_kept) == (4, 3)
    rows = warehouse.read(EVENTS).select("user_id", "item_id", "price", F.dayofmonth("known_date")).collect()
    assert {tuple(row) for row in rows} == {("u1", "i1", None, 28), ("u2", "i2", 3.0, 29), ("u3", "i3", 4.0, 29)}
    assert warehouse.read(QUARANTINE).first().reason == "known_date is after the day of the file"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("events.csv", b"user_id,item_id,event_ts,_day\nu,i,2024-02-29,x\n", "column '_day' of source .* rename it"),
        ("events.csv", b"user_id,item_id,event_ts,user_id\n", "has no column 'user_id'; it has user_id0"),
        ("events.jsonl", b'{"user_id": "u", "item_id": "i", "event_ts": "2024-02-29", "user_id": "v"}\n', "user_id"),
        ("events.csv", b"", "has no column 'user_id'"),
        ("events.csv.gz", b"\x1f\x8b\x08\x00cut off", "events.csv.gz cannot be read"),
        ("events.jsonl", "{'user_id'}".encode("utf-16"), "has no column 'user_id'"),
    ],
)
def test_a_feed_that_cannot_be_used_is_named_and_nothing_is_written(warehouse, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    reads(warehouse, events=tmp_path / name)
    with pytest.raises(LTEError, match=message) as refused:
        ingest_events(warehouse, warehouse.settings, bad.DAYS)
    assert "\n" not in str(refused.value)
    assert not warehouse.exists(EVENTS) and not warehouse.exists(QUARANTINE)


def test_files_of_a_folder_whose_headers_differ_are_refused(warehouse, tmp_path):
    (tmp_path / "events.csv").mkdir()
    write(tmp_path / "events.csv" / "1.csv", "user_id,item_id,event_ts\nu1,i1,2024-02-29\n")
    write(tmp_path / "events.csv" / "2.csv", "item_id,user_id,event_ts\ni2,u2,2024-02-29\n")
    reads(warehouse, events=tmp_path / "events.csv")
    with pytest.raises(LTEError, match=r"events.csv cannot be read"):
        ingest_events(warehouse, warehouse.settings, bad.DAYS)


def test_times_in_nanoseconds_and_columns_of_any_shape(warehouse, tmp_path):
    ids = {"user_id": ["u1", "u1", "u2"], "item_id": ["i1", "i1", "i2"]}
    dated = ids | {"event_ts": pa.array([bad.LAST] * 3, pa.date32()), "price": [1.5, 1.5, float("nan")]}
    others = {
        "a.b": [1, 1, 2],
        "`": ["x", "x", None],
        "struct": [{"x": 1, "y": [float("nan")]}, {"x": 1, "y": [float("nan")]}, None],
        "map": pa.array([[("k", 1)], [("k", 1)], None], pa.map_(pa.string(), pa.int32())),
        "bytes": [b"\xff", b"\xff", None],
    }
    pq.write_table(pa.table(dated | others), tmp_path / "events.parquet")
    reads(warehouse, events=tmp_path / "events.parquet")
    account = ingest_events(warehouse, warehouse.settings, bad.DAYS)
    assert (account.rows_read, account.rows_kept, account.rows_quarantined, account.exact_duplicates) == (3, 1, 1, 1)
    row = json.loads(warehouse.read(QUARANTINE).where(F.col("feed") == FEED).first().row)
    assert row["user_id"] == "u2" and row["a.b"] == 2
    nanoseconds = pa.array([0, 0, 0], pa.timestamp("ns"))
    pq.write_table(pa.table(ids | {"event_ts": nanoseconds}), tmp_path / "events.parquet")
    with pytest.raises(LTEError, match=r"NANOS.*write times in microseconds"):
        ingest_events(warehouse, warehouse.settings, bad.DAYS)

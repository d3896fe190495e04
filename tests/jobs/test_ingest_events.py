"""Invariants 5 and 6 of the ingest (idempotent, no row lost silently), and its errors for a bad feed."""

import datetime
import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.feeds.accounts import COPIES, RAW_ROW, REASON, FeedAccount, days_known, with_missing_days
from jobs.feeds.columns import CORRUPT, SOURCE_FILE
from jobs.ingest_events import FEED, classify, ingest_events, rows_of
from lte_model.domain.windows import ONE_DAY, Interval
from lte_model.errors import LTEError
from lte_model.warehouse.tables import EVENTS, INGESTED_DAYS, QUARANTINE
from tests.jobs.feed_files import EVENT_COLUMNS, event, reads, write_csv, write_json_lines, write_parquet

DATE = datetime.date(2024, 3, 1)
DAY = days_known(DATE, None)

texts = st.sampled_from(["u1", "u2", " u1 ", "", None, "日本 'q\"\n;DROP TABLE", "../x"])
times = st.sampled_from(
    ["2024-02-29T10:00:00Z", "2024-02-28 23:59:59", "2024-03-05T00:00:00Z", "not-a-date", "0000-00-00", "", None]
)
feed_rows = st.builds(
    event,
    user=texts,
    item=texts,
    ts=times,
    known=st.sampled_from(["2024-02-29", "2024-02-28", None]),
    price=st.sampled_from([None, "1.5", "-2", "cheap"]),
)


def tables(warehouse):
    """All rows that the ingest wrote, sorted, without the columns that name the last run."""
    return {
        table.name: sorted(map(str, warehouse.read(table).drop("ingested_for").collect()))
        for table in (EVENTS, QUARANTINE, INGESTED_DAYS)
    }


def ingest(warehouse, days=DAY):
    return ingest_events(warehouse, warehouse.settings, days)


def day_known(row):
    dated = row["event_ts"] if row["event_ts"] and row["event_ts"].startswith("2024") else None
    return datetime.date.fromisoformat((row["known_date"] or dated or str(DAY.start))[:10])


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(feed_rows, min_size=1, max_size=40))
def test_every_row_is_kept_or_quarantined_or_an_exact_duplicate(spark, rows):
    days = Interval(datetime.date(2024, 2, 28), DATE)
    feed = spark.createDataFrame(
        [(*row.values(), None, "feed") for row in rows],
        ", ".join(f"{column} STRING" for column in (*EVENT_COLUMNS, CORRUPT, SOURCE_FILE)),
    )
    found = classify(rows_of(feed, days)).collect()
    of_the_days = Counter(tuple(row.values()) for row in rows if day_known(row) in days)
    assert len(found) == len(of_the_days)
    assert sum(row[COPIES] for row in found) == of_the_days.total()
    for row in found:
        raw = json.loads(row[RAW_ROW])
        assert of_the_days[tuple(raw.get(column) for column in EVENT_COLUMNS)] == row[COPIES]
        assert (row[REASON] is None) == good(raw), raw


def good(row):
    """Whether a row is valid, in plain Python."""
    ids = [row.get(name) or "" for name in ("user_id", "item_id")]
    dated = (row.get("event_ts") or "").startswith("2024")
    return (
        all(name.strip() and "\n" not in name for name in ids)
        and dated
        and datetime.date.fromisoformat(row["event_ts"][:10]) <= day_known({"known_date": None} | row)
        and row.get("price") != "cheap"
    )


def test_each_kind_of_broken_row_is_quarantined_with_its_reason_and_source(warehouse, tmp_path):
    broken = {
        "user_id is missing": event(user="  "),
        "item_id is missing": event(item=None),
        "event_ts is not a time": event(ts="yesterday"),
        "event_ts is after the day on which the event became known": event(ts="2024-03-01T00:00:00Z"),
        "price is not a number": event(price="cheap"),
    }
    feed = write_parquet(tmp_path / "events.parquet", [event(), event(), *broken.values()])
    reads(warehouse, events=feed)
    assert ingest(warehouse) == FeedAccount(7, 1, 5, 1)
    quarantined = {row.reason: row for row in warehouse.read(QUARANTINE).collect()}
    assert set(quarantined) == set(broken)
    for row in quarantined.values():
        assert row.source.endswith("events.parquet") and row.feed == "events" and row.known_date == DAY.start
    assert '"event_ts":"yesterday"' in quarantined["event_ts is not a time"].row


@pytest.mark.parametrize("form", ["csv", "jsonl", "folder", "delta", "table"])
def test_every_form_of_a_feed_gives_the_same_events(warehouse, tmp_path, form):
    rows = [event(user="007"), event(user="u,2", price="1.50"), event(item='i"3"', price="2")]
    if form == "csv":
        place = write_csv(tmp_path / "events.csv", rows)
    elif form == "jsonl":
        place = write_json_lines(tmp_path / "events.jsonl", [row | {"known_date": "2024-02-29"} for row in rows])
    else:
        place = write_parquet(tmp_path / "events" / "part.parquet", rows).parent
    if form in ("delta", "table"):
        place, frame = tmp_path / "lake", warehouse.spark.read.parquet(str(place))
        frame.write.format("delta").save(str(place))
        if form == "table":
            warehouse.spark.sql(f"CREATE OR REPLACE TEMP VIEW shop_events AS SELECT * FROM delta.`{place}`")
            place = "table:shop_events"
    reads(warehouse, events=place)
    ingest(warehouse)
    found = {(row.user_id, row.item_id, row.price, str(row.event_ts)) for row in warehouse.read(EVENTS).collect()}
    noon = str(datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC).astimezone().replace(tzinfo=None))
    assert found == {("007", "i1", None, noon), ("u,2", "i1", 1.5, noon), ("u1", 'i"3"', 2.0, noon)}


def test_a_line_that_cannot_be_taken_apart_is_quarantined_as_it_is(warehouse, tmp_path):
    lines = tmp_path / "events.jsonl"
    write_json_lines(lines, [event()])
    with lines.open("a") as file:
        file.write('{"user_id": "u9", "item\n')
    reads(warehouse, events=lines)
    assert ingest(warehouse) == FeedAccount(2, 1, 1, 0)
    assert warehouse.read(QUARANTINE).first().row == '{"user_id": "u9", "item'


def test_a_broken_line_counts_on_the_last_day_whatever_date_can_be_read_of_it(warehouse, tmp_path):
    lines = tmp_path / "events.jsonl"
    write_json_lines(lines, [event() | {"known_date": "2024-02-29", "title": "linen"}])
    with lines.open("ab") as file:
        for before, after in (("2023-01-01", "2024-02-29"), ("2024-02-29", "2025-01-01")):
            said = (
                f'{{"event_ts": "{before}", "user_id": "u", "item_id": "i", "title": "caf?", "known_date": "{after}"}}'
            )
            file.write(said.encode().replace(b"?", b"\xe9") + b"\n")
    reads(warehouse, events=lines)
    assert ingest(warehouse) == FeedAccount(3, 1, 2, 0)
    assert {row.known_date for row in warehouse.read(QUARANTINE).collect()} == {DAY.start}


def test_a_line_of_a_csv_with_a_field_too_many_is_quarantined(warehouse, tmp_path):
    lines = tmp_path / "events.csv"
    lines.write_text("user_id,item_id,event_ts\nu1,i1,2024-02-29T12:00:00Z\nu2,i2,2024-02-29T12:00:00Z,surprise\n")
    reads(warehouse, events=lines)
    assert ingest(warehouse) == FeedAccount(2, 1, 1, 0)


def test_a_feed_of_a_file_a_day_is_read_by_its_day(warehouse, tmp_path):
    for day in ("2024-02-28", "2024-02-29"):
        write_parquet(tmp_path / f"events-{day}.parquet", [event(user=day, known=None, ts=f"{day}T08:00:00Z")])
    reads(warehouse, events=tmp_path / "events-{date}.parquet")
    ingest(warehouse)
    assert [row.user_id for row in warehouse.read(EVENTS).collect()] == ["2024-02-29"]


def test_a_run_brings_the_days_that_no_run_has_brought(warehouse, tmp_path):
    rows = [event(user=f"u{day}", known=f"2024-02-{day}", ts=f"2024-02-{day}T01:00:00Z") for day in range(20, 27)]
    reads(warehouse, events=write_parquet(tmp_path / "events.parquet", rows))
    ingest(warehouse, days_known(datetime.date(2024, 2, 21), None))
    late = days_known(datetime.date(2024, 2, 25), None)
    assert with_missing_days(warehouse, FEED, late) == Interval(datetime.date(2024, 2, 21), late.end)
    ingest(warehouse, with_missing_days(warehouse, FEED, late))
    assert {row.user_id for row in warehouse.read(EVENTS).collect()} == {f"u{day}" for day in range(20, 25)}
    assert with_missing_days(warehouse, FEED, late) == late


def test_days_in_any_order_and_twice_give_the_tables_of_one_load(new_warehouse, tmp_path):
    rows = [event(user=f"u{n}", known=f"2024-02-{20 + n % 3}", ts=f"2024-02-{18 + n % 3}T01:00:00Z") for n in range(20)]
    rows += [event(user="", known="2024-02-22"), rows[3]]
    feed = write_parquet(tmp_path / "events.parquet", rows)
    once, daily = new_warehouse(), new_warehouse()
    reads(once, events=feed)
    reads(daily, events=feed)
    whole = Interval(datetime.date(2024, 2, 20), datetime.date(2024, 2, 23))
    ingest(once, whole)
    for offset in (2, 0, 1, 0):
        ingest(daily, days_known(whole.start + ONE_DAY * (offset + 1), None))
    assert tables(daily) == tables(once)


def test_an_empty_day_is_an_error_and_touches_no_table(warehouse, tmp_path):
    reads(warehouse, events=write_parquet(tmp_path / "events.parquet", [event(known="2024-02-01", ts="2024-02-01")]))
    with pytest.raises(
        LTEError, match=r"no event became known in \[2024-02-29, 2024-03-01\) in source .*events.parquet"
    ):
        ingest(warehouse)
    assert not warehouse.exists(EVENTS) and not warehouse.exists(QUARANTINE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: .*(does not exist|PATH_NOT_FOUND)"),
        (b"PAR1 this is no parquet file PAR1", "source .*events.parquet cannot be read"),
        ([{"user_id": "u1", "item_id": "i1"}], "has no column 'event_ts'; it has user_id, item_id"),
    ],
)
def test_a_bad_source_is_named_in_one_line(warehouse, tmp_path, content, message):
    path = tmp_path / "events.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        write_parquet(path, content, columns=("user_id", "item_id"))
    reads(warehouse, events=path)
    with pytest.raises(LTEError, match=message):
        ingest(warehouse)
    assert not warehouse.exists(EVENTS)


def test_a_column_of_the_wrong_type_is_named(warehouse, tmp_path):
    frame = warehouse.spark.sql("SELECT 'u1' AS user_id, 'i1' AS item_id, true AS event_ts")
    frame.write.parquet(str(tmp_path / "events"))
    reads(warehouse, events=tmp_path / "events")
    with pytest.raises(LTEError, match=r"column 'event_ts' of source .* has type boolean; give date or string or"):
        ingest(warehouse)

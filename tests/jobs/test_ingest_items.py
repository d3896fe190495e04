"""The catalogue: an item's first content stays, known dates, quarantine, and days in any order."""

import datetime
from itertools import permutations

from jobs.feeds.accounts import FeedAccount
from jobs.ingest_items import ALWAYS, ingest_items
from lte_model.domain.windows import ONE_DAY
from lte_model.warehouse.tables import ITEMS, QUARANTINE
from tests.jobs.feed_files import reads, write_json_lines, write_parquet

DATE = datetime.date(2024, 3, 1)
DATED = ("item_id", "title", "price", "known_date")


def item(item_id="i1", title="Navy linen shirt", known="2024-01-01", price="9.5"):
    return {"item_id": item_id, "title": title, "known_date": known, "price": price}


def catalogue(warehouse):
    return {row.item_id: (row.title, row.known_date) for row in warehouse.read(ITEMS).collect()}


def test_only_items_known_before_the_date_are_there(warehouse, tmp_path):
    rows = [item("a"), item("b", known="2024-02-29"), item("c", known="2024-03-01")]
    reads(warehouse, items=write_parquet(tmp_path / "items.parquet", rows, DATED))
    assert ingest_items(warehouse, warehouse.settings, DATE) == FeedAccount(2, 2, 0, 0)
    assert set(catalogue(warehouse)) == {"a", "b"}


def test_broken_items_are_quarantined_and_none_is_lost(warehouse, tmp_path):
    rows = [
        item("a"),
        item("a"),
        item(None),
        item("b", title=" "),
        item("c", price="free"),
        item("d"),
        item("d", "Red"),
    ]
    reads(warehouse, items=write_parquet(tmp_path / "items.parquet", rows, DATED))
    assert ingest_items(warehouse, warehouse.settings, DATE) == FeedAccount(7, 1, 5, 1)
    assert sorted(row.reason for row in warehouse.read(QUARANTINE).collect()) == [
        "item_id is missing",
        "item_id stands more than once with different content",
        "item_id stands more than once with different content",
        "price is not a number",
        "the item has no title, description, category or brand",
    ]


def test_a_broken_line_takes_no_item_along_whose_id_can_be_read_of_it(warehouse, tmp_path):
    lines = tmp_path / "items.jsonl"
    write_json_lines(lines, [{"item_id": "i1", "title": "Navy linen shirt"}])
    with lines.open("ab") as file:
        file.write(b'{"item_id": "i1", "title": "caf\xe9"}\n')
    reads(warehouse, items=lines)
    assert ingest_items(warehouse, warehouse.settings, DATE) == FeedAccount(2, 1, 1, 0)
    assert [row.item_id for row in warehouse.read(ITEMS).collect()] == ["i1"]


def test_a_catalogue_without_dates_is_known_from_the_start_and_its_new_items_from_their_day(warehouse, tmp_path):
    columns = ("item_id", "title")
    reads(warehouse, items=write_parquet(tmp_path / "items.parquet", [item("a")], columns))
    ingest_items(warehouse, warehouse.settings, DATE)
    write_parquet(tmp_path / "items.parquet", [item("a"), item("b")], columns)
    for _ in range(2):
        ingest_items(warehouse, warehouse.settings, DATE + ONE_DAY * 5)
    known = {item_id: date for item_id, (_, date) in catalogue(warehouse).items()}
    assert known == {"a": ALWAYS, "b": DATE + ONE_DAY * 4}


def test_the_content_known_first_stays_in_any_order_of_days(new_warehouse, tmp_path):
    feed = tmp_path / "items-{date}.parquet"
    for day, title in (("2024-02-27", "first"), ("2024-02-28", "second"), ("2024-02-29", "third")):
        write_parquet(tmp_path / f"items-{day}.parquet", [item(title=title, known=day), item("z", known=day)], DATED)
    dates = [datetime.date(2024, 2, 28) + ONE_DAY * n for n in range(3)]
    for order in list(permutations(dates))[2::3]:
        warehouse = new_warehouse()
        reads(warehouse, items=feed)
        for date in order:
            ingest_items(warehouse, warehouse.settings, date)
        assert catalogue(warehouse)["i1"] == ("first", datetime.date(2024, 2, 27)), order

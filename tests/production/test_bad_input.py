"""A hundred thousand broken rows are accounted for; ids that look like paths, SQL and markup work in every job."""

import datetime
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from pyspark.sql import functions as F

from jobs.build_training_set import build_training_set
from jobs.count_popularity import count_popularity
from jobs.embed_items import embed_items
from jobs.erase_users import read_lines, users_of
from jobs.fit_basis import fit_basis, register
from jobs.ingest_events import ingest_events
from jobs.ingest_items import ingest_items
from jobs.publish_lte import publish_lte
from jobs.quality.check import check
from jobs.quality.suites.by_table import SUITES
from jobs.recipes.bases import load_vectors
from jobs.score_users import score_users
from jobs.snapshot_lte import snapshot_lte
from lte_model.domain.kind import LTEKind
from lte_model.domain.windows import ONE_DAY, Interval
from lte_model.errors import LTEError
from lte_model.training.training_set import open_training_set
from lte_model.warehouse.tables import (
    EVENTS,
    ITEM_EMBEDDINGS,
    ITEMS,
    LTE_LIVE,
    LTE_SNAPSHOTS,
    QUARANTINE,
    SEMANTIC_BASES,
)
from tests.jobs import bad_feeds as bad
from tests.jobs.conftest import settings, spark, warehouse  # noqa: F401
from tests.jobs.feed_files import reads, write_csv
from tests.jobs.test_erase_users import erase
from tests.jobs.test_score_users import new_champion

pytestmark = pytest.mark.production

DATE = datetime.date(2024, 3, 1)
SQL = "'; DROP TABLE events; --"


@pytest.mark.parametrize("form", bad.FORMATS)
def test_a_hundred_thousand_rows_of_which_a_third_is_broken_add_up(warehouse, tmp_path, outcome, form):  # noqa: F811
    chance = random.Random(form)
    rows = bad.rows_of_events(chance, 100_000) + bad.broken_lines(form, len(bad.EVENTS))
    for column, reason in (("user_id", "{} is longer than 1,024 characters"), ("event_type", "")):
        [row] = bad.rows_of_events(chance, 1, mutated=0)
        row.said[column] = bad.Said(bad.MEGABYTE, bad.MEGABYTE, reason)
        rows.insert(0, row)
    reads(warehouse, events=bad.write(tmp_path / f"events.{form}", form, bad.EVENTS, rows))
    expected = bad.expected_events(rows, form)
    account = ingest_events(warehouse, warehouse.settings, bad.DAYS)
    found = (account.rows_read, account.rows_kept, account.rows_quarantined, account.exact_duplicates)
    assert found == expected.account
    assert bad.values_of_events(warehouse.read(EVENTS)) == bad.in_micros(expected.kept)
    quarantine = warehouse.read(QUARANTINE).groupBy("reason").count().collect()
    bad.require_reasons({row["reason"]: row["count"] for row in quarantine}, expected.quarantined)

    items = bad.rows_of_items(chance, 20_000) + bad.broken_lines(form, len(bad.ITEMS))
    items[0].said["title"] = bad.Said(bad.MEGABYTE, bad.MEGABYTE)
    reads(warehouse, items=bad.write(tmp_path / f"items.{form}", form, bad.ITEMS, items))
    expected_items = bad.expected_items(items, form)
    account = ingest_items(warehouse, warehouse.settings, DATE)
    found = (account.rows_read, account.rows_kept, account.rows_quarantined, account.exact_duplicates)
    assert found == expected_items.account
    columns = ("item_id", "title", "description", "brand", "price", "known_date")
    assert Counter(map(tuple, warehouse.read(ITEMS).select(*columns).collect())) == expected_items.kept
    # The kept rows can be read without a JVM; the gate fails on their negative prices.
    suite = SUITES["events"](warehouse.settings, DATE, since=bad.DAYS.start)
    with pytest.raises(LTEError, match=r"rules are broken, the first: events: .*price"):
        check(warehouse.settings, "events", suite, DATE)
    outcome(f"rows of a feed mutated, {form}", times=expected.read + expected_items.read, lost=0, of="rows")


def test_an_id_that_looks_like_sql_or_a_path_is_an_id_and_is_erased_alone(warehouse, tmp_path, outcome):  # noqa: F811
    """Goes through ingest, embedding, snapshot, publication, training set, recommendations, gates and erasure."""
    items = [{"item_id": item, "title": f"linen shirt {item} {number}"} for number, item in enumerate(bad.ODD_IDS)]
    chance = random.Random(0)
    first = DATE - 40 * ONE_DAY
    users = (*bad.ODD_IDS, SQL[:-1], SQL + " ", f"{SQL}x")
    events = [
        {"user_id": user, "item_id": chance.choice(bad.ODD_IDS), "event_ts": str(first + number * ONE_DAY)}
        for user in users
        for number in range(40)
    ]
    reads(
        warehouse,
        items=write_csv(tmp_path / "items.csv", items, ("item_id", "title")),
        events=write_csv(tmp_path / "events.csv", events, ("user_id", "item_id", "event_ts")),
    )
    settings = warehouse.settings  # noqa: F811
    ingest_items(warehouse, settings, DATE)
    ingest_events(warehouse, settings, Interval(first, DATE))
    warehouse.create(SEMANTIC_BASES)
    basis, count = fit_basis(warehouse, DATE)
    register(warehouse, basis, DATE, count)
    assert embed_items(warehouse, DATE)[1:] == (len(items), [])
    assert {row.item_id for row in warehouse.read(ITEM_EMBEDDINGS).collect()} == set(bad.ODD_IDS)
    dates = settings.training_set.dates(DATE).snapshot_dates
    snapshot_lte(warehouse, [*dates, DATE])
    publish_lte(warehouse, DATE)
    count_popularity(warehouse, dates)
    build_training_set(warehouse, DATE)
    training_set = open_training_set(settings, DATE)
    assert set(training_set.cases("test").user_ids) <= set(bad.ODD_IDS) | set(users)
    vectors = load_vectors(warehouse, basis.basis_id)
    kind = LTEKind(basis.basis_id, "uniform", settings.window.lag_days, settings.window.window_days)
    content = torch.from_numpy((vectors.units / 2**14).astype("float32"))
    champion = new_champion(tmp_path, kind, vectors.index.item_ids.to_pylist(), content)
    # SQL with a trailing space is the same id: the ingest strips spaces around ids.
    assert score_users(warehouse, DATE, champion) == len(set(users)) - 1
    check(settings, "lte_live", SUITES["lte_live"](settings, DATE), DATE)

    before = of_others(warehouse)
    names = {name for name, _ in before}
    assert names == set(users) - {SQL, SQL + " "}
    (tmp_path / "list.txt").write_text(f"{SQL}\r\n", encoding="utf-8")
    erased = erase(warehouse, users_of(read_lines(str(tmp_path / "list.txt"))))
    assert erased["events"].rows == 80 and erased["lte_live"].rows == 1
    assert of_others(warehouse) == before
    assert files_with(warehouse, SQL) == [] and files_with(warehouse, f"{SQL}x")
    outcome("users erased among look-alikes", times=1, lost=0, of="rows of others")


def of_others(warehouse):  # noqa: F811
    """(user, rows) for all users but SQL, over the tables that name users."""
    rows = [warehouse.read(table).select("user_id") for table in (EVENTS, LTE_SNAPSHOTS, LTE_LIVE)]
    union = rows[0].unionAll(rows[1]).unionAll(rows[2]).where(F.col("user_id") != SQL)
    return {tuple(row) for row in union.groupBy("user_id").count().collect()}


def files_with(warehouse, user):  # noqa: F811
    """The warehouse's data files that contain a row of the user."""
    files = [pq.ParquetFile(file) for file in Path(warehouse.settings.warehouse).rglob("*.parquet")]
    with_users = [file for file in files if "user_id" in file.schema_arrow.names]
    assert with_users
    return [file for file in with_users if user in file.read(["user_id"])["user_id"].to_pylist()]

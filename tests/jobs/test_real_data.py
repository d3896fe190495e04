"""A public data set through the ordinary path: ingested whole, and its snapshot equal to plain integer sums."""

import datetime
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jobs.embed_items import embed_items
from jobs.fit_basis import fit_basis, register
from jobs.ingest_events import ingest_events
from jobs.ingest_items import ingest_items
from jobs.snapshot_lte import snapshot_lte
from jobs.tables import SEMANTIC_BASES
from lte_model.basis import to_grid
from lte_model.settings import Window
from lte_model.windows import Interval, lte_window
from tests.jobs.conftest import REPOSITORY
from tests.jobs.feeds import reads

DATA = Path(os.environ.get("REAL_DATA", REPOSITORY.parent / "shared" / "data"), "online_retail")
DATE = datetime.date(2011, 12, 10)
WINDOW = Window(lag_days=30, window_days=365)

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the data set online_retail is not at {DATA}; name its folder's parent in REAL_DATA"
)


def test_a_year_of_a_real_shop_is_kept_and_summed_exactly(warehouse):
    reads(warehouse, events=DATA / "events.parquet", items=DATA / "items.parquet")
    warehouse.settings = warehouse.settings.model_copy(update={"window": WINDOW})
    ingest_items(warehouse, warehouse.settings, DATE)
    account = ingest_events(warehouse, warehouse.settings, Interval(datetime.date(2010, 12, 1), DATE))
    assert (account.rows_read, account.rows_kept) == (386_326, 386_326)
    warehouse.create(SEMANTIC_BASES)
    basis, fitted_items = fit_basis(warehouse, DATE)
    register(warehouse, basis, DATE, fitted_items)
    embed_items(warehouse, DATE)
    snapshot_lte(warehouse, [DATE])

    embeddings = pl.scan_delta(warehouse.settings.table_path("item_embeddings")).collect().sort("item_id")
    units = to_grid(np.array(embeddings["vector"].to_list()))
    window = lte_window(DATE, WINDOW.lag_days, WINDOW.window_days)
    rows = (
        pl.read_parquet(DATA / "events.parquet")
        .filter(pl.col("event_ts").dt.date().is_between(window.start, window.end, closed="left"))
        .join(embeddings.select("item_id").with_row_index("row"), on="item_id")
    )
    snapshot = pl.scan_delta(warehouse.settings.table_path("lte_snapshots")).collect()
    found = {user: (vector, count) for user, vector, count in snapshot["user_id", "vector_sum", "event_count"].rows()}
    users = rows.group_by("user_id").agg("row").rows()
    assert found == {user: (units[mine].sum(axis=0).tolist(), len(mine)) for user, mine in users}

"""`encode_items`, and the autoencoder's snapshots: each date uses its own encoder; incremental equals full."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jobs.audit_lte import audit_lte
from jobs.encode_items import encode_items, encoder_directory, read_encoder
from jobs.publish_lte import publish_lte
from jobs.recipes.encoders import EncoderRecord, encoder_of
from jobs.snapshot_lte import snapshot_lte
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.warehouse.tables import ITEM_ENCODINGS, LTE_LIVE, LTE_SNAPSHOTS, SNAPSHOT_ACCOUNTS
from tests.jobs import events as made
from tests.jobs.events import collected, oracle
from tests.jobs.small_tables import DATE, FEED, LAG, VECTORS, WINDOW


def write_encoder(settings, fitted_on, seed=0, items=made.ITEMS, dated="", **described):
    """Writes an encoder with random vectors; returns its unit vectors (items, dimensions)."""
    units = np.random.default_rng(seed).integers(-(2**14), 2**14, (len(items), 4), endpoint=True)
    directory = encoder_directory(settings, "basis", fitted_on)
    directory.mkdir(parents=True, exist_ok=True)
    save_file({"vectors": (units / 2**14).astype(np.float32)}, directory / "encoder.safetensors")
    description = {"encoder_id": f"encoder {seed}", "basis_id": "basis", "fitted_on": dated or str(fitted_on)}
    description |= {"item_ids": list(items)} | described
    (directory / "encoder.json").write_text(json.dumps(description))
    return units


def encoded(units, items=made.ITEMS):
    """The small tables' item vectors, with the encoder's `units` for `items`."""
    mixed = VECTORS.units.copy()
    mixed[[made.ITEMS.index(item) for item in items]] = units
    return dataclasses.replace(VECTORS, units=mixed)


def snapshots(warehouse):
    return collected(warehouse.read(LTE_SNAPSHOTS))


@settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(new_items=st.sets(st.sampled_from(made.ITEMS), max_size=4), age=st.integers(2, 20))
def test_each_date_uses_its_own_encoder_and_a_new_item_its_content(new_filled, new_items, age):
    warehouse = new_filled()
    first, second = DATE - age * ONE_DAY, DATE
    known = [item for item in made.ITEMS if item not in new_items]
    by_first = encoded(write_encoder(warehouse.settings, first, 1, known), known)
    by_second = encoded(write_encoder(warehouse.settings, second, 2))
    assert [written for _, written in encode_items(warehouse, [first, second])] == [True, True]

    before, after = [DATE - 2 * ONE_DAY, DATE - ONE_DAY], [DATE, DATE + ONE_DAY]
    snapshot_lte(warehouse, before[:1], representations=["autoencoder"])
    snapshot_lte(warehouse, [before[1], *after], representations=["autoencoder"])
    expected = oracle(FEED, by_first, before, LAG, WINDOW) | oracle(FEED, by_second, after, LAG, WINDOW)
    assert snapshots(warehouse) == expected
    accounts = warehouse.read(SNAPSHOT_ACCOUNTS).orderBy("snapshot_date").collect()
    assert [(row.snapshot_date, row.encoder_id, row.made_from) for row in accounts] == [
        (before[0], "encoder 1", None),
        (before[1], "encoder 1", before[0]),
        (after[0], "encoder 2", None),
        (after[1], "encoder 2", None),
    ]
    # An encoder fitted later for an earlier day doesn't change a snapshot, even if it is made again.
    write_encoder(warehouse.settings, before[1], 3)
    encode_items(warehouse, [before[1]])
    snapshot_lte(warehouse, before[1:], full=True, representations=["autoencoder"])
    assert snapshots(warehouse) == expected


def test_another_encoder_takes_the_place_of_all_that_is_live_and_the_audit_knows_it(filled):
    write_encoder(filled.settings, DATE - ONE_DAY, 1)
    write_encoder(filled.settings, DATE, 2, made.ITEMS[:4])
    encode_items(filled, [DATE - ONE_DAY, DATE])
    snapshot_lte(filled, [DATE - ONE_DAY, DATE], representations=["uniform", "autoencoder"])
    publish_lte(filled, DATE - ONE_DAY, "autoencoder")
    published = publish_lte(filled, DATE, "autoencoder")
    assert published.written_users == published.users > 0
    live = (
        filled.read(LTE_LIVE).withColumnRenamed("snapshot_date", "since").selectExpr("*", f"DATE'{DATE}' snapshot_date")
    )
    assert collected(live) == collected(
        filled.read(LTE_SNAPSHOTS).where(f"representation = 'autoencoder' AND snapshot_date = DATE'{DATE}'")
    )
    assert audit_lte(filled, DATE, share=1, live=True, name="autoencoder").clean
    with pytest.raises(LTEError, match=r"covers the exact representations alone .uniform, autoencoder."):
        audit_lte(filled, DATE, name="recency")


def test_a_date_without_an_encoder_is_named_before_anything_is_made(filled):
    both = ", then ".join(
        f"python -m {module} --date {DATE} --basis basis"
        for module in ("lte_model.training.autoencoder", "jobs.encode_items")
    )
    with pytest.raises(LTEError, match=f"no encoder of basis basis fitted on {DATE} or before.*{both}"):
        snapshot_lte(filled, [DATE], representations=["uniform", "autoencoder"])
    assert not filled.exists(LTE_SNAPSHOTS)


def test_an_encoder_is_written_once_and_never_replaced(filled):
    units = write_encoder(filled.settings, DATE, 1, made.ITEMS[::-1])
    encode_items(filled, [DATE])
    version = DeltaTable(filled.path(ITEM_ENCODINGS)).version()
    [(_, written)] = encode_items(filled, [DATE])
    assert not written and DeltaTable(filled.path(ITEM_ENCODINGS)).version() == version
    rows = pl.read_delta(filled.path(ITEM_ENCODINGS)).sort("item_id", descending=True)
    assert (rows["vector"].explode().to_numpy().reshape(-1, 4) * 2**14 == units).all()

    for change in ({"seed": 2}, {"seed": 2, "encoder_id": "encoder 1"}):
        write_encoder(filled.settings, DATE, **change)
        with pytest.raises(LTEError, match=f"holds encoder encoder 1 of {DATE}, .* never replaced"):
            encode_items(filled, [DATE])
    for change, said in (
        ({"basis_id": "other"}, "was fitted in basis other, and basis is in force"),
        ({"items": (*"abcd", "zz")}, "names 1 items that table item_embeddings doesn't hold .* first 'zz'"),
    ):
        write_encoder(filled.settings, DATE + ONE_DAY, 3, **change)
        with pytest.raises(LTEError, match=said):
            encode_items(filled, [DATE + ONE_DAY])
    assert DeltaTable(filled.path(ITEM_ENCODINGS)).version() == version


def test_files_that_are_no_encoder_are_refused(settings):
    again = f"run python -m lte_model.training.autoencoder --date {DATE} --basis basis"
    with pytest.raises(LTEError, match=f"no encoder of {DATE}: .*encoder.safetensors does not exist; {again}"):
        read_encoder(settings, "basis", DATE)
    for described, said in (
        ({"dated": str(DATE - ONE_DAY)}, f"was fitted on {DATE - ONE_DAY}, not on {DATE}"),
        ({"item_ids": ["a"]}, "names 1 items in 1 rows, and its tensor `vectors` has the shape"),
        ({"item_ids": list("aabcd")}, "names 4 items in 5 rows"),
    ):
        write_encoder(settings, DATE, **described)
        with pytest.raises(LTEError, match=f"{said}.*; {again}"):
            read_encoder(settings, "basis", DATE)
    write_encoder(settings, DATE)
    vectors = encoder_directory(settings, "basis", DATE) / "encoder.safetensors"
    save_file({"vectors": np.full((5, 4), 0.3, dtype=np.float32)}, vectors)
    with pytest.raises(LTEError, match=r"are not multiples of 2.-14"):
        read_encoder(settings, "basis", DATE)
    vectors.write_bytes(b"nothing")
    with pytest.raises(LTEError, match="can't be read"):
        read_encoder(settings, "basis", DATE)


@given(days=st.sets(st.integers(0, 40)), day=st.integers(0, 40))
def test_a_date_uses_the_newest_encoder_that_is_not_later(days, day):
    encoders = [EncoderRecord(str(number), DATE + ONE_DAY * number) for number in days]
    found = encoder_of(encoders, DATE + ONE_DAY * day)
    earlier = [number for number in days if number <= day]
    assert (found and found.encoder_id) == (str(max(earlier)) if earlier else None)

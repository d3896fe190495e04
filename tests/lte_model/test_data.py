import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lte_model.basis import GRID
from lte_model.data import epoch_batches, open_training_set
from lte_model.errors import LTEError
from tests.lte_model.small_shop import REPRESENTATION, TRAINING_DATE, write_table


@pytest.fixture(scope="module")
def training_set(shop):
    return open_training_set(shop, TRAINING_DATE)


def change(settings, table: str, *columns: pl.Expr, where: pl.Expr | bool = True) -> None:
    """Rewrites a table with `columns` in place of its own in the rows `where`; others stay."""
    frame = pl.scan_delta(settings.table_path(table)).collect()
    new = [
        pl.when(pl.lit(where) if isinstance(where, bool) else where)
        .then(column)
        .otherwise(pl.col(column.meta.output_name()))
        for column in columns
    ]
    changed = frame.with_columns(
        expression.cast(frame.schema[column.meta.output_name()]).alias(column.meta.output_name())
        for column, expression in zip(columns, new, strict=True)
    )
    write_table(settings, table, changed)


def test_cases_are_the_rows_of_the_table(shop, training_set):
    """Against a plain walk over the rows."""
    rows = pl.scan_delta(shop.table_path("training_set")).collect().sort("snapshot_date", "user_id")
    number = {item: row for row, item in enumerate(training_set.catalogue.item_ids)}
    for split in ("train", "validation", "test"):
        cases = training_set.cases(split)
        expected = [
            row
            for row in rows.filter(pl.col("split") == split).iter_rows(named=True)
            if (set(row["item_ids"]) & set(number) if split == "train" else row["target_item_id"] in number)
        ]
        assert cases.user_ids.to_list() == [row["user_id"] for row in expected]
        for i, row in enumerate(expected):
            found = cases.items[cases.offsets[i] : cases.offsets[i + 1]]
            assert found.tolist() == [number[item] for item in row["item_ids"] if item in number]
            assert cases.targets[i] == (-1 if split == "train" else number[row["target_item_id"]])
            assert cases.has_lte[i] == (row["event_count"] > 0)
            if cases.has_lte[i]:
                mean = np.array(row["vector_sum"]) / (row["event_count"] * GRID)
                assert np.array_equal(cases.lte[i], mean.astype(np.float32))
        assert {True, False} == set(cases.has_lte.tolist())  # the shop has both
    assert (training_set.cases("test").lengths == 0).any()


def test_the_catalogue_is_what_was_known_before_the_test_cut(shop, training_set):
    items = pl.scan_delta(shop.table_path("items")).collect()
    cut = training_set.dates.test.start
    assert training_set.catalogue.item_ids.to_list() == sorted(items.filter(pl.col("known_date") < cut)["item_id"])
    vectors = dict(pl.scan_delta(shop.table_path("item_embeddings")).select("item_id", "vector").collect().iter_rows())
    for item, vector in zip(training_set.catalogue.item_ids, training_set.catalogue.vectors, strict=True):
        assert vector.tolist() == vectors[item]


def test_a_case_whose_target_is_unknown_is_dropped_whole_and_counted(own_shop):
    cut = open_training_set(own_shop, TRAINING_DATE).dates.test.start
    before = open_training_set(own_shop, TRAINING_DATE).cases("test")
    targets = pl.scan_delta(own_shop.table_path("training_set")).filter(pl.col("split") == "test").collect()
    unknown = targets["target_item_id"][0]
    change(own_shop, "items", pl.lit(cut).alias("known_date"), where=pl.col("item_id") == unknown)
    training_set = open_training_set(own_shop, TRAINING_DATE)
    after = training_set.cases("test")
    users = set(targets.filter(pl.col("target_item_id") == unknown)["user_id"])
    assert unknown not in training_set.catalogue.item_ids
    assert after.dropped_unknown_target == before.dropped_unknown_target + len(users)
    assert set(after.user_ids) == set(before.user_ids) - users


def test_batches_are_padded_on_the_right_and_hold_the_newest_events(training_set):
    cases = training_set.cases("test")
    numbers = np.array([3, 0, 7, 3])
    for most in (None, 2):
        batch = cases.batch(numbers, most)
        for row, i in enumerate(numbers):
            events = cases.items[cases.offsets[i] : cases.offsets[i + 1]].tolist()
            events = events if most is None else events[-most:]
            assert batch.lengths[row] == len(events)
            assert batch.items[row, : len(events)].tolist() == events
            assert not batch.items[row, len(events) :].any()
        assert batch.items.shape[1] == batch.lengths.max()


def test_the_target_is_no_part_of_the_input(own_shop):
    """Every test target becomes an item that occurs nowhere else: no input may hold it."""
    change(own_shop, "training_set", pl.lit("i000").alias("target_item_id"), where=pl.col("split") == "test")
    change(
        own_shop,
        "training_set",
        pl.col("item_ids").list.eval(pl.element().filter(pl.element() != "i000")).alias("item_ids"),
    )
    training_set = open_training_set(own_shop, TRAINING_DATE)
    cases = training_set.cases("test")
    assert len(cases) and (cases.targets == 0).all() and training_set.catalogue.item_ids[0] == "i000"
    assert 0 not in cases.items
    batch = cases.batch(np.arange(len(cases)))
    for row, length in zip(batch.items, batch.lengths, strict=True):
        assert 0 not in row[:length]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 5),
    epoch=st.integers(1, 5),
)
@settings(deadline=None)
def test_an_epoch_holds_every_case_once(lengths, batch_size, seed, epoch):
    lengths = np.array(lengths)
    batches = epoch_batches(lengths, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    again = epoch_batches(lengths, batch_size, seed, epoch)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    budget = max(1, round(batch_size * lengths.mean()))
    assert max(lengths[batch].sum() for batch in batches) <= budget + lengths.max()


def test_epochs_differ_in_order_and_spare_padding():
    lengths = np.random.default_rng(0).integers(1, 51, 5000)
    first, second = (epoch_batches(lengths, 64, 0, epoch) for epoch in (1, 2))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    padded = sum(len(batch) * lengths[batch].max() for batch in first)
    assert padded < 1.1 * lengths.sum()


@pytest.mark.parametrize("table", ["training_set", "items", "item_embeddings", "semantic_bases"])
def test_a_missing_table_is_named(shop, tmp_path, table):
    (tmp_path / "warehouse").mkdir()
    for other in ("training_set", "items", "item_embeddings", "semantic_bases"):
        if other != table:
            (tmp_path / "warehouse" / other).symlink_to(shop.table_path(other))
    elsewhere = shop.model_copy(update={"warehouse": str(tmp_path / "warehouse")})
    with pytest.raises(LTEError, match=f"table {table} does not exist at .*; run jobs"):
        open_training_set(elsewhere, TRAINING_DATE)


def test_a_date_without_rows_is_named(shop):
    with pytest.raises(LTEError, match="training_set has no rows of 2024-11-01; run jobs.build_training_set"):
        open_training_set(shop, datetime.date(2024, 11, 1))


def test_two_bases_in_one_training_set_are_refused_by_name(own_shop):
    change(own_shop, "training_set", pl.lit("77c0").alias("basis_id"), where=pl.col("user_id") == "u003")
    with pytest.raises(LTEError, match=f"mixes LTEs.*77c0 {REPRESENTATION}, lag 20, window 200"):
        open_training_set(own_shop, TRAINING_DATE)


def test_an_unregistered_basis_is_refused_by_name(own_shop):
    basis_id = open_training_set(own_shop, TRAINING_DATE).kind.basis_id
    change(own_shop, "semantic_bases", pl.lit("77c0").alias("basis_id"))
    with pytest.raises(LTEError, match=f"basis {basis_id} .* is not registered in table semantic_bases"):
        open_training_set(own_shop, TRAINING_DATE)


def test_other_cuts_than_the_settings_are_refused(shop):
    longer = shop.model_copy(update={"training_set": shop.training_set.model_copy(update={"test_days": 25})})
    with pytest.raises(LTEError, match="built with the test cut 2024-11-11, but the settings say 2024-11-06"):
        open_training_set(longer, TRAINING_DATE)


def test_a_vector_of_other_dimensions_is_refused(own_shop):
    change(
        own_shop,
        "training_set",
        pl.col("vector_sum").list.head(3).alias("vector_sum"),
        where=pl.col("user_id") == "u003",
    )
    with pytest.raises(LTEError, match="training_set of 2024-12-01 holds a vector of 3 dimensions among those of 8"):
        open_training_set(own_shop, TRAINING_DATE).cases("train")


def test_versions_are_those_of_the_first_look(own_shop):
    training_set = open_training_set(own_shop, TRAINING_DATE)
    before = training_set.cases("test")
    change(own_shop, "training_set", pl.lit("i001").alias("target_item_id"), where=pl.col("split") == "test")
    assert np.array_equal(training_set.cases("test").targets, before.targets)
    assert not np.array_equal(open_training_set(own_shop, TRAINING_DATE).cases("test").targets, before.targets)

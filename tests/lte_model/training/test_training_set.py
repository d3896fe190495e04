import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lte_model.domain.basis import GRID
from lte_model.errors import LTEError
from lte_model.settings import Training, Window, load_settings
from lte_model.training.training_set import open_training_set
from lte_model.warehouse.popularity import popularity_matrix
from tests.lte_model.small_shop import (
    OTHER_REPRESENTATION,
    REPRESENTATION,
    SETTINGS,
    TRAINING_DATE,
    make_shop,
    with_model,
    write_table,
    write_warehouse,
)


def change(settings, table: str, *columns: pl.Expr, where: pl.Expr | bool = True) -> None:
    """Rewrites a table: `columns` replace its own in the rows that match `where`."""
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


def targets_of(row: dict) -> set[str]:
    return set(row["item_ids"][len(row["item_ids"]) - row["target_count"] :])


def snapshots_of(shop, representation: str) -> dict:
    frame = pl.scan_delta(shop.table_path("lte_snapshots")).filter(pl.col("representation") == representation)
    return {(row["snapshot_date"], row["user_id"]): row for row in frame.collect().iter_rows(named=True)}


def test_cases_are_the_rows_of_the_table(shop, training_set):
    """Compares with a plain loop over the rows."""
    rows = pl.scan_delta(shop.table_path("training_set")).collect().sort("snapshot_date", "user_id")
    number = {item: row for row, item in enumerate(training_set.catalogue.item_ids)}
    ltes = snapshots_of(shop, REPRESENTATION)
    for split in ("train", "validation", "test"):
        cases = training_set.cases(split)
        expected = [
            row
            for row in rows.filter(pl.col("split") == split).iter_rows(named=True)
            if (targets_of(row) & set(number) if split == "train" else row["target_item_id"] in number)
        ]
        assert cases.user_ids.to_list() == [row["user_id"] for row in expected]
        for i, row in enumerate(expected):
            read = row["item_ids"][len(row["item_ids"]) - row["target_count"] :]
            assert cases.sequence(i).tolist() == [number[item] for item in read if item in number]
            assert cases.target_counts[i] == cases.lengths[i]
            assert cases.targets[i] == (-1 if split == "train" else number[row["target_item_id"]])
            snapshot = ltes.get((row["snapshot_date"], row["user_id"]))
            assert cases.has_lte[i] == [snapshot is not None]
            if snapshot:
                mean = np.array(snapshot["vector_sum"]) / (snapshot["event_count"] * GRID)
                assert np.array_equal(cases.lte[i, 0], mean.astype(np.float32))
        assert {True, False} == set(cases.has_lte[:, 0].tolist())  # users with and without LTE
    assert (training_set.cases("test").lengths == 0).any()


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


def test_the_target_is_no_part_of_the_input(own_shop):
    """Every test target becomes an item that occurs nowhere else, so no input may contain it."""
    change(own_shop, "training_set", pl.lit("i000").alias("target_item_id"), where=pl.col("split") == "test")
    change(
        own_shop,
        "training_set",
        pl.col("item_ids").list.eval(pl.element().replace("i000", "i001")).alias("item_ids"),
    )
    training_set = open_training_set(own_shop, TRAINING_DATE)
    cases = training_set.cases("test")
    assert len(cases) and (cases.targets == 0).all() and training_set.catalogue.item_ids[0] == "i000"
    assert 0 not in cases.items
    batch = cases.batch(np.arange(len(cases)))
    for row, length in zip(batch.items, batch.lengths, strict=True):
        assert 0 not in row[:length]


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
    with pytest.raises(LTEError, match=r"training_set has no rows of 2024-11-01; run jobs.build_training_set"):
        open_training_set(shop, datetime.date(2024, 11, 1))


def test_two_bases_in_one_training_set_are_refused_by_name(own_shop):
    change(own_shop, "training_set", pl.lit("77c0").alias("basis_id"), where=pl.col("user_id") == "u003")
    with pytest.raises(LTEError, match=r"mixes LTEs.*77c0, lag 20, window 200"):
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
        "lte_snapshots",
        pl.col("vector_sum").list.head(3).alias("vector_sum"),
        where=pl.col("user_id") == "u003",
    )
    with pytest.raises(LTEError, match=r"lte_snapshots, .* holds a vector of 3 dimensions among those of 8"):
        open_training_set(own_shop, TRAINING_DATE).cases("train")


def test_a_missing_snapshot_is_named_with_the_command_that_makes_it(own_shop):
    newest = open_training_set(own_shop, TRAINING_DATE).dates.anchors[-1]
    frame = pl.scan_delta(own_shop.table_path("lte_snapshots")).filter(pl.col("snapshot_date") != newest).collect()
    write_table(own_shop, "lte_snapshots", frame)
    with pytest.raises(
        LTEError, match=f"holds no LTE of {newest} in .*python -m jobs.snapshot_lte --date {TRAINING_DATE} --anchors"
    ):
        open_training_set(own_shop, TRAINING_DATE).cases("train")


def test_a_snapshot_of_another_lag_is_named(own_shop):
    change(own_shop, "lte_snapshots", pl.lit(19).alias("lag_days"))
    with pytest.raises(
        LTEError, match=r"has lag 19 and window 200, where the training_set of .* asks for 20 and 200; run"
    ):
        open_training_set(own_shop, TRAINING_DATE).cases("train")


def test_the_leaking_window_alone_has_no_lag(own_shop):
    change(own_shop, "lte_snapshots", pl.lit(0).cast(pl.Int32).alias("lag_days"))
    with pytest.raises(LTEError, match=r"the uniform LTE of .* has lag 0 and window 200"):
        open_training_set(own_shop, TRAINING_DATE).cases("train")
    change(own_shop, "lte_snapshots", pl.lit("leaking").alias("representation"))
    frame = pl.scan_delta(own_shop.table_path("lte_snapshots")).unique(["snapshot_date", "user_id"]).collect()
    write_table(own_shop, "lte_snapshots", frame)
    assert open_training_set(with_model(own_shop, representations=("leaking",)), TRAINING_DATE).cases("train").lte.any()


def test_representations_stand_side_by_side(shop):
    both = with_model(shop, representations=(REPRESENTATION, OTHER_REPRESENTATION))
    training_set = open_training_set(both, TRAINING_DATE)
    cases = training_set.cases("test")
    assert training_set.kind.representations == (REPRESENTATION, OTHER_REPRESENTATION)
    assert cases.lte.shape[1] == 2 and (cases.lte[:, 0] == -cases.lte[:, 1]).all() and cases.lte.any()


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 1000),
    lag_days=st.integers(1, 60),
    window_days=st.integers(20, 250),
    max_tokens=st.integers(2, 15),
    policy=st.sampled_from(["lagged", "newest"]),
    predict_from=st.sampled_from(["earlier_days", "earlier_events"]),
)
def test_no_target_is_dated_before_the_lag_and_no_lte_holds_one(
    tmp_path_factory, seed, lag_days, window_days, max_tokens, policy, predict_from
):
    """Invariant 1 (no leak) in a batch: compares its targets' dates with its inputs' dates."""
    folder = tmp_path_factory.mktemp("leak")
    (folder / "settings.toml").write_text(SETTINGS)
    shop = with_model(load_settings(folder / "settings.toml"), sequence=policy, max_tokens=max_tokens)
    window = Window(lag_days=lag_days, window_days=window_days)
    shop = shop.model_copy(update={"window": window, "training": Training(predict_from=predict_from)})
    events, items = make_shop(users=12, seed=seed)
    write_warehouse(shop, events, items, TRAINING_DATE)
    training_set = open_training_set(shop, TRAINING_DATE)
    cases = training_set.cases("train")
    windows = cases.windows(max_tokens - 1)
    ltes = snapshots_of(shop, REPRESENTATION)
    number = {item: row for row, item in enumerate(training_set.catalogue.item_ids)}
    dates = sorted(set(training_set.rows("train").collect()["snapshot_date"]))
    known = {}  # (row, day) of every event in a case, oldest first
    for row in training_set.rows("train").collect().to_dicts():
        steps = zip(row["item_ids"], row["event_times"], strict=True)
        known[row["snapshot_date"], row["user_id"]] = [(number[i], t.date()) for i, t in steps if i in number]
    predicted = []
    for i, user in enumerate(windows.user_ids):
        date = dates[windows.dates[i]]
        case = np.flatnonzero((cases.user_ids == user).to_numpy() & (cases.dates == windows.dates[i]))[0]
        held = known[date, user][-cases.lengths[case] :]
        place = int(windows.lengths[i])  # the window ends before the case's event at this place
        targets = held[place - windows.target_counts[i] : place]
        batch = windows.training_batch(np.array([i]), max_tokens - 1)
        assert batch.targets.tolist() == [item for item, _ in targets] != []
        for event, read in enumerate(batch.target_places.tolist(), start=place - len(targets)):
            before = [item for item, day in held[:event] if predict_from == "earlier_events" or day < held[event][1]]
            assert batch.items[0, :read].tolist() == before[len(before) - read :]
            assert read > 0 or not before
        assert all(date - datetime.timedelta(days=lag_days) <= day < date for _, day in targets)
        snapshot = ltes.get((date, user))
        assert windows.has_lte[i, 0] == (snapshot is not None)
        assert snapshot is None or snapshot["newest_event_date"] < min(day for _, day in targets)
        predicted += [(date, user, event) for event in range(place - windows.target_counts[i], place)]
    assert len(predicted) == len(set(predicted)) == cases.target_counts.sum()
    if policy == "lagged":
        assert (cases.lengths == cases.target_counts).all()


def test_an_item_of_the_history_is_seen_under_both_policies(shop):
    """An item that a user bought long ago counts as seen; an item that nobody ever bought doesn't."""
    settings = with_model(shop, sequence="lagged")
    lagged = open_training_set(settings, TRAINING_DATE)
    newest = open_training_set(with_model(shop, sequence="newest"), TRAINING_DATE).cases("train")
    rows = lagged.rows("train").collect()["item_ids"].explode().unique()
    expected = lagged.catalogue.item_ids.is_in(rows.implode()).to_list()
    assert lagged.cases("train").seen.tolist() == newest.seen.tolist() == expected


def test_popularity_is_standardised_for_each_date(shop):
    training_set = open_training_set(with_model(shop, popularity_bias=True), TRAINING_DATE)
    cases = training_set.cases("train")
    assert cases.popularity.shape == (3, 4, len(training_set.catalogue))
    np.testing.assert_allclose(cases.popularity.mean(axis=2), 0, atol=1e-5)
    np.testing.assert_allclose(cases.popularity.std(axis=2), 1, atol=1e-4)
    newest = pl.scan_delta(shop.table_path("item_popularity")).filter(
        pl.col("snapshot_date") == training_set.dates.anchors[-1]
    )
    most, least = newest.sort("events_window", "item_id").select("item_id").collect()["item_id"][[-1, 0]]
    place = {item: row for row, item in enumerate(training_set.catalogue.item_ids)}
    counts = cases.popularity[2, 2]
    assert counts[place[most]] == counts.max() > counts[place[least]]


def test_missing_counts_are_named_with_the_command_that_makes_them(own_shop):
    own_shop = with_model(own_shop, popularity_bias=True)
    cut = open_training_set(own_shop, TRAINING_DATE).dates.test.start
    frame = pl.scan_delta(own_shop.table_path("item_popularity")).collect()
    of_cut = pl.col("snapshot_date") == cut
    named = f"no counts of {cut}, or those of an earlier release; run python -m jobs.count_popularity --date 2024-12-01"
    for spoilt in (
        frame.filter(~of_cut),
        frame.with_columns(pl.when(~of_cut).then("events_180d").alias("events_180d")),
    ):
        write_table(own_shop, "item_popularity", spoilt)
        with pytest.raises(LTEError, match=named):
            open_training_set(own_shop, TRAINING_DATE).cases("test")


def test_a_table_of_a_release_that_knew_fewer_counts_is_named(shop):
    training_set = open_training_set(shop, TRAINING_DATE)
    cut, rows = training_set.dates.test.start, training_set.catalogue.rows
    counts = training_set.tables.scan("item_popularity").drop("events_180d")
    with pytest.raises(LTEError, match=f"no counts of {cut}, or those of an earlier release; run python -m"):
        popularity_matrix(counts, rows, [cut], TRAINING_DATE)


def test_versions_are_those_of_the_first_look(own_shop):
    training_set = open_training_set(own_shop, TRAINING_DATE)
    before = training_set.cases("test")
    change(own_shop, "training_set", pl.lit("i001").alias("target_item_id"), where=pl.col("split") == "test")
    assert np.array_equal(training_set.cases("test").targets, before.targets)
    assert not np.array_equal(open_training_set(own_shop, TRAINING_DATE).cases("test").targets, before.targets)


def test_train_and_refit_together_are_the_cases_of_both(shop):
    """A refit reads the training's cases and the targets of the days before the test cut, but no test target."""
    training_set = open_training_set(with_model(shop, popularity_bias=True), TRAINING_DATE)
    train, refit, both = (training_set.cases(*splits) for splits in (("train",), ("refit",), ("train", "refit")))
    assert len(refit) > 0 and (refit.targets == -1).all()

    def contents(*of):
        return sorted(
            (user, cases.sequence(i).tolist(), cases.target_counts[i], cases.lte[i].tolist())
            for cases in of
            for i, user in enumerate(cases.user_ids)
        )

    assert contents(both) == contents(train, refit)
    assert np.array_equal(both.seen, train.seen | refit.seen)
    assert both.popularity.shape == (4, 4, len(training_set.catalogue))
    np.testing.assert_array_equal(both.popularity[3], refit.popularity[0])
    assert both.dates[-1] == 3 and (refit.dates == 0).all()
    cut = training_set.dates.test.start
    rows = training_set.rows("refit").collect()
    assert rows["snapshot_date"].unique().to_list() == [cut]
    assert rows["event_times"].explode().dt.date().max() < cut
    newest = training_set.rows("train").collect()["event_times"].explode().dt.date().max()
    assert newest < rows["oldest_target_date"].min()  # no target is trained on twice

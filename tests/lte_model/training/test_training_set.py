import dataclasses
import datetime
import math
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lte_model.domain.basis import GRID
from lte_model.errors import LTEError
from lte_model.ranker.cases import first_places
from lte_model.settings import Basis, Settings, Training, Window, load_settings
from lte_model.training.fit import epoch_batches
from lte_model.training.training_set import open_training_set
from lte_model.warehouse.catalogue import basis_in_force
from lte_model.warehouse.popularity import popularity_matrix
from lte_model.warehouse.reading import Tables
from tests.lte_model.small_shop import (
    OTHER_REPRESENTATION,
    REPRESENTATION,
    SETTINGS,
    TRAINING_DATE,
    make_shop,
    write_table,
    write_warehouse,
)


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


def targets_of(row: dict) -> set[str]:
    return set(row["item_ids"][len(row["item_ids"]) - row["target_count"] :])


def snapshots_of(shop, representation: str) -> dict:
    frame = pl.scan_delta(shop.table_path("lte_snapshots")).filter(pl.col("representation") == representation)
    return {(row["snapshot_date"], row["user_id"]): row for row in frame.collect().iter_rows(named=True)}


def with_model(shop, **options):
    return shop.model_copy(update={"model": shop.model.model_copy(update=options)})


def test_cases_are_the_rows_of_the_table(shop, training_set):
    """Against a plain walk over the rows."""
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
        assert {True, False} == set(cases.has_lte[:, 0].tolist())  # the shop has both
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
            events = cases.sequence(i).tolist()
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
        pl.col("item_ids").list.eval(pl.element().replace("i000", "i001")).alias("item_ids"),
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
    batches = epoch_batches(lengths, lengths, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    again = epoch_batches(lengths, lengths, batch_size, seed, epoch)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    budget = max(1, round(batch_size * lengths.mean()))
    assert max(lengths[batch].sum() for batch in batches) <= budget + lengths.max()


def test_epochs_differ_in_order_and_spare_padding():
    lengths = np.random.default_rng(0).integers(1, 51, 5000)
    first, second = (epoch_batches(lengths, lengths, 64, 0, epoch) for epoch in (1, 2))
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
    """Invariant 1 as the model meets it: what a batch predicts, by the dates of the events themselves."""
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
    known = {}  # (row, day) of every event that a case holds, oldest first
    for row in training_set.rows("train").collect().to_dicts():
        steps = zip(row["item_ids"], row["event_times"], strict=True)
        known[row["snapshot_date"], row["user_id"]] = [(number[i], t.date()) for i, t in steps if i in number]
    predicted = []
    for i, user in enumerate(windows.user_ids):
        date = dates[windows.dates[i]]
        case = np.flatnonzero((cases.user_ids == user).to_numpy() & (cases.dates == windows.dates[i]))[0]
        held = known[date, user][-cases.lengths[case] :]
        place = int(windows.lengths[i])  # the window ends before this event of the case
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


@given(
    cases=st.lists(
        st.tuples(st.lists(st.integers(1, 8), max_size=8), st.lists(st.integers(1, 8), min_size=1, max_size=8)),
        min_size=1,
        max_size=20,
    ),
    max_events=st.integers(1, 12),
)
@settings(deadline=None)
def test_windows_predict_each_target_once_after_an_earlier_day(training_set, cases, max_events):
    """`cases` are (days before the lag, days that are predicted), each the number of its events."""
    ends = np.cumsum([sum(before) + sum(after) for before, after in cases])
    targets = np.array([sum(after) for _, after in cases])
    day = np.repeat(np.arange(sum(len(b) + len(a) for b, a in cases)), [n for b, a in cases for n in b + a])
    whole = dataclasses.replace(
        training_set.cases("train").taken(np.zeros(len(cases), dtype=np.int64)),
        items=np.arange(ends[-1]),
        inputs_end=first_places(day),
        gaps=np.zeros(ends[-1], dtype=np.uint8),
        starts=np.append(0, ends[:-1]),
        ends=ends,
        target_counts=targets,
    )
    windows = whole.windows(max_events)
    predicted = []
    for i in range(len(windows)):
        batch = windows.training_batch(np.array([i]), max_events)
        found = batch.targets.tolist()
        assert len(found) == windows.target_counts[i] > 0 and batch.items.shape[1] <= max_events
        for target, place in zip(found, batch.target_places.tolist(), strict=True):
            first = int(np.searchsorted(day, day[target]))
            assert batch.items[0, :place].tolist() == list(range(first - place, first))
            assert place > 0 or first in whole.starts
        predicted += found
    expected = [event for end, count in zip(ends, targets, strict=True) for event in range(end - count, end)]
    assert sorted(predicted) == expected
    last = whole.windows(max_events, last_only=True)
    assert last.training_batch(np.arange(len(cases)), max_events).targets.tolist() == (ends - 1).tolist()


def test_an_item_of_the_history_is_seen_under_both_policies(shop):
    """What a user once bought and nobody buys now was seen; what nobody has ever bought was not."""
    settings = with_model(shop, sequence="lagged")
    lagged = open_training_set(settings, TRAINING_DATE)
    newest = open_training_set(with_model(shop, sequence="newest"), TRAINING_DATE).cases("train")
    rows = lagged.rows("train").collect()["item_ids"].explode().unique()
    expected = lagged.catalogue.item_ids.is_in(rows.implode()).to_list()
    assert lagged.cases("train").seen.tolist() == newest.seen.tolist() == expected


def test_gaps_lead_to_the_next_event_and_the_last_to_the_date(shop):
    training_set = open_training_set(with_model(shop, sequence="newest"), TRAINING_DATE)
    cases = training_set.cases("test")
    cut = datetime.datetime.combine(training_set.dates.test.start, datetime.time(), datetime.UTC)
    rows = {row["user_id"]: row for row in training_set.rows("test").collect().to_dicts()}
    catalogue = set(training_set.catalogue.item_ids)
    for i, user in enumerate(cases.user_ids):
        known = [item in catalogue for item in rows[user]["item_ids"]]
        times = [time for time, has in zip(rows[user]["event_times"], known, strict=True) if has] + [cut]
        minutes = [(after - before).total_seconds() // 60 for before, after in pairwise(times)]
        expected = [min(int(math.log2(1 + gap)), 23) for gap in minutes]
        assert cases.gaps[cases.starts[i] : cases.ends[i]].tolist() == expected


def test_older_events_are_those_before_the_sequence(shop):
    cases = open_training_set(with_model(shop, sequence="newest"), TRAINING_DATE).cases("test")
    numbers = np.arange(len(cases))
    batch = cases.batch(numbers, most_events=4, older_events=6)
    for i in numbers:
        events = cases.sequence(i).tolist()
        assert batch.items[i, : batch.lengths[i]].tolist() == events[-4:]
        assert batch.older[i, : batch.older_lengths[i]].tolist() == events[:-4][-6:]
    assert (batch.older_lengths == 6).any()


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
    """A refit reads what training read, and the targets of the days before the test cut, none of the test's."""
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


def test_the_basis_in_force_is_that_of_the_settings_or_the_only_one(tmp_path):
    def in_force(registered: list[str], wanted: str = "") -> str:
        settings = Settings(warehouse=str(tmp_path), basis=Basis(basis_id=wanted))
        write_table(settings, "semantic_bases", pl.DataFrame({"basis_id": registered}))
        return basis_in_force(Tables(settings))

    assert in_force(["aa"]) == "aa" == in_force(["bb", "aa"], wanted="aa")
    with pytest.raises(LTEError, match=r"2 bases are registered \(aa, bb\); set basis.basis_id to one"):
        in_force(["bb", "aa"])
    with pytest.raises(LTEError, match=r"basis cc is not registered in .*semantic_bases \(it holds aa, bb\)"):
        in_force(["bb", "aa"], wanted="cc")
    with pytest.raises(LTEError, match=r"table semantic_bases does not exist at .*; run jobs.fit_basis first"):
        basis_in_force(Tables(Settings(warehouse=str(tmp_path / "nowhere"))))

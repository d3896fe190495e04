"""The map between two bases: it recovers a rotation, its loss is correct, and every reader refuses mapped LTEs."""

import dataclasses
import datetime
import json

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient
from safetensors.numpy import load_file

from lte_model.domain.basis import GRID
from lte_model.errors import LTEError
from lte_model.evaluation.ranked import read_by
from lte_model.registry.basis_map import (
    DESCRIPTION_FILE,
    MAP_FILE,
    BasisMap,
    fit_map,
    keep_map,
    loss_of,
    make_map,
    mapped_set,
    ranking_figures,
    ranking_loss,
)
from lte_model.tracking import runs
from lte_model.training.training_set import open_training_set
from tests.lte_model.registered import random_ranker
from tests.lte_model.small_shop import TRAINING_DATE, write_table

OTHER = "0123456789abcdef"


def unit_rows(seed, items, dimensions):
    vectors = np.random.default_rng(seed).normal(size=(items, dimensions))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@hypothesis_settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1), dimensions=st.integers(1, 24), extra=st.integers(0, 8), items=st.integers(30, 80)
)
def test_a_rotation_is_found_again_also_into_more_dimensions(seed, dimensions, extra, items):
    ours = unit_rows(seed, items, dimensions)
    # Orthonormal rows preserve lengths and angles.
    turn = (
        scipy.stats.ortho_group.rvs(dimensions + extra, random_state=seed)[:dimensions]
        if dimensions + extra > 1
        else np.eye(1)
    )
    found = fit_map("a", "b", ours, ours @ turn)
    np.testing.assert_allclose(found.rotation, turn, atol=1e-9)
    np.testing.assert_allclose(found.apply(ours), ours @ turn, atol=1e-6)
    np.testing.assert_allclose(found.apply(ours) @ found.rotation.T, ours, atol=1e-6)
    loss = loss_of(found, ours, ours @ turn)
    assert loss["cosine"] == pytest.approx(1, abs=1e-6) and loss["relative_residual"] < 1e-6
    # The map from the wider basis to the narrower loses nothing that the narrower one holds.
    np.testing.assert_allclose(fit_map("b", "a", ours @ turn, ours).apply(ours @ turn), ours, atol=1e-6)


@hypothesis_settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), noise=st.floats(0, 2), dimensions=st.integers(2, 12))
def test_no_other_rotation_is_nearer_and_the_loss_is_that_of_the_formula(seed, noise, dimensions):
    random = np.random.default_rng(seed)
    ours, theirs = unit_rows(seed, 60, dimensions), unit_rows(seed + 1, 60, dimensions)
    theirs = ours @ scipy.stats.ortho_group.rvs(dimensions, random_state=seed) + noise * theirs
    found = fit_map("a", "b", ours, theirs)
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(dimensions), atol=1e-9)
    loss = loss_of(found, ours, theirs)
    residual = np.linalg.norm(ours @ found.rotation - theirs)
    assert loss["relative_residual"] == pytest.approx(residual / np.linalg.norm(theirs), rel=1e-5, abs=1e-6)
    for _ in range(5):
        other = scipy.stats.ortho_group.rvs(dimensions, random_state=random)
        assert residual <= np.linalg.norm(ours @ other - theirs) + 1e-9


def test_what_can_not_be_mapped_is_refused():
    with pytest.raises(LTEError, match="bases a and b share 3 items to fit a map on, at least 10 are needed"):
        fit_map("a", "b", np.eye(3), np.eye(3))
    with pytest.raises(
        LTEError, match=r"the map a->b takes vectors of 4 dimensions, and these have 5; give .* basis a"
    ):
        BasisMap("a", "b", np.eye(4)).apply(np.zeros((2, 5)))


@pytest.mark.parametrize("broken", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("whose", ["a", "b"])
def test_vectors_without_a_direction_have_no_map(broken, whose):
    vectors = {basis: unit_rows(number, 30, 4) for number, basis in enumerate("ab")}
    vectors[whose][7:9] = broken
    with pytest.raises(LTEError, match=f"2 of 30 items have a vector of zeros, or .* in basis {whose}, and"):
        fit_map("a", "b", vectors["a"], vectors["b"])


# On the tables of the small shop.


def with_rotated_basis(settings, dimensions=8, seed=3):
    """Adds a second basis to the shop: the first one rotated (and padded to `dimensions`), rounded to the grid."""
    kind = open_training_set(settings, TRAINING_DATE).kind
    turn = scipy.stats.ortho_group.rvs(dimensions, random_state=seed)[:8]

    def turned(column):
        vectors = np.rint(np.array(column.to_list(), dtype=np.float64) @ turn * GRID) / GRID
        return pl.Series(vectors.tolist(), dtype=pl.List(pl.Float32))

    embeddings = pl.read_delta(settings.table_path("item_embeddings"))
    write_table(settings, "item_embeddings", embeddings.with_columns(
        basis_id=pl.lit(OTHER), vector=turned(embeddings["vector"])), mode="append")  # fmt: skip
    snapshots = pl.read_delta(settings.table_path("lte_snapshots"))
    sums = np.rint(np.array(snapshots["vector_sum"].to_list(), dtype=np.float64) @ turn).astype(int)
    write_table(settings, "lte_snapshots", snapshots.with_columns(
        basis_id=pl.lit(OTHER), vector_sum=pl.Series(sums.tolist(), dtype=pl.List(pl.Int32))),
        partition_by=["basis_id", "representation", "snapshot_date"], mode="append")  # fmt: skip
    registered = pl.DataFrame({"basis_id": [OTHER], "encoder": ["hashed-text"], "dimensions": [dimensions]})
    write_table(settings, "semantic_bases", registered, mode="append")
    basis = settings.basis.model_copy(update={"basis_id": kind.basis_id, "beside": (OTHER,)})
    return settings.model_copy(update={"basis": basis}), kind


def ranker_of(settings, kind, **options):
    catalogue = open_training_set(settings, TRAINING_DATE).in_basis(kind.basis_id).catalogue
    content = torch.from_numpy(catalogue.vectors)
    return random_ranker(kind=kind, item_ids=catalogue.item_ids.to_list(), content=content, **options)


@pytest.mark.parametrize("dimensions", [8, 12])
def test_a_turned_basis_costs_a_ranker_nothing_and_its_loss_is_that_of_the_grid(own_shop, dimensions):
    settings, kind = with_rotated_basis(own_shop, dimensions)
    date = open_training_set(settings, TRAINING_DATE).dates.test.start
    measured = make_map(settings, OTHER, kind.basis_id, date)
    assert measured.fitted_items > measured.held_out_items >= 10
    assert measured.loss["items/cosine"] > 0.99999 and measured.loss["items/relative_residual"] < 1e-3
    assert measured.loss["items/neighbours_kept"] > 0.95
    assert measured.loss["users/uniform/cosine"] > 0.9999 and measured.loss["users/uniform/count"] > 10
    ranker = ranker_of(settings, kind)
    ours = read_by(settings, TRAINING_DATE, ranker)
    figures = ranking_figures(ranking_loss(ours, ours.in_basis(OTHER), ranker, measured.basis_map))
    assert figures["mapped/ndcg@40"] == pytest.approx(figures["own/ndcg@40"], rel=0.02)
    assert abs(figures["mapped over own/value"]) < abs(figures["none over own/value"])
    back = BasisMap(kind.basis_id, OTHER, measured.basis_map.rotation.T)
    for way, source in ((back, OTHER), (measured.basis_map, kind.basis_id)):
        with pytest.raises(
            LTEError, match=r"the map .* leads from basis .*, which the model reads; give the map between"
        ):
            ranking_loss(ours, ours.in_basis(source), ranker, way)

    directory = keep_map(settings, measured)
    described = json.loads((directory / DESCRIPTION_FILE).read_text())
    assert (described["from"], described["to"]) == (OTHER, kind.basis_id)
    assert (load_file(directory / MAP_FILE)["rotation"] == measured.basis_map.rotation).all()
    experiment = runs.configure(settings).experiment_id
    (logged,) = MlflowClient().search_runs([experiment], f"tags.`lte.basis_map` = '{measured.basis_map.name}'")
    assert logged.data.metrics["items/cosine"] == measured.loss["items/cosine"]


def test_a_mapped_lte_is_nobodys_own(own_shop):
    """A mapped LTE carries neither basis' id, so that every reader refuses it, and no table accepts it."""
    settings, kind = with_rotated_basis(own_shop)
    basis_map = make_map(settings, OTHER, kind.basis_id).basis_map
    training_set = open_training_set(settings, TRAINING_DATE)
    mapped = mapped_set(training_set, training_set.in_basis(OTHER), basis_map)
    assert mapped.kind.basis_id == f"{OTHER}->{kind.basis_id}"
    for basis_id in (OTHER, kind.basis_id):
        ranker = ranker_of(settings, dataclasses.replace(kind, basis_id=basis_id))
        with pytest.raises(
            LTEError, match=f"trained on basis_id {basis_id}, but the mapped LTE has basis_id {OTHER}->"
        ):
            ranker.require(mapped.kind, "the mapped LTE")
    own, others = training_set.cases("test"), mapped.cases("test")
    assert (own.event_counts == others.event_counts).all() and not np.array_equal(own.lte, others.lte)
    np.testing.assert_allclose(own.lte, others.lte, atol=2e-3)


def test_a_map_of_nothing_is_refused(own_shop):
    settings, kind = with_rotated_basis(own_shop)
    for source, target, said in (
        (OTHER, OTHER, f"basis {OTHER} needs no map to itself"),
        (OTHER, "f" * 16, f"basis {'f' * 16} is not registered"),
    ):
        with pytest.raises(LTEError, match=said):
            make_map(settings, source, target)
    with pytest.raises(
        LTEError, match=f"holds no LTE of 2020-01-01 in both {OTHER} and {kind.basis_id}; run jobs.snap"
    ):
        make_map(settings, OTHER, kind.basis_id, datetime.date(2020, 1, 1))

"""The drill of a small shop: spaces with equal starts, cells with the same users, and figures that follow from them."""

import dataclasses
import datetime
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lte_model.domain.basis import GRID, to_vector
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.figures import to_json
from lte_model.metrics import ndcg
from lte_model.ranker.saved import load_ranker
from lte_model.settings import Settings
from lte_model.studies import drill as command
from lte_model.studies.drill import drill_space, evaluate_drill, train_version, with_catalogue
from lte_model.studies.encodings import Encoding, encoded_set, fit_encoding, settings_of, side_of
from lte_model.studies.results import drill_path
from lte_model.studies.spaces import CELLS, CHANGES, SPACES, space_called
from lte_model.tracking import runs
from lte_model.training.autoencoder import Encoder, fit_encoder
from lte_model.training.checkpoints import side_directory
from lte_model.training.encoder_cases import Bags, encoder_cases, read_events
from lte_model.training.encoder_files import VECTORS_FILE
from lte_model.warehouse.catalogue import Catalogue, basis_in_force, read_catalogue
from lte_model.warehouse.reading import Tables
from tests.lte_model.small_shop import TRAINING_DATE, lte_rows, make_shop, write_warehouse

EARLIER = TRAINING_DATE - 20 * ONE_DAY
DATES = {"v1": EARLIER, "v2": TRAINING_DATE}
FIXED, FREE = SPACES["fixed"], SPACES["free"]


@pytest.fixture(scope="module")
def shop(smaller_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Tables with both versions' training sets, and settings that train within seconds."""
    folder = tmp_path_factory.mktemp("drill")
    mlflow = smaller_shop.mlflow.model_copy(update={"experiment": folder.name, "artifacts": str(folder / "artifacts")})
    settings = smaller_shop.model_copy(
        update={
            "warehouse": str(folder / "warehouse"),
            "checkpoints": str(folder / "checkpoints"),
            "reports": str(folder / "reports"),
            "mlflow": mlflow,
            "training": smaller_shop.training.model_copy(update={"epochs": 2, "threads": 1}),
            "autoencoder": smaller_shop.autoencoder.model_copy(
                update={"epochs": 4, "batch_size": 64, "learning_rate": 0.02}
            ),
        }
    )
    events, items = make_shop(users=60, seed=0)
    write_warehouse(settings, events, items, EARLIER)
    of_both = [pl.read_delta(settings.table_path("training_set"))]
    write_warehouse(settings, events, items, TRAINING_DATE)
    of_both.append(pl.read_delta(settings.table_path("training_set")))
    pl.concat(of_both).write_delta(settings.table_path("training_set"), mode="overwrite")
    return settings


@pytest.fixture(scope="module")
def drilled(shop: Settings):
    for space in SPACES.values():
        for date in DATES.values():
            train_version(shop, date, space, 0)
    return shop, evaluate_drill(shop, EARLIER, TRAINING_DATE, seeds=1)


def catalogue_of(settings: Settings, date: datetime.date) -> Catalogue:
    tables = Tables(settings)
    return read_catalogue(tables, basis_in_force(tables), date)


def unlearned(settings: Settings, space_id: str) -> Encoding:
    """An encoder without trained items, which gives every item its content vector."""
    dimensions = settings.basis.dimensions
    return Encoding(space_id, (), np.empty((0, dimensions), np.float32), np.eye(dimensions, dtype=np.float32), {})


@given(seed=st.integers(0, 2**32 - 1))
def test_a_free_encoder_begins_as_the_fixed_one_in_other_coordinates(seed):
    random = np.random.default_rng(seed)
    basis = random.normal(size=(6, 4))
    basis = torch.tensor(basis / np.linalg.norm(basis, axis=1, keepdims=True), dtype=torch.float32)
    turn = torch.tensor(np.linalg.qr(random.normal(size=(4, 4)))[0], dtype=torch.float32)
    counts = torch.tensor(random.normal(size=(1, 2, 6)), dtype=torch.float32)
    fixed, free = Encoder(basis, counts), Encoder(basis @ turn, counts, learned_decoder=True)
    bags = Bags(np.array([0, 1, 1, 5, 2]), np.array([0, 3]), np.array([3, 5])).of(np.arange(2))
    lte, anchors = fixed.encode(bags, 2), torch.zeros(2, dtype=torch.int64)
    turned = free.encode(bags, 2)
    assert torch.allclose(lte @ turn, turned, atol=1e-5)
    assert torch.allclose(fixed.logits(lte, anchors), free.logits(turned, anchors), atol=1e-4)
    assert {name for name, _ in free.named_parameters()} - {name for name, _ in fixed.named_parameters()} == {"decoder"}


def test_the_fixed_encoder_is_the_one_that_the_project_fits(shop):
    own = settings_of(shop, 0)
    oldest = shop.training_set.dates(EARLIER).anchors[0]
    elsewhere = own.model_copy(update={"checkpoints": shop.checkpoints + "-project"})
    vectors = load_file(fit_encoder(elsewhere, oldest) / VECTORS_FILE)["vectors"]
    encoding = fit_encoding(own, EARLIER, FIXED)
    assert np.array_equal(encoding.vectors, vectors)
    assert encoding.space_id == basis_in_force(Tables(own)) and encoding.described["fitted_on"] == str(oldest)


def test_an_encoder_is_found_again_and_one_of_other_settings_fitted_anew(shop, capsys):
    own = settings_of(shop, 5)
    first = fit_encoding(own, EARLIER, FREE)
    capsys.readouterr()
    again = fit_encoding(own, EARLIER, FREE)
    assert np.array_equal(first.vectors, again.vectors) and capsys.readouterr().out == ""
    slower = own.model_copy(update={"autoencoder": own.autoencoder.model_copy(update={"learning_rate": 0.01})})
    assert not np.array_equal(fit_encoding(slower, EARLIER, FREE).vectors, first.vectors)


def test_ltes_of_content_alone_are_those_of_the_oracle(shop):
    """A date's LTEs ignore items and events that became known on that date or later."""
    encoded = encoded_set(shop, TRAINING_DATE, unlearned(shop, "any"))
    events = pl.read_delta(shop.table_path("events"))
    for split in ("train", "test"):
        frame = encoded.rows(split).select("snapshot_date", "user_id").sort("snapshot_date", "user_id").collect()
        lte, event_counts = encoded.ltes(frame, [])
        oracle = {}
        for date in frame["snapshot_date"].unique():
            catalogue = catalogue_of(shop, date)
            vectors = dict(zip(catalogue.item_ids, catalogue.vectors, strict=True))
            for row in lte_rows(events, vectors, shop.window, [date]):
                oracle[date, row["user_id"]] = (row["vector_sum"], row["event_count"])
        assert oracle
        for place, key in enumerate(frame.iter_rows()):
            sums, count = oracle.get(key, ([0] * shop.basis.dimensions, 0))
            assert event_counts[place, 0] == count
            assert np.array_equal(lte[place], to_vector(np.array([sums]), np.array([count])))


def test_an_item_that_the_encoder_does_not_know_is_its_content(shop):
    encoding = fit_encoding(settings_of(shop, 0), EARLIER, FREE)
    catalogue = catalogue_of(shop, TRAINING_DATE)
    units = encoding.units_of(catalogue)
    known = catalogue.item_ids.is_in(encoding.item_ids).to_numpy()
    assert 0 < known.sum() < len(catalogue)
    assert np.allclose(units[~known] / GRID, (catalogue.vectors @ encoding.coordinates)[~known], atol=1 / GRID)
    of_item = dict(zip(encoding.item_ids, encoding.vectors, strict=True))
    assert all(
        np.array_equal(units[row] / GRID, of_item[catalogue.item_ids[row]]) for row in np.flatnonzero(known).tolist()
    )


def test_later_events_change_no_encoder(shop):
    own = settings_of(shop, 0)
    oldest = shop.training_set.dates(TRAINING_DATE).anchors[0]
    catalogue = catalogue_of(own, oldest)
    events = read_events(Tables(own), catalogue, oldest)
    first_days = (oldest - datetime.date(1970, 1, 1)).days
    assert (events.days < first_days).all() and (events.known < first_days).all()
    assert fit_encoding(own, TRAINING_DATE, FREE).described["cases"] == len(
        encoder_cases(events, len(catalogue), oldest, own)
    )


def test_a_ranker_takes_the_other_version_in_the_fixed_space_and_refuses_it_in_a_free_one(drilled):
    settings, drill = drilled
    for space in SPACES.values():
        own = settings_of(settings, 0)
        encodings = {version: fit_encoding(own, date, space) for version, date in DATES.items()}
        ranker = load_ranker(side_directory(settings, EARLIER, side_of(space, 0)) / "model")
        other = encoded_set(own, TRAINING_DATE, encodings["v2"])
        ranker.require(encoded_set(own, TRAINING_DATE, encodings["v1"]).kind, "its own")
        assert drill["spaces"][space.name]["accepted"] == (space is FIXED)
        if space is FIXED:
            ranker.require(other.kind, "the other")
        else:
            with pytest.raises(LTEError, match=r"was trained on basis_id .*, but the other has basis_id"):
                ranker.require(other.kind, "the other")


def test_where_the_encoders_agree_the_version_of_the_lte_changes_nothing(drilled, monkeypatch):
    settings, _ = drilled
    own = settings_of(settings, 0)
    of_v1 = fit_encoding(own, EARLIER, FIXED)
    monkeypatch.setattr(command, "read_encoding", lambda *_: of_v1)
    found = drill_space(settings, DATES, FIXED, 0)
    assert np.array_equal(found.ranks["v1v1"], found.ranks["v1v2"])
    assert np.array_equal(found.ranks["v2v1"], found.ranks["v2v2"])
    assert found.cosine == pytest.approx(1) and not np.array_equal(found.ranks["v1v1"], found.ranks["v1none"])


def test_a_ranker_of_the_earlier_catalogue_scores_the_later_one(drilled):
    settings, drill = drilled
    ranker = load_ranker(side_directory(settings, EARLIER, side_of(FIXED, 0)) / "model")
    catalogue = catalogue_of(settings, settings.training_set.dates(TRAINING_DATE).test.start)
    extended = with_catalogue(ranker, catalogue)
    assert list(extended.item_ids) == catalogue.item_ids.to_list()
    assert drill["new_items"] == len(catalogue) - len(ranker.item_ids) > 0
    assert np.allclose(extended.content.numpy(), catalogue.vectors)
    fewer = dataclasses.replace(
        catalogue, item_ids=catalogue.item_ids[1:], titles=catalogue.titles[1:], vectors=catalogue.vectors[1:]
    )
    with pytest.raises(LTEError, match=r"of which the catalogue of .* lacks some"):
        with_catalogue(ranker, fewer)


def test_the_figures_are_means_over_the_same_users(drilled):
    settings, drill = drilled
    assert json.loads(drill_path(settings, TRAINING_DATE).read_text()) == json.loads(to_json(drill))
    assert set(drill["spaces"]) == set(SPACES)
    for name, space in SPACES.items():
        found, shown = drill_space(settings, DATES, space, 0), drill["spaces"][name]
        assert set(shown["cells"]) == set(CELLS) == set(found.ranks)
        assert {len(ranks) for ranks in found.ranks.values()} == {drill["test_users"]}
        value = {cell: ndcg(ranks, 40).mean() for cell, ranks in found.ranks.items()}
        for cell in CELLS:
            assert shown["cells"][cell]["metrics"]["ndcg@40"].value == pytest.approx(value[cell])
        for change, pair in CHANGES.items():
            expected = value[pair.ours] / value[pair.base] - 1
            assert shown["changes"][change]["uplift"].value == pytest.approx(expected)
            assert shown["changes"][change]["by_seed"] == pytest.approx([expected])
    spaces = drill["spaces"]
    assert spaces["fixed"]["cosine"] > spaces["free"]["cosine"]


def test_mlflow_has_a_run_of_each_version_and_the_drill_in_the_later_one(drilled):
    settings, drill = drilled
    experiment_id = runs.configure(settings).experiment_id
    for date in DATES.values():
        (parent,) = runs.find_runs(experiment_id, date, "drill")
        (child,) = runs.find_runs(experiment_id, date, side_of(FREE, 0))
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    cell = drill["spaces"]["free"]["cells"]["v1v2"]["metrics"]["ndcg@40"].value
    assert parent.data.metrics["free/v1v2/test_ndcg_at_40"] == cell


def test_what_is_not_trained_is_named(shop, monkeypatch, capsys):
    with pytest.raises(
        LTEError, match=r"no encoder in .*run python -m lte_model.studies.drill train --date .* --seed 3"
    ):
        drill_space(shop, DATES, FIXED, 3)
    with pytest.raises(LTEError, match="not before version 2"):
        evaluate_drill(shop, TRAINING_DATE, TRAINING_DATE, 1)
    with pytest.raises(LTEError, match="there is no space 'loose'; choose of fixed, free, drifting"):
        space_called("loose")


def test_the_command_lines_train_and_report(drilled, monkeypatch, capsys):
    settings, _ = drilled
    monkeypatch.setattr("lte_model.command_line.load_settings", lambda path: settings)
    train = ["drill", "train", "--date", str(EARLIER), "--space", "free", "--seed", "0"]
    monkeypatch.setattr(sys, "argv", train)
    command.main()
    assert "is done already" in capsys.readouterr().out
    report = ["drill", "report", "--date", str(TRAINING_DATE), "--earlier", str(EARLIER), "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", report)
    command.main()
    page = Path(capsys.readouterr().out.splitlines()[-1])
    assert page == drill_path(settings, TRAINING_DATE).with_suffix(".html")
    assert "May the LTE change without its model?" in page.read_text(encoding="utf-8")

"""The encoder: the events that it may see, its initial weights, and its output."""

import dataclasses
import datetime
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lte_model.domain.basis import to_grid, to_vector
from lte_model.domain.windows import ONE_DAY, lte_window
from lte_model.errors import LTEError
from lte_model.settings import Autoencoder, Settings, Window
from lte_model.training.autoencoder import Encoder, EncoderFit, fit_encoder
from lte_model.training.encoder_cases import Bags, Events, encoder_cases, read_events
from lte_model.training.encoder_files import DESCRIPTION_FILE, VECTORS_FILE
from lte_model.warehouse.catalogue import basis_in_force, read_catalogue
from lte_model.warehouse.reading import Tables
from tests.lte_model.small_shop import TRAINING_DATE, write_table

DATE = TRAINING_DATE - 40 * ONE_DAY
FIRST_DAY = datetime.date(2024, 1, 1)
LAG, WINDOW, ANCHORS, ITEMS = 3, 9, 3, 5
OPTIONS = Settings(window=Window(lag_days=LAG, window_days=WINDOW), autoencoder=Autoencoder(anchors=ANCHORS))


def with_options(settings: Settings, **options) -> Settings:
    return settings.model_copy(update={"autoencoder": settings.autoencoder.model_copy(update=options)})


@pytest.fixture
def trainable_shop(trainable_shop):
    """The trainable shop, with encoders that train for a few large steps."""
    return with_options(trainable_shop, epochs=8, batch_size=64, learning_rate=0.02)


def fitted(settings: Settings, date: datetime.date = DATE) -> tuple[np.ndarray, dict]:
    directory = fit_encoder(settings, date)
    return (
        load_file(directory / VECTORS_FILE)["vectors"],
        json.loads((directory / DESCRIPTION_FILE).read_text(encoding="utf-8")),
    )


rows = st.lists(
    # user, item, day of the event, days until it was known
    st.tuples(st.integers(0, 3), st.integers(0, ITEMS - 1), st.integers(0, 30), st.integers(0, 4)),
    min_size=1,
    max_size=40,
)


def events_of(made: list[tuple[int, int, int, int]]) -> Events:
    first = (FIRST_DAY - datetime.date(1970, 1, 1)).days
    ordered = sorted(made, key=lambda row: (row[0], row[2], row[1]))
    users = np.array([user for user, *_ in ordered])
    codes = np.unique(users, return_inverse=True)[1].astype(np.int64)
    return Events(
        users=codes,
        items=np.array([item for _, item, _, _ in ordered]),
        days=np.array([first + day for _, _, day, _ in ordered]),
        known=np.array([first + day + late for *_, day, late in ordered]),
        held_out=users == 0,
    )


def contents(bags: Bags) -> list[list[int]]:
    return [sorted(bags.items[start:end].tolist()) for start, end in zip(bags.starts, bags.ends, strict=True)]


@given(made=rows, day=st.integers(8, 34))
def test_a_case_holds_the_events_of_its_anchors_windows_and_no_later_ones(made, day):
    date = FIRST_DAY + day * ONE_DAY
    expected = []
    for number in range(ANCHORS):
        anchor = date - number * LAG * ONE_DAY
        window = lte_window(anchor, LAG, WINDOW)
        of_anchor = defaultdict(lambda: ([], []))
        for user, item, on, late in made:
            dated, known = FIRST_DAY + on * ONE_DAY, FIRST_DAY + (on + late) * ONE_DAY
            if dated in window and known < anchor:
                of_anchor[user][0].append(item)
            if anchor - LAG * ONE_DAY <= dated < anchor and known < date:
                of_anchor[user][1].append(item)
        cases = [(sorted(seen), sorted(chosen)) for _, (seen, chosen) in sorted(of_anchor.items()) if seen and chosen]
        if not cases:
            break
        expected += cases
    if not expected:
        with pytest.raises(LTEError, match="no user has an event in the lagged window"):
            encoder_cases(events_of(made), ITEMS, date, OPTIONS)
        return
    found = encoder_cases(events_of(made), ITEMS, date, OPTIONS)
    assert list(zip(contents(found.windows), contents(found.chosen), strict=True)) == expected


@given(st.data())
def test_what_is_dated_or_known_on_the_date_or_later_changes_nothing(data):
    made, later = data.draw(rows), data.draw(rows)
    date = FIRST_DAY + 20 * ONE_DAY
    before = [row for row in made if row[2] < 20 and row[2] + row[3] < 20]
    after = [row for row in later if row[2] >= 20 or row[2] + row[3] >= 20]

    def digest(of):
        # A user without known events has no row.
        known = [row for row in of if row[2] + row[3] < 20]
        if not known:
            return None
        try:
            return encoder_cases(events_of(known), ITEMS, date, OPTIONS).digest()
        except LTEError:
            return None

    assert digest(before + after) == digest(before)


def test_it_begins_at_the_uniform_average():
    random = np.random.default_rng(0)
    basis = np.rint(random.uniform(-1, 1, (6, 4)) * 2**14) / 2**14
    encoder = Encoder(torch.tensor(basis, dtype=torch.float32), torch.zeros(1, 2, 6))
    bags = Bags(np.array([0, 1, 1, 5, 2]), np.array([0, 3]), np.array([3, 5]))
    found = encoder.encode(bags.of(np.array([1, 0])), 2).detach().numpy()
    uniform = np.stack([basis[[5, 2]].mean(axis=0), basis[[0, 1, 1]].mean(axis=0)])
    assert np.allclose(found, uniform, atol=1e-6)
    units = to_grid(encoder.frozen())
    assert np.array_equal(units, to_grid(basis.astype(np.float32)))
    assert np.allclose(to_vector(units[[5, 2]].sum(axis=0)[None], np.array([2])), uniform[:1], atol=1e-6)


def test_the_encoder_of_a_date_is_on_the_grid_and_better_than_the_average(trainable_shop):
    vectors, description = fitted(trainable_shop)
    to_grid(vectors)  # raises off the grid
    assert vectors.shape == (len(description["item_ids"]), 8)
    assert description["curve"][-1]["held_out_loss"] < description["before"]["held_out_loss"]
    assert description["fitted_on"] == str(DATE)


def test_later_events_change_no_encoder(own_shop):
    own_shop = with_options(own_shop, epochs=2)
    before, description = fitted(own_shop)
    later = pl.read_delta(own_shop.table_path("events")).filter(pl.col("event_date") < DATE)
    write_table(own_shop, "events", later, partition_by=["known_date"])
    own_shop = own_shop.model_copy(update={"checkpoints": own_shop.checkpoints + "-again"})
    again, of_again = fitted(own_shop)
    assert np.array_equal(before, again) and description["encoder_id"] == of_again["encoder_id"]


def test_an_encoder_that_is_there_is_found_and_never_replaced(own_shop, capsys):
    own_shop = with_options(own_shop, epochs=2)
    _, first = fitted(own_shop)
    capsys.readouterr()
    _, second = fitted(own_shop)
    assert first == second and "is there already" in capsys.readouterr().out
    with pytest.raises(LTEError, match="was fitted to other rows or settings"):
        fit_encoder(with_options(own_shop, seed=7), DATE)


def test_inertia_draws_a_week_closer_to_the_next(trainable_shop, tmp_path):
    free = fitted(trainable_shop)[1]["curve"][-1]["inertia"]
    elsewhere = trainable_shop.model_copy(update={"checkpoints": str(tmp_path / "inert")})
    inert = fitted(with_options(elsewhere, inertia=30.0))[1]["curve"][-1]["inertia"]
    assert inert > free


def test_only_so_many_users_are_read(shop):
    tables = Tables(with_options(shop, users=20))
    catalogue = read_catalogue(tables, basis_in_force(tables), DATE)
    assert len(np.unique(read_events(tables, catalogue, DATE).users)) <= 20


def test_a_date_before_the_first_window_is_refused(shop):
    with pytest.raises(LTEError, match="fit the encoder of a later date"):
        fit_encoder(shop, TRAINING_DATE - 295 * ONE_DAY)


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("inertia", [0.0, 1.0])
def test_a_fit_that_comes_to_no_number_leaves_no_encoder(own_shop, monkeypatch, epochs, broken, inertia):
    """The last step of an epoch is followed by no other whose loss would tell."""
    whole = EncoderFit.epoch

    def broken_at_its_end(fit, epoch):
        loss = whole(fit, epoch)
        with torch.no_grad():
            fit.encoder.departure.fill_(broken)
        return loss

    monkeypatch.setattr(EncoderFit, "epoch", broken_at_its_end)
    settings = with_options(own_shop, epochs=epochs, inertia=inertia)
    with pytest.raises(LTEError, match=r"the loss of held-out users is nan after epoch 1; lower autoencoder\.learning"):
        fit_encoder(settings, DATE)
    assert not list(Path(settings.checkpoints).rglob(DESCRIPTION_FILE))


def read_cases(settings):
    tables = Tables(settings)
    catalogue = read_catalogue(tables, basis_in_force(tables, ""), DATE)
    return encoder_cases(read_events(tables, catalogue, DATE), len(catalogue), DATE, settings), catalogue


def test_vectors_that_are_none_are_named(own_shop):
    cases, catalogue = read_cases(own_shop)
    vectors = catalogue.vectors.copy()
    vectors[3] = np.nan
    encoder = Encoder(torch.from_numpy(vectors), torch.from_numpy(cases.popularity))
    with pytest.raises(LTEError, match="look for broken vectors in item_embeddings"):
        EncoderFit(own_shop.autoencoder, encoder, cases).run()


def test_inertia_of_a_batch_without_a_week_before_weighs_nothing(own_shop):
    """A user whose window of the week before is empty has no cosine, and the loss stays a number."""
    cases, catalogue = read_cases(own_shop)
    starts = cases.week_before.starts
    empty = dataclasses.replace(cases, week_before=Bags(cases.week_before.items, starts, starts))
    encoder = Encoder(torch.from_numpy(catalogue.vectors), torch.from_numpy(cases.popularity))
    options = own_shop.autoencoder.model_copy(update={"inertia": 1.0, "epochs": 1})
    assert np.isfinite(EncoderFit(options, encoder, empty).epoch(1))

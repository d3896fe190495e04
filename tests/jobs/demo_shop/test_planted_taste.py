"""The demo shop's planted truth: a year's average recovers a stable user's taste, and none if none was planted."""

import numpy as np
import polars as pl
import pytest

from jobs.demo_shop.feed import write_demo_shop
from jobs.demo_shop.spec import ShopSpec
from lte_model.domain.basis import CONTENT_COLUMNS, SemanticBasis, to_grid, to_vector
from lte_model.settings import Basis

FEWEST_EVENTS = 20


@pytest.fixture(scope="module")
def recovered(tmp_path_factory):
    """By kind of user: the share of other users' tastes less similar (cosine) to the user's LTE than the own taste."""
    folder = tmp_path_factory.mktemp("shop")
    write_demo_shop(ShopSpec(users=300, items=300, seed=3), folder)
    items = pl.read_parquet(folder / "items.parquet")
    content = items.select(CONTENT_COLUMNS).to_dicts()
    basis = SemanticBasis.fit(content, Basis().text_template, 48)
    units = to_grid(basis.encode(content)[0])
    rows = pl.read_parquet(folder / "events.parquet").join(
        items.select("item_id").with_row_index("row"), on="item_id", maintain_order="left"
    )
    truth = pl.read_parquet(folder / "truth.parquet").filter(pl.col("taste") != "drifting").sort("user_id")
    history = {user: frame["row"].to_numpy() for (user,), frame in rows.group_by("user_id")}
    truth = truth.filter(pl.col("user_id").map_elements(lambda u: len(history.get(u, ())), int) >= FEWEST_EVENTS)
    sums = np.array([units[history[user]].sum(axis=0) for user in truth["user_id"]])
    lte = to_vector(sums, np.array([len(history[user]) for user in truth["user_id"]]))
    planted = truth.select("categories", "styles", "colours", "materials", "brands").to_dicts()
    words = [" ".join(word for part in taste.values() for word in part or ()) for taste in planted]
    stable = truth["taste"].to_numpy() == "stable"
    tastes, _ = basis.encode([{"title": text} for text in np.array(words)[stable]])
    cosines = (lte[stable] - lte.mean(axis=0)) @ tastes.T  # (stable users, their tastes)
    own = np.diag(cosines)[:, None]
    return (cosines < own).sum(axis=1) / (len(own) - 1), stable


def test_a_stable_taste_is_nearest_to_its_own_lte(recovered):
    beaten, _ = recovered
    assert len(beaten) >= 50
    assert beaten.mean() > 0.85, "chance is 0.5"


def test_there_are_users_without_a_stable_taste(recovered):
    _, stable = recovered
    assert 0.1 < 1 - stable.mean() < 0.9

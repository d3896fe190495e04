"""Items that training never saw, in a synthetic shop with four tastes: content alone must rank them."""

import numpy as np
import pytest
import torch

from lte_model.domain.kind import LTEKind
from lte_model.ranker.losses import CatalogueLoss
from lte_model.ranker.model import Batch, Ranker
from lte_model.ranker.ranks import ranks_of
from tests.lte_model.configs import ranker_config
from tests.lte_model.ranker.small_rankers import every_event

pytestmark = pytest.mark.slow

TASTES, ITEMS_OF_TASTE, DIMENSIONS, EVENTS, USERS = 4, 25, 16, 8, 200
ITEMS = TASTES * ITEMS_OF_TASTE
COLD = np.arange(ITEMS_OF_TASTE - 2, ITEMS, ITEMS_OF_TASTE)
"""One item of each taste with known content that nobody has bought."""


@pytest.fixture(scope="module")
def shop():
    """(content (items, dimensions), bought items (users, events), LTE (users, dimensions), taste (users,))."""
    random = np.random.default_rng(0)
    tastes = random.standard_normal((TASTES, DIMENSIONS))
    content = np.repeat(tastes, ITEMS_OF_TASTE, axis=0) + 0.7 * random.standard_normal((ITEMS, DIMENSIONS))
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    taste = random.integers(TASTES, size=USERS)
    warm = np.setdiff1d(np.arange(ITEMS), COLD).reshape(TASTES, -1)
    bought = np.stack([random.choice(warm[t], EVENTS) for t in taste])
    lte = content[np.stack([random.choice(warm[t], 20) for t in taste])].mean(axis=1)
    return (
        torch.tensor(content, dtype=torch.float32),
        torch.tensor(bought),
        torch.tensor(lte, dtype=torch.float32),
        taste,
    )


def batch_of(bought, lte, **changes) -> Batch:
    users = {
        "items": bought,
        "lengths": torch.full((len(bought),), bought.shape[1]),
        "lte": lte[:, None],
        "has_lte": torch.ones(len(lte), 1, dtype=torch.bool),
        **every_event(bought),
    }
    return Batch(**users | changes)


def trained(shop, *, candidates: bool, id_dropout: float, seed: int = 0) -> Ranker:
    content, bought, lte, _ = shop
    torch.manual_seed(seed)
    config = ranker_config(
        items=ITEMS, dimensions=DIMENSIONS, max_tokens=EVENTS + 1, width=32, dropout=0.1, id_dropout=id_dropout
    )
    ranker = Ranker(config, LTEKind("b", "uniform", 30, 365), [f"i{row}" for row in range(ITEMS)], content)
    counts = torch.bincount(bought.reshape(-1), minlength=ITEMS)
    objective = CatalogueLoss.of(counts > 0, counts, ITEMS, 1, 1.0, True) if candidates else CatalogueLoss.EXACT
    optimizer = torch.optim.AdamW(ranker.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        (ranker.loss(batch_of(bought, lte), objective=objective) / bought.numel()).backward()
        optimizer.step()
    return ranker.eval()


def cold_ranks(ranker: Ranker, shop) -> np.ndarray:
    """For each user, the rank among all items of the cold item of the user's taste."""
    _, bought, lte, taste = shop
    return ranks_of(ranker.scores(batch_of(bought, lte)), torch.tensor(COLD[taste])).numpy()


@pytest.fixture(scope="module")
def ranker(shop):
    return trained(shop, candidates=True, id_dropout=0.2)


def test_a_cold_item_near_the_taste_ranks_well_above_the_middle(shop, ranker):
    ranks = cold_ranks(ranker, shop)
    assert np.median(ranks) < ITEMS_OF_TASTE * 1.2, "a quarter of the catalogue is of the user's taste"


def test_a_softmax_over_the_cold_items_pushes_them_down(shop, ranker):
    pushed = np.median(cold_ranks(trained(shop, candidates=False, id_dropout=0.0), shop))
    assert pushed > max(ITEMS_OF_TASTE, 2 * np.median(cold_ranks(ranker, shop)))


def test_an_item_that_came_after_training_ranks_as_well(shop, ranker):
    """Adds an item with the same content under another id to the trained model."""
    _, bought, lte, taste = shop
    wider = ranker.with_items([f"new {t}" for t in range(TASTES)], ranker.content[COLD])
    scores = wider.scores(batch_of(bought, lte))
    ranks = ranks_of(scores, torch.tensor(ITEMS + taste)).numpy()
    assert np.median(ranks) < ITEMS_OF_TASTE * 1.3


def test_an_lte_alone_finds_the_taste_and_nothing_known_finds_the_middle(shop, ranker):
    _, bought, lte, taste = shop
    empty = {"items": bought[:, :0], "lengths": torch.zeros(USERS, dtype=torch.int64), "targets": None}
    own = torch.tensor(np.arange(ITEMS).reshape(TASTES, -1)[taste])  # (users, items of their taste)

    def share_of_taste(**changes) -> float:
        scores = ranker.scores(batch_of(bought, lte, **changes))
        assert scores.isfinite().all()
        top = scores.topk(ITEMS_OF_TASTE).indices
        return (top[:, :, None] == own[:, None]).any(dim=2).float().mean().item()

    nobody = torch.zeros(USERS, 1, dtype=torch.bool)
    assert share_of_taste() > 0.8
    assert share_of_taste(**empty) > 0.8, "only an LTE"
    assert share_of_taste(has_lte=nobody) > 0.6, "only a sequence"
    assert share_of_taste(**empty, has_lte=nobody) < 0.5, "neither: one list for all"

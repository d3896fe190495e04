"""Small rankers with random weights, and batches for them."""

import itertools

import pytest
import torch

from lte_model.domain.kind import LTEKind
from lte_model.ranker.integrations import INTEGRATIONS
from lte_model.ranker.model import GAP_BUCKETS, Batch, Ranker
from tests.lte_model.configs import ranker_config

KIND = LTEKind(basis_id="3f2a", representation="uniform", lag_days=30, window_days=365)


ITEMS, DIMENSIONS = 23, 6


EVERYTHING = {
    "representations": 2,
    "popularity_bias": True,
    "popularity_counts": 4,
    "time_features": True,
    "repeat_bias": True,
    "long_memory": "linear_attention",
}
"""Turns on every option that adds a parameter."""


variants = pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])


integrations = pytest.mark.parametrize("integration", INTEGRATIONS)


def make_ranker(integration="prefix", seed=0, **options) -> Ranker:
    """A small ranker in evaluation mode, with no parameter left at zero."""
    torch.manual_seed(seed)
    options = {"items": ITEMS, "dimensions": DIMENSIONS, "max_tokens": 9, "width": 16} | options
    config = ranker_config(integration=integration, **options)
    content = torch.nn.functional.normalize(torch.randn(ITEMS, DIMENSIONS), dim=1)
    ranker = Ranker(config, KIND, [f"i{n}" for n in range(ITEMS)], content)
    for parameter in ranker.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if config.popularity_bias:
        ranker.popularity.normal_()
    return ranker.eval()


def users(count: int, events: int, seed: int = 0, representations: int = 1) -> Batch:
    """A batch of full sequences in which every event is a target."""
    random = torch.Generator().manual_seed(seed)
    items = torch.randint(ITEMS, (count, events), generator=random)
    return Batch(
        items=items,
        lengths=torch.full((count,), events),
        lte=torch.randn(count, representations, DIMENSIONS, generator=random) * 0.3,
        has_lte=torch.ones(count, representations, dtype=torch.bool),
        gaps=torch.randint(GAP_BUCKETS, (count, events), generator=random),
        older=torch.randint(ITEMS, (count, 5), generator=random),
        older_lengths=torch.randint(6, (count,), generator=random),
        dates=torch.zeros(count, dtype=torch.int64),
        **every_event(items),
    )


def asked(items: torch.Tensor, places: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """A batch's targets: for each (user, place), the event at that place, predicted from those before it."""
    users, places = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).T
    return {"targets": items[users, places], "target_users": users, "target_places": places}


def every_event(items: torch.Tensor) -> dict[str, torch.Tensor]:
    return asked(items, list(itertools.product(*map(range, items.shape))))


def shortened(batch: Batch, user: int, length: int) -> Batch:
    """A batch with one user's oldest `length` events, without padding."""
    alone = {
        name: tensor[user : user + 1]
        for name, tensor in vars(batch).items()
        if not name.startswith("target") and tensor is not None
    }
    alone |= {"items": alone["items"][:, :length], "gaps": alone["gaps"][:, :length]}
    return Batch(**alone | {"lengths": torch.tensor([length])})

"""How an LTE enters the ranker, by each integration."""

import dataclasses

import pytest
import torch

from lte_model.ranker.integrations import INTEGRATIONS
from tests.lte_model.ranker.small_rankers import integrations, make_ranker, users


@integrations
@pytest.mark.parametrize("representations", [1, 2])
def test_an_integration_reads_the_lte_and_none_does_not(integration, representations):
    ranker = make_ranker(integration, representations=representations)
    batch = users(4, 3, representations=representations)
    before = ranker.scores(batch)
    for r in range(representations):
        lte = batch.lte.clone()
        lte[:, r] *= -1
        same = torch.equal(before, ranker.scores(dataclasses.replace(batch, lte=lte)))
        assert same == (integration == "none")


def test_late_fusion_stays_outside_the_transformer_and_injection_within_the_events():
    """Late fusion doesn't change a block's states, and without events injection has no effect."""
    batch = users(2, 3)
    contrary = dataclasses.replace(batch, lte=-batch.lte)
    late = make_ranker("late_fusion")
    seen = []
    late.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    late.scores(batch), late.scores(contrary)
    assert torch.equal(*seen)
    injected = make_ranker("feature_injection")
    none = [
        dataclasses.replace(b, items=b.items[:, :0], lengths=torch.zeros(2, dtype=torch.int64))
        for b in (batch, contrary)
    ]
    assert torch.equal(*map(injected.scores, none))
    assert not torch.equal(injected.scores(batch), injected.scores(contrary))


@integrations
def test_a_user_without_lte_is_read_alike_whatever_stands_in_its_row(integration):
    ranker = make_ranker(integration)
    batch = dataclasses.replace(users(2, 3), has_lte=torch.zeros(2, 1, dtype=torch.bool))
    assert torch.equal(ranker.scores(batch), ranker.scores(dataclasses.replace(batch, lte=9 * batch.lte)))
    if integration != "none":
        # … and differs from a user whose LTE is zero.
        zero = dataclasses.replace(batch, lte=torch.zeros_like(batch.lte))
        has = dataclasses.replace(zero, has_lte=~zero.has_lte)
        assert not torch.equal(ranker.scores(zero), ranker.scores(has))


@pytest.mark.parametrize("representations", [1, 2])
def test_all_integrations_read_as_many_tokens(representations):
    batch = users(2, 5, representations=representations)
    for integration in INTEGRATIONS:
        ranker = make_ranker(integration, representations=representations)
        assert ranker(batch, ranker.item_table()).shape == (2, 5 + representations, 16)
        assert ranker.config.max_events == 9 - representations

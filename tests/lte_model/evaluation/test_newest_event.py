"""The recency measures against their definitions, one user, block and head at a time."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lte_model.evaluation.newest_event import (
    attention_ratios,
    last_attention,
    last_item_ranks,
    with_constant_lte,
    with_shuffled_lte,
)
from lte_model.metrics import recall
from lte_model.ranker.model import Batch, CausalAttention, Ranker
from lte_model.training.train import new_ranker, ranker_config
from lte_model.training.training_set import open_training_set
from tests.lte_model.ranker.small_rankers import EVERYTHING, integrations, make_ranker, users
from tests.lte_model.small_shop import TRAINING_DATE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cases(shop):
    return open_training_set(shop, TRAINING_DATE).cases("test")


def ranker_of(shop, integration="prefix") -> Ranker:
    training_set = open_training_set(shop, TRAINING_DATE)
    ranker = new_ranker(ranker_config(shop, training_set, integration), training_set, seed=0)
    for parameter in ranker.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return ranker.eval()


def test_the_weights_are_those_of_the_fused_kernel():
    """Weights times values, through the output layer, equal the output of `forward` at every token."""
    attention = make_ranker().blocks[0].attention
    x = torch.randn(5, 7, 16)
    with torch.inference_mode():
        _, _, v = attention._by_head(x)
        for token in range(7):
            weights = attention.weights(x, torch.full((5,), token))
            assert (weights[:, :, token + 1 :] == 0).all()
            y = torch.einsum("bht,bhtc->bhc", weights, v).reshape(5, 16)
            torch.testing.assert_close(attention.output(y), attention(x)[:, token])


@integrations
def test_attention_is_taken_in_a_pass_that_it_leaves_as_it_was(integration):
    ranker = make_ranker(integration, **EVERYTHING)
    batch = dataclasses.replace(users(4, 6, representations=2), lengths=torch.tensor([2, 3, 6, 5]))
    with torch.inference_mode():
        table = ranker.item_table()
        before = ranker(batch, table)
        attention = last_attention(ranker, batch, table)
        assert torch.equal(ranker(batch, table), before)
    assert attention.shape == (4, 2, 2, 8)
    torch.testing.assert_close(attention.sum(dim=3), torch.ones(4, 2, 2))
    for user, length in enumerate(batch.lengths):
        assert attention[user, :, :, : 2 + length].min() > 0
        assert (attention[user, :, :, 2 + length :] == 0).all()
    assert not any(block.attention._forward_pre_hooks for block in ranker.blocks)


def test_the_ratio_is_its_definition(shop, cases):
    """Computes one user, block and head at a time; a block's input is the previous block's output."""
    ranker = ranker_of(shop)
    ratios = attention_ratios(ranker, cases, CPU)
    read = np.minimum(cases.lengths, ranker.config.max_events)
    assert np.array_equal(np.isfinite(ratios), read >= 2)
    assert 0 < np.isfinite(ratios).sum() < len(cases)
    for user in np.flatnonzero(read >= 2)[:5]:
        batch = cases.batch(np.array([user]), ranker.config.max_events)
        expected = []
        with torch.inference_mode():
            for block, x in zip(ranker.blocks, block_inputs(ranker, batch), strict=True):
                for head in range(ranker.config.heads):
                    weights = weights_of_last(block.attention, block.attention_norm(x)[0], head)[1:]
                    expected.append(float(weights[-1] / weights.sum()) * len(weights))
        assert ratios[user] == pytest.approx(np.mean(expected), rel=1e-4)


def block_inputs(ranker: Ranker, batch: Batch) -> list[torch.Tensor]:
    """The input of each block, (B, C + T, width)."""
    inputs = []
    hooks = [block.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for block in ranker.blocks]
    ranker(batch, ranker.item_table())
    for hook in hooks:
        hook.remove()
    return inputs


def weights_of_last(attention: CausalAttention, x: torch.Tensor, head: int) -> torch.Tensor:
    """The attention weights (T,) of the last of T tokens, by the formula."""
    width = x.shape[1] // attention.heads
    q, k, _ = attention.query_key_value(x).split(x.shape[1], dim=1)
    columns = slice(head * width, (head + 1) * width)
    return torch.softmax(k[:, columns] @ q[-1, columns] / math.sqrt(width), dim=0)


def test_even_attention_has_ratio_one(shop, cases):
    ranker = ranker_of(shop)
    for block in ranker.blocks:
        torch.nn.init.zeros_(block.attention.query_key_value.weight)
        torch.nn.init.zeros_(block.attention.query_key_value.bias)
    ratios = attention_ratios(ranker, cases, CPU)
    np.testing.assert_allclose(ratios[np.isfinite(ratios)], 1, rtol=1e-6)


def test_controls_change_the_lte_alone(cases):
    constant, shuffled = with_constant_lte(cases), with_shuffled_lte(cases, seed=1)
    np.testing.assert_allclose(constant.lte[3, 0], cases.lte[cases.has_lte[:, 0], 0].mean(axis=0), rtol=1e-4)
    assert (constant.lte == constant.lte[0]).all() and constant.has_lte.all()
    assert sorted(map(tuple, shuffled.lte[:, 0])) == sorted(map(tuple, cases.lte[:, 0]))
    assert not np.array_equal(shuffled.lte, cases.lte)
    assert np.array_equal(shuffled.has_lte[:, 0], np.abs(shuffled.lte[:, 0]).max(axis=1) > 0)
    assert np.array_equal(with_shuffled_lte(cases, seed=1).lte, shuffled.lte)
    for control in (constant, shuffled):
        assert control.items is cases.items and control.user_ids is cases.user_ids


def test_a_control_leaves_a_ranker_without_lte_as_it_is(shop, cases):
    ranker = ranker_of(shop, "none")
    ratios = attention_ratios(ranker, cases, CPU)
    np.testing.assert_array_equal(attention_ratios(ranker, with_shuffled_lte(cases, 0), CPU), ratios)
    assert not np.array_equal(
        attention_ratios(ranker_of(shop), with_shuffled_lte(cases, 0), CPU),
        attention_ratios(ranker_of(shop), cases, CPU),
    )


def test_hrli_counts_last_inputs_in_the_top(shop, cases):
    ranker = ranker_of(shop)
    ranks = last_item_ranks(ranker, cases, CPU)
    assert np.array_equal(np.isfinite(ranks), cases.lengths > 0)
    found = []
    for user in np.flatnonzero(cases.lengths > 0):
        (scores,) = ranker.scores(cases.batch(np.array([user]), ranker.config.max_events))
        found.append(cases.sequence(user)[-1] in scores.topk(5).indices.tolist())
    assert recall(ranks[np.isfinite(ranks)], 5).mean() == pytest.approx(np.mean(found))
    assert 0 < np.mean(found) < 1

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lte_model.ranker.losses import (
    CatalogueLoss,
    ItemBiases,
    catalogue_cross_entropy,
    sample_negatives,
    sampled_cross_entropy,
)

ITEMS, WIDTH = 11, 4


def tensors(positions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random hidden states, an item table, and targets."""
    random = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, WIDTH, generator=random, requires_grad=True)
    table = torch.randn(ITEMS, WIDTH, generator=random, requires_grad=True)
    return hidden, table, torch.randint(ITEMS, (positions,), generator=random)


def biases_of(positions: int) -> tuple[ItemBiases, torch.Tensor]:
    """Three biases per row, some for the same item, and the same biases as a matrix (positions, ITEMS)."""
    random = torch.Generator().manual_seed(positions)
    named = torch.randint(ITEMS, (positions, 3), generator=random)
    biases = torch.randn(positions, 3, generator=random, requires_grad=True)
    of_item = torch.nn.functional.one_hot(named, ITEMS).float()  # (positions, 3, ITEMS)
    return ItemBiases(named, biases), (of_item * biases[:, :, None]).sum(dim=1)


def assert_same_loss_and_gradients(ours, theirs, *inputs):
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other)


@given(chunk_logits=st.integers(1, 400), positions=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_the_loss_in_chunks_is_the_loss(chunk_logits, positions):
    hidden, table, targets = tensors(positions)
    whole = torch.nn.functional.cross_entropy(hidden @ table.T, targets, reduction="sum")
    assert_same_loss_and_gradients(catalogue_cross_entropy(hidden, table, targets, chunk_logits), whole, hidden, table)


@given(chunk_logits=st.integers(1, 400), positions=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_biases_are_added_to_the_logits_of_their_items(chunk_logits, positions):
    hidden, table, targets = tensors(positions)
    biases, matrix = biases_of(positions)
    inputs, negatives = (hidden, table, biases.biases), torch.arange(ITEMS).flip(0)
    whole = torch.nn.functional.cross_entropy(hidden @ table.T + matrix, targets, reduction="sum")
    exact = catalogue_cross_entropy(hidden, table, targets, chunk_logits, biases)
    sampled = sampled_cross_entropy(hidden, table, targets, negatives, chunk_logits=chunk_logits, biases=biases)
    assert_same_loss_and_gradients(exact + 2 * sampled, 3 * whole, *inputs)


def test_biases_of_a_sample_with_an_item_drawn_twice():
    hidden, table, targets = tensors(6)
    biases, matrix = biases_of(6)
    negatives = torch.tensor([4, 9, 4, 0])
    logits = hidden @ table.T + matrix
    of_negatives = logits[:, negatives].masked_fill(negatives == targets[:, None], -torch.inf)
    of_target = logits.gather(1, targets[:, None])
    whole = (torch.cat((of_target, of_negatives), dim=1).logsumexp(dim=1) - of_target[:, 0]).sum()
    sampled = sampled_cross_entropy(hidden, table, targets, negatives, biases=biases)
    assert_same_loss_and_gradients(sampled, whole, hidden, table, biases.biases)


def test_great_logits_neither_overflow_nor_vanish():
    hidden, table, targets = tensors(9)
    whole = torch.nn.functional.cross_entropy(300 * hidden @ table.T, targets, reduction="sum")
    assert_same_loss_and_gradients(catalogue_cross_entropy(300 * hidden, table, targets), whole, hidden, table)


def test_no_target_is_no_loss():
    hidden, table, targets = tensors(3)
    loss = catalogue_cross_entropy(hidden[:0], table, targets[:0])
    assert loss == 0 and not torch.autograd.grad(loss, table)[0].any()


def test_an_item_that_is_no_candidate_is_not_pushed_down():
    hidden, table, targets = tensors(6)
    counts = torch.bincount(targets, minlength=ITEMS)
    seen = counts > 0
    loss = CatalogueLoss.of(seen, counts, exact_items=100, sampled_items=5, power=1.0, corrected=True)
    logits = (hidden @ table.T).masked_fill(~seen, -torch.inf)
    whole = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert_same_loss_and_gradients(loss(hidden, table, targets), whole, hidden, table)
    assert not torch.autograd.grad(loss(hidden, table, targets), table)[0][~seen].any()


def test_biases_name_items_of_the_catalogue_whatever_the_candidates():
    hidden, table, targets = tensors(6)
    candidates = torch.arange(ITEMS) != 2
    targets = torch.where(targets == 2, 3, targets)
    biases, matrix = biases_of(6)
    biases = ItemBiases(torch.where(biases.items == 2, 3, biases.items), biases.biases)
    matrix[:, 3] += matrix[:, 2]
    loss = CatalogueLoss.of(candidates, torch.bincount(targets, minlength=ITEMS), 100, 5, 1.0, True)
    logits = (hidden @ table.T + matrix).masked_fill(~candidates, -torch.inf)
    whole = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert_same_loss_and_gradients(loss(hidden, table, targets, biases), whole, hidden, table, biases.biases)


def test_the_sampled_loss_against_every_other_item_is_the_loss():
    """With each item as a negative once, the target among them is masked, and the loss is the full softmax."""
    hidden, table, targets = tensors(7)
    sampled = sampled_cross_entropy(hidden, table, targets, torch.arange(ITEMS), chunk_logits=30)
    whole = torch.nn.functional.cross_entropy(hidden @ table.T, targets, reduction="sum")
    assert_same_loss_and_gradients(sampled, whole, hidden, table)


def test_the_correction_makes_the_sampled_softmax_that_of_all_items():
    """With many draws from a skewed distribution, only the corrected loss approaches the exact one."""
    torch.manual_seed(0)
    hidden, table, targets = tensors(20)
    counts = torch.arange(1, ITEMS + 1) ** 3
    exact = catalogue_cross_entropy(hidden, table, targets).item()
    off = {}
    for corrected in (True, False):
        loss = CatalogueLoss.of(counts > 0, counts, exact_items=5, sampled_items=20_000, power=1.0, corrected=corrected)
        assert loss.sampled == 20_000
        off[corrected] = abs(loss(hidden, table, targets).item() - exact) / exact
    assert off[True] < 0.02 and off[False] > 0.5


def test_negatives_are_drawn_as_often_as_asked():
    torch.manual_seed(0)
    probabilities = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3])
    drawn = torch.bincount(sample_negatives(probabilities, 100_000), minlength=5) / 100_000
    torch.testing.assert_close(drawn, probabilities, atol=0.01, rtol=0)


@pytest.mark.parametrize("exact_items", [ITEMS, ITEMS - 1])
def test_the_size_of_the_catalogue_decides_whether_it_is_sampled(exact_items):
    counts = torch.ones(ITEMS, dtype=torch.int64)
    loss = CatalogueLoss.of(counts > 0, counts, exact_items, 3, 1.0, True)
    assert bool(loss.sampled) == (exact_items < ITEMS)

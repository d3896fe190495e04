"""The transformer: what it sees, what it ignores, its sizes and biases."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lte_model.errors import LTEError
from lte_model.ranker.model import GAP_BUCKETS, Batch, Dropout, Ranker
from lte_model.warehouse.popularity import POPULARITY_COUNTS
from tests.lte_model.configs import ranker_config
from tests.lte_model.ranker.small_rankers import (
    DIMENSIONS,
    EVERYTHING,
    ITEMS,
    KIND,
    asked,
    every_event,
    integrations,
    make_ranker,
    shortened,
    users,
    variants,
)


@given(position=st.integers(0, 6), replacement=st.integers(0, ITEMS - 1), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_no_event_changes_the_states_before_it(position, replacement, seed):
    for options in ({}, EVERYTHING):
        ranker = make_ranker(**options)
        first = ranker.config.context_tokens
        batch = users(2, 7, seed, first)
        items = batch.items.clone()
        items[:, position] = replacement
        table = ranker.item_table()
        before, after = ranker(batch, table), ranker(dataclasses.replace(batch, items=items), table)
        # The state at t predicts event t, counting from 0, so it must not depend on event t.
        assert torch.equal(before[:, : first + position], after[:, : first + position])
        if not torch.equal(items, batch.items):
            assert not torch.equal(before[:, first + position :], after[:, first + position :])


@given(queries=st.lists(st.integers(0, 7), min_size=3, max_size=3), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_a_token_that_is_asked_for_alone_has_the_state_that_it_has_among_all(queries, seed):
    queries = torch.tensor(queries)
    for options in ({}, {"blocks": 1}, EVERYTHING):
        ranker = make_ranker(**options)
        batch, table = users(3, 7, seed, ranker.config.context_tokens), ranker.item_table()
        of_all = ranker(batch, table)[torch.arange(3), queries]
        torch.testing.assert_close(ranker(batch, table, queries)[:, 0], of_all, atol=1e-5, rtol=1e-5)


def test_the_loss_of_an_event_is_of_what_came_before_it():
    """The gradient of each prediction is zero with respect to the target and to later events."""
    ranker = make_ranker()
    table = ranker.item_table().detach().requires_grad_()
    batch = dataclasses.replace(users(1, 6), items=torch.arange(6)[None])  # one row of the table per event
    for target in range(7):
        hidden = ranker(batch, table)
        (gradient,) = torch.autograd.grad(hidden[0, target].sum(), table)
        assert gradient[:target].abs().sum(dim=1).gt(0).all()
        assert not gradient[target:].any()


@integrations
@variants
def test_padding_changes_nothing(integration, options):
    ranker = make_ranker(integration, **options)
    batch = users(3, 4, representations=ranker.config.representations)
    lengths = [4, 2, 0]
    alone = [ranker.scores(shortened(batch, i, length)) for i, length in enumerate(lengths)]
    padded = dataclasses.replace(
        batch,
        items=torch.cat((batch.items, torch.full((3, 3), 5)), dim=1),
        gaps=torch.cat((batch.gaps, torch.full((3, 3), 7)), dim=1),
        older=torch.cat((batch.older, torch.full((3, 2), 9)), dim=1),
        lengths=torch.tensor(lengths),
    )
    torch.testing.assert_close(ranker.scores(padded), torch.cat(alone), atol=1e-5, rtol=1e-5)


@variants
def test_the_loss_is_the_sum_over_the_targets_alone(options):
    ranker = make_ranker(**options)
    batch = users(2, 5, representations=ranker.config.representations)
    # The last two targets are of one day, so both are predicted from the events before that day.
    places = [(0, 3), (0, 4), (1, 0), (1, 1), (1, 1)]
    targets = torch.tensor([*(batch.items[place] for place in places[:-1]), 7])
    of_all = asked(batch.items, places) | {"targets": targets}
    whole = ranker.loss(dataclasses.replace(batch, lengths=torch.tensor([5, 2]), **of_all))
    alone = 0
    for (user, place), target in zip(places, targets, strict=True):
        before = shortened(batch, user, place)
        of_one = torch.nn.functional.cross_entropy(ranker.scores(before), target[None])
        one = {"targets": target[None], "target_users": torch.tensor([0]), "target_places": torch.tensor([place])}
        torch.testing.assert_close(ranker.loss(dataclasses.replace(before, **one)), of_one)
        alone += of_one
    torch.testing.assert_close(whole, alone)


@integrations
@variants
@pytest.mark.parametrize("has_lte", [True, False])
@pytest.mark.parametrize("events", [0, 3])
def test_every_user_gets_a_finite_list(integration, options, has_lte, events):
    """Covers users with a sequence and an LTE, with one of them, and with neither."""
    ranker = make_ranker(integration, **options)
    batch = users(2, events, representations=ranker.config.representations)
    if not events:
        batch = dataclasses.replace(batch, older_lengths=torch.zeros(2, dtype=torch.int64))
    scores = ranker.scores(dataclasses.replace(batch, has_lte=torch.full_like(batch.has_lte, has_lte)))
    assert scores.isfinite().all() and (scores.std(dim=1) > 0).all()


def test_input_and_output_share_the_item_table():
    ranker = make_ranker()
    batch = users(2, 3)
    before = ranker.scores(batch)
    absent = next(item for item in range(ITEMS) if item not in batch.items)
    with torch.no_grad():
        ranker.id_embedding[absent] += 1  # only used as output
    after = ranker.scores(batch)
    others = torch.arange(ITEMS) != absent
    torch.testing.assert_close(before[:, others], after[:, others])
    assert not torch.allclose(before[:, absent], after[:, absent])
    with torch.no_grad():
        ranker.id_embedding[batch.items[0, 1]] += 1  # also used as the first user's input
    assert not torch.allclose(after[0], ranker.scores(batch)[0])


def test_content_vectors_are_frozen():
    ranker = make_ranker()
    before = ranker.content.clone()
    optimizer = torch.optim.SGD(ranker.parameters(), lr=1.0)
    ranker.loss(users(2, 3)).backward()
    optimizer.step()
    assert torch.equal(ranker.content, before)


def test_an_untrained_ranker_starts_near_the_uniform_distribution():
    torch.manual_seed(0)
    content = torch.nn.functional.normalize(torch.randn(500, 64), dim=1)
    ranker = Ranker(ranker_config(items=500, dimensions=64), KIND, [str(n) for n in range(500)], content).eval()
    no_lte = torch.zeros(32, 1, dtype=torch.bool)
    items = torch.randint(500, (32, 20))
    batch = Batch(
        items=items,
        lengths=torch.full((32,), 20),
        lte=torch.zeros(32, 1, 64),
        has_lte=no_lte,
        **every_event(items),
    )
    assert abs(ranker.loss(batch).item() / (32 * 20) - math.log(500)) < 1


@pytest.mark.parametrize("counts", [3, 4])
def test_the_item_bias_is_that_of_each_users_date(counts):
    """Adds scale · popularity on the user's own date to the logits by hand.

    A model from a release with three popularity counts reads the first three.
    """
    ranker = make_ranker(popularity_bias=True, popularity_counts=counts)
    popularity = torch.randn(4, len(POPULARITY_COUNTS), ITEMS, generator=torch.Generator().manual_seed(1))
    batch = dataclasses.replace(users(5, 3), dates=torch.tensor([3, 0, 0, 2, 1]))
    bias = torch.einsum("k,dki->di", ranker.popularity_scale, popularity[:, :counts])[batch.dates]
    without = ranker.scores(batch, torch.zeros_like(popularity))
    torch.testing.assert_close(ranker.scores(batch, popularity), without + bias)
    one = dataclasses.replace(batch, **asked(batch.items, [(user, 0) for user in range(5)]))
    logits = ranker(batch, ranker.item_table())[:, 0] @ ranker.item_table().T + bias
    expected = torch.nn.functional.cross_entropy(logits, batch.items[:, 0], reduction="sum")
    torch.testing.assert_close(ranker.loss(one, popularity), expected)
    # A batch without counts gets those stored in the model.
    carried = torch.einsum("k,dki->di", ranker.popularity_scale, ranker.popularity)
    torch.testing.assert_close(ranker.scores(batch), without + carried)


@given(
    items=st.lists(st.integers(0, ITEMS - 1), max_size=12), padding=st.integers(0, 3), biases=st.sampled_from([0, 1])
)
@settings(max_examples=40, deadline=None)
def test_the_repeat_bias_is_that_of_every_earlier_event_of_the_item(items, padding, biases):
    ranker = make_ranker(repeat_bias=True, max_tokens=20)
    batch = users(1, len(items) + padding)
    batch.items[0, : len(items)] = torch.tensor(items, dtype=torch.int64)
    batch = dataclasses.replace(batch, lengths=torch.tensor([len(items)]))
    bias = ranker.repeats.detach().clone() * biases
    with torch.no_grad():
        ranker.repeats.zero_()
        expected = ranker.scores(batch)[0].clone()
        ranker.repeats.copy_(bias)
    for ago, item in enumerate(reversed(items), start=1):
        expected[item] += bias[min(math.floor(math.log2(ago)), len(bias) - 1)]
    torch.testing.assert_close(ranker.scores(batch)[0], expected)


def test_the_gap_to_the_query_changes_the_scores():
    ranker = make_ranker(time_features=True)
    batch = users(2, 3)
    gaps = batch.gaps.clone()
    gaps[:, -1] = (gaps[:, -1] + 1) % GAP_BUCKETS
    assert not torch.equal(ranker.scores(batch), ranker.scores(dataclasses.replace(batch, gaps=gaps)))


def test_an_items_own_vector_is_dropped_in_training_alone():
    ranker = make_ranker(id_dropout=0.5)
    content_alone = ranker.item_projection(ranker.content)
    assert torch.equal(ranker.item_table(), content_alone + ranker.id_embedding)
    ranker.train()
    dropped = (ranker.item_table() == content_alone).all(dim=1)
    assert 0 < dropped.sum() < ITEMS


@variants
def test_new_items_are_ranked_without_training(options):
    ranker = make_ranker(**options)
    batch = users(3, 4, representations=ranker.config.representations)
    new = torch.nn.functional.normalize(torch.randn(2, DIMENSIONS), dim=1)
    wider = ranker.with_items(["n0", "n1"], new)
    scores = wider.scores(batch)
    assert wider.item_ids == (*ranker.item_ids, "n0", "n1") and scores.shape == (3, ITEMS + 2)
    torch.testing.assert_close(scores[:, :ITEMS], ranker.scores(batch))
    torch.testing.assert_close(wider.item_table()[ITEMS:], ranker.item_projection(new))
    if not options:
        # An item with the same content and a zero id vector scores the same.
        with torch.no_grad():
            wider.id_embedding[0] = 0
        twin = wider.with_items(["twin"], wider.content[:1]).scores(batch)
        torch.testing.assert_close(twin[:, -1], twin[:, 0])


def test_new_items_that_do_not_fit_are_refused():
    ranker = make_ranker()
    with pytest.raises(LTEError, match="ranks 'i3' already"):
        ranker.with_items(["i3"], torch.zeros(1, DIMENSIONS))
    with pytest.raises(LTEError, match=r"\(1, 7\), those of the model's basis 3f2a have 6 dimensions"):
        ranker.with_items(["new"], torch.zeros(1, 7))


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"width": 10, "heads": 3}, "model.width 10"),
        ({"max_tokens": 1}, "max_tokens 1"),
        ({"max_tokens": 2, "representations": 2}, "max_tokens 2 .* 2 context"),
        ({"long_memory": "lstm"}, "lstm"),
        ({"integration": "late"}, "late"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, named):
    with pytest.raises(LTEError, match=named):
        ranker_config(items=5, dimensions=4, **sizes)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.75, 1.0])
def test_dropout_drops_as_often_as_it_says_and_keeps_the_mean(p):
    dropout, x = Dropout(p), torch.full((400, 7, 63), 2.0, requires_grad=True)
    torch.manual_seed(0)
    y = dropout(x)
    y.sum().backward()
    kept = y != 0
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=0.005)
    assert kept.double().mean(dim=(0, 1)).sub(1 - p).abs().max() < 0.05  # on average over a draw's parts
    torch.testing.assert_close(y, torch.where(kept, 2.0 / max(1 - p, 1e-9), 0.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(x.grad, y.detach() / 2)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_scores_as_the_cpu_does():
    ranker = make_ranker()
    batch = users(8, 7)
    on_cpu = ranker.scores(batch)
    on_cuda = ranker.cuda().scores(batch.to("cuda")).cpu()
    torch.testing.assert_close(on_cuda, on_cpu, atol=1e-4, rtol=1e-4)

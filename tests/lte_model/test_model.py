import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lte_model.errors import LTEError
from lte_model.model import LTEKind, Ranker, RankerConfig, catalogue_cross_entropy, load_ranker, save_ranker

KIND = LTEKind(basis_id="3f2a", representation="uniform", lag_days=30, window_days=365)
ITEMS, DIMENSIONS = 23, 6


def make_ranker(integration="prefix", seed=0, **sizes) -> Ranker:
    """A small ranker in evaluation mode, with no parameter left at zero."""
    torch.manual_seed(seed)
    config = RankerConfig(items=ITEMS, dimensions=DIMENSIONS, max_tokens=8, width=16, integration=integration, **sizes)
    content = torch.nn.functional.normalize(torch.randn(ITEMS, DIMENSIONS), dim=1)
    ranker = Ranker(config, KIND, [f"i{n}" for n in range(ITEMS)], content)
    for parameter in ranker.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return ranker.eval()


def users(count: int, events: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    items = torch.randint(ITEMS, (count, events), generator=random)
    lte = torch.randn(count, DIMENSIONS, generator=random) * 0.3
    return items, lte, torch.ones(count, dtype=torch.bool)


@given(position=st.integers(0, 6), replacement=st.integers(0, ITEMS - 1), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_no_event_changes_the_states_before_it(position, replacement, seed):
    ranker = make_ranker()
    items, lte, has_lte = users(2, 7, seed)
    changed = items.clone()
    changed[:, position] = replacement
    table = ranker.item_table()
    before, after = ranker(items, lte, has_lte, table), ranker(changed, lte, has_lte, table)
    # The state at t predicts event t, counting from 0: that event itself must not be in it.
    assert torch.equal(before[:, : position + 1], after[:, : position + 1])
    if not torch.equal(items, changed):
        assert not torch.equal(before[:, position + 1 :], after[:, position + 1 :])


def test_the_loss_of_an_event_is_of_what_came_before_it():
    """Takes the gradient of each prediction by each input: none is left of the target or what follows it."""
    ranker = make_ranker()
    _, lte, has_lte = users(1, 7)
    table = ranker.item_table().detach().requires_grad_()
    for target in range(7):
        distinct = torch.arange(7)[None]  # one row of the table per event
        hidden = ranker(distinct[:, :-1], lte, has_lte, table)
        (gradient,) = torch.autograd.grad(hidden[0, target].sum(), table)
        assert gradient[:target].abs().sum(dim=1).gt(0).all()
        assert not gradient[target:].any()


@pytest.mark.parametrize("integration", ["prefix", "none"])
def test_padding_changes_nothing(integration):
    ranker = make_ranker(integration)
    items, lte, has_lte = users(3, 4)
    lengths = torch.tensor([4, 2, 0])
    alone = [
        ranker.scores(items[i : i + 1, :length], torch.tensor([length]), lte[i : i + 1], has_lte[i : i + 1])
        for i, length in enumerate([4, 2, 0])
    ]
    padded = torch.cat((items, torch.full((3, 3), 5)), dim=1)
    torch.testing.assert_close(ranker.scores(padded, lengths, lte, has_lte), torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_padding_is_no_part_of_the_loss():
    ranker = make_ranker()
    items, lte, has_lte = users(2, 5)
    whole = ranker.loss(items, torch.tensor([5, 2]), lte, has_lte)
    alone = [
        ranker.loss(items[i : i + 1, :length], torch.tensor([length]), lte[i : i + 1], has_lte[i : i + 1]) * length
        for i, length in enumerate([5, 2])
    ]
    torch.testing.assert_close(whole, sum(alone) / 7)


def test_prefix_reads_the_lte_and_none_does_not():
    items, lte, has_lte = users(4, 3)
    lengths = torch.full((4,), 3)
    for integration, reads in (("prefix", True), ("none", False)):
        ranker = make_ranker(integration)
        same = torch.equal(ranker.scores(items, lengths, lte, has_lte), ranker.scores(items, lengths, -lte, has_lte))
        assert same is not reads


def test_a_user_without_lte_is_read_alike_whatever_stands_in_its_row():
    ranker = make_ranker()
    items, lte, _ = users(2, 3)
    none = torch.zeros(2, dtype=torch.bool)
    lengths = torch.full((2,), 3)
    assert torch.equal(ranker.scores(items, lengths, lte, none), ranker.scores(items, lengths, 9 * lte, none))
    # … and not as a user whose LTE is zero.
    zero = torch.zeros_like(lte)
    assert not torch.equal(ranker.scores(items, lengths, zero, none), ranker.scores(items, lengths, zero, ~none))


def test_both_integrations_read_as_many_tokens():
    items, lte, has_lte = users(2, 5)
    shapes = {
        integration: make_ranker(integration)(items, lte, has_lte, make_ranker(integration).item_table()).shape
        for integration in ("prefix", "none")
    }
    assert shapes["prefix"] == shapes["none"] == (2, 6, 16)


def test_input_and_output_share_the_item_table():
    ranker = make_ranker()
    items, lte, has_lte = users(2, 3)
    lengths = torch.full((2,), 3)
    before = ranker.scores(items, lengths, lte, has_lte)
    absent = next(item for item in range(ITEMS) if item not in items)
    with torch.no_grad():
        ranker.id_embedding[absent] += 1  # only as output
    after = ranker.scores(items, lengths, lte, has_lte)
    others = torch.arange(ITEMS) != absent
    torch.testing.assert_close(before[:, others], after[:, others])
    assert not torch.allclose(before[:, absent], after[:, absent])
    with torch.no_grad():
        ranker.id_embedding[items[0, 1]] += 1  # as input of the first user too
    assert not torch.allclose(after[0], ranker.scores(items, lengths, lte, has_lte)[0])


def test_content_vectors_are_frozen():
    ranker = make_ranker()
    items, lte, has_lte = users(2, 3)
    before = ranker.content.clone()
    optimizer = torch.optim.SGD(ranker.parameters(), lr=1.0)
    ranker.loss(items, torch.full((2,), 3), lte, has_lte).backward()
    optimizer.step()
    assert torch.equal(ranker.content, before)


def test_an_untrained_ranker_starts_near_the_uniform_distribution():
    torch.manual_seed(0)
    content = torch.nn.functional.normalize(torch.randn(500, 64), dim=1)
    ranker = Ranker(RankerConfig(items=500, dimensions=64), KIND, [str(n) for n in range(500)], content).eval()
    items = torch.randint(500, (32, 20))
    loss = ranker.loss(items, torch.full((32,), 20), torch.zeros(32, 64), torch.zeros(32, dtype=torch.bool))
    assert abs(loss.item() - math.log(500)) < 1


@given(most_logits=st.integers(1, 400), positions=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_the_loss_in_chunks_is_the_loss(most_logits, positions):
    random = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, 4, generator=random, requires_grad=True)
    table = torch.randn(11, 4, generator=random, requires_grad=True)
    targets = torch.randint(11, (positions,), generator=random)
    whole = torch.nn.functional.cross_entropy(hidden @ table.T, targets)
    chunked = catalogue_cross_entropy(hidden, table, targets, most_logits)
    torch.testing.assert_close(chunked, whole)
    for ours, theirs in zip(
        torch.autograd.grad(chunked, (hidden, table)), torch.autograd.grad(whole, (hidden, table)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("field", "value"), [("basis_id", "77c0"), ("representation", "recency"), ("lag_days", 7), ("window_days", 90)]
)
def test_an_lte_of_another_kind_is_refused_by_name(field, value):
    with pytest.raises(LTEError) as refused:
        make_ranker().require(dataclasses.replace(KIND, **{field: value}), "the snapshot of 2024-05-01")
    for name in (field, str(value), str(getattr(KIND, field)), "the snapshot of 2024-05-01"):
        assert name in str(refused.value)
    make_ranker().require(KIND, "the snapshot of 2024-05-01")


@pytest.mark.parametrize("integration", ["prefix", "none"])
@pytest.mark.parametrize("id_embedding", [True, False])
def test_a_saved_ranker_comes_back_the_same(tmp_path, integration, id_embedding):
    ranker = make_ranker(integration, id_embedding=id_embedding)
    save_ranker(make_ranker(seed=1), tmp_path / "model")
    save_ranker(ranker, tmp_path / "model")  # replaces
    loaded = load_ranker(tmp_path / "model")
    items, lte, has_lte = users(3, 4)
    lengths = torch.full((3,), 4)
    assert torch.equal(loaded.scores(items, lengths, lte, has_lte), ranker.scores(items, lengths, lte, has_lte))
    assert (loaded.kind, loaded.config, loaded.item_ids) == (ranker.kind, ranker.config, ranker.item_ids)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(LTEError, match="there is no trained model in .*nowhere.*lte_model.training"):
        load_ranker(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"width": 10, "heads": 3}, "model.width 10"),
        ({"max_tokens": 1}, "max_length 1"),
        ({"integration": "late"}, "late"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, named):
    with pytest.raises(LTEError, match=named):
        RankerConfig(items=5, dimensions=4, **sizes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_scores_as_the_cpu_does():
    ranker = make_ranker()
    items, lte, has_lte = users(8, 7)
    lengths = torch.full((8,), 7)
    on_cpu = ranker.scores(items, lengths, lte, has_lte)
    on_cuda = ranker.cuda().scores(items.cuda(), lengths.cuda(), lte.cuda(), has_lte.cuda()).cpu()
    torch.testing.assert_close(on_cuda, on_cpu, atol=1e-4, rtol=1e-4)

import dataclasses
import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lte_model.domain.kind import LTEKind
from lte_model.errors import LTEError
from lte_model.ranker.integrations import INTEGRATIONS
from lte_model.ranker.model import GAP_BUCKETS, Batch, Dropout, Ranker, RankerConfig
from lte_model.ranker.saved import BEFORE_THE_FIELD, DESCRIPTION_FILE, load_ranker, save_ranker
from lte_model.warehouse.popularity import POPULARITY_COUNTS
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
"""Every option that adds a parameter."""

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
    """Full sequences, of which every event is a target."""
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
    """What a batch asks for: of each (user, place), the event at the place, after those before it."""
    users, places = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).T
    return {"targets": items[users, places], "target_users": users, "target_places": places}


def every_event(items: torch.Tensor) -> dict[str, torch.Tensor]:
    return asked(items, list(itertools.product(*map(range, items.shape))))


def shortened(batch: Batch, user: int, length: int) -> Batch:
    """One user of the batch alone, with the oldest `length` events and no padding."""
    alone = {
        name: tensor[user : user + 1]
        for name, tensor in vars(batch).items()
        if not name.startswith("target") and tensor is not None
    }
    alone |= {"items": alone["items"][:, :length], "gaps": alone["gaps"][:, :length]}
    return Batch(**alone | {"lengths": torch.tensor([length])})


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
        # The state at t predicts event t, counting from 0: that event itself must not be in it.
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
    """Takes the gradient of each prediction by each input: none is left of the target or what follows it."""
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
    # The last two are of one day: the second of them comes after what came before the first.
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
    """What each integration may touch: a block sees no late fusion, and without events there is nothing to inject."""
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
        # … and not as a user whose LTE is zero.
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


@integrations
@variants
@pytest.mark.parametrize("has_lte", [True, False])
@pytest.mark.parametrize("events", [0, 3])
def test_every_user_gets_a_finite_list(integration, options, has_lte, events):
    """Known by sequence and LTE, by one of them, or not at all."""
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
        ranker.id_embedding[absent] += 1  # only as output
    after = ranker.scores(batch)
    others = torch.arange(ITEMS) != absent
    torch.testing.assert_close(before[:, others], after[:, others])
    assert not torch.allclose(before[:, absent], after[:, absent])
    with torch.no_grad():
        ranker.id_embedding[batch.items[0, 1]] += 1  # as input of the first user too
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
    """Against the bias written out: scale · popularity of the user's own date, added to the logits. A model of a
    release that had three counts reads the first three.
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
    # Without counts beside the batch, those that the model carries.
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
        # An item of the same content and no vector of its own scores the same.
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
    ("field", "value"), [("basis_id", "77c0"), ("representation", "recency"), ("lag_days", 7), ("window_days", 90)]
)
def test_an_lte_of_another_kind_is_refused_by_name(field, value):
    with pytest.raises(LTEError) as refused:
        make_ranker().require(dataclasses.replace(KIND, **{field: value}), "the snapshot of 2024-05-01")
    for name in (field, str(value), str(getattr(KIND, field)), "the snapshot of 2024-05-01"):
        assert name in str(refused.value)
    make_ranker().require(KIND, "the snapshot of 2024-05-01")


@integrations
@pytest.mark.parametrize("options", [{}, {"id_embedding": False}, EVERYTHING], ids=["plain", "content", "everything"])
def test_a_saved_ranker_comes_back_the_same(tmp_path, integration, options):
    ranker = make_ranker(integration, **options)
    save_ranker(make_ranker(seed=1), tmp_path / "model")
    save_ranker(ranker, tmp_path / "model")  # replaces
    loaded = load_ranker(tmp_path / "model")
    batch = users(3, 4, representations=ranker.config.representations)
    assert torch.equal(loaded.scores(batch), ranker.scores(batch))
    assert (loaded.kind, loaded.config, loaded.item_ids) == (ranker.kind, ranker.config, ranker.item_ids)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_description_of_the_first_release_is_read_as_its_models_were(tmp_path):
    ranker = make_ranker(popularity_counts=3)
    save_ranker(ranker, tmp_path)
    description = json.loads((tmp_path / DESCRIPTION_FILE).read_text())
    first = ("items", "dimensions", "max_tokens", "width", "blocks", "heads", "dropout", "id_embedding", "integration")
    description["config"] = {field: description["config"][field] for field in first}
    (tmp_path / DESCRIPTION_FILE).write_text(json.dumps(description))
    loaded = load_ranker(tmp_path)
    assert loaded.config == ranker.config and torch.equal(loaded.scores(users(3, 4)), ranker.scores(users(3, 4)))
    assert {*first, *BEFORE_THE_FIELD} == {field.name for field in dataclasses.fields(RankerConfig)}


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(LTEError, match=r"there is no trained model in .*nowhere.*lte_model.training.train"):
        load_ranker(tmp_path / "nowhere")


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
    assert kept.double().mean(dim=(0, 1)).sub(1 - p).abs().max() < 0.05  # each of a draw's parts alike
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

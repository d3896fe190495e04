"""The recommender's lists equal those of the ranker for one user at a time, without hidden items."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lte_model.domain.basis import GRID, to_vector
from lte_model.domain.kind import LTEKind
from lte_model.errors import LTEError
from lte_model.ranker.model import Batch, Ranker, gap_buckets
from lte_model.ranker.recommender import Recommender
from tests.lte_model.configs import ranker_config

ITEMS, DIMENSIONS = 12, 4
KIND = LTEKind("b", "uniform+recency", 3, 10)
SUFFIXES = ("", "_recency")
NOW = 1_700_000_000


def new_recommender(seed=0):
    torch.manual_seed(seed)
    options = {"time_features": True, "long_memory": "linear_attention", "memory_events": 3}
    config = ranker_config(ITEMS, DIMENSIONS, representations=2, max_tokens=5, width=16, **options)
    ranker = Ranker(config, KIND, [f"i{row}" for row in range(ITEMS)], torch.randn(ITEMS, DIMENSIONS))
    for parameter in ranker.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Recommender(ranker)


RECOMMENDER = new_recommender()
item_ids = st.sampled_from([*RECOMMENDER.ranker.item_ids, "unknown"])
vector_sums = st.lists(st.integers(-GRID, GRID), min_size=DIMENSIONS, max_size=DIMENSIONS)


@st.composite
def users(draw):
    """A user's row, perhaps without events, or with none or one of two LTEs. A null list must act like an empty one."""
    events = draw(st.lists(st.tuples(item_ids, st.integers(0, 10**6)), max_size=9))
    times = sorted((NOW - age for _, age in events))
    row = {"item_ids": [item for item, _ in events] or draw(st.sampled_from([[], None])), "event_times": times}
    row |= {"query_time": NOW, "seen_items": draw(st.lists(item_ids, unique=True))}
    for suffix in ("", "_recency"):
        count = draw(st.integers(0, 3))
        row |= {f"event_count{suffix}": count or None, f"vector_sum{suffix}": draw(vector_sums) if count else None}
    return row


def rows_of(found):
    types = {"item_ids": pa.list_(pa.string()), "seen_items": pa.list_(pa.string()), "query_time": pa.int64()}
    types["event_times"] = pa.list_(pa.int64())
    for suffix in ("", "_recency"):
        types |= {f"vector_sum{suffix}": pa.list_(pa.int32()), f"event_count{suffix}": pa.int32()}
    return pa.RecordBatch.from_pylist(found, pa.schema(types))


def vector_of(row, suffix):
    """One of a row's LTEs, (1, dimensions)."""
    vector_sum = row[f"vector_sum{suffix}"] or [0] * DIMENSIONS
    return to_vector(np.array([vector_sum]), np.array([row[f"event_count{suffix}"] or 0]))


def scores_of_one(row):
    """One user's scores (items,), from a batch made by hand."""
    ranker = RECOMMENDER.ranker
    events = zip(row["item_ids"] or [], row["event_times"], strict=True)
    kept = [(ranker.item_ids.index(item), time // 60) for item, time in events if item != "unknown"]
    minutes = np.array([minute for _, minute in kept] + [NOW // 60])
    gaps = gap_buckets(np.diff(minutes)).astype(np.int64)
    rows = torch.tensor([item for item, _ in kept], dtype=torch.int64)
    newest, older = ranker.config.max_events, ranker.config.max_older_events
    lte = [vector_of(row, s) for s in SUFFIXES]
    batch = Batch(
        items=rows[-newest:][None],
        lengths=torch.tensor([min(len(rows), newest)]),
        lte=torch.from_numpy(np.stack(lte, axis=1)),
        has_lte=torch.tensor([[bool(row[f"event_count{s}"]) for s in SUFFIXES]]),
        gaps=torch.from_numpy(gaps[-newest:])[None],
        older=rows[:-newest][-older:][None],
        older_lengths=torch.tensor([min(max(len(rows) - newest, 0), older)]),
    )
    return ranker.scores(batch)[0].numpy()


@given(
    found=st.lists(users(), min_size=1, max_size=8),
    k=st.integers(1, ITEMS + 3),
    allowed=st.lists(st.booleans(), min_size=ITEMS, max_size=ITEMS),
)
def test_a_list_has_the_best_of_the_items_that_are_left(found, k, allowed):
    rows = rows_of(found)
    best = RECOMMENDER.best(RECOMMENDER.read(rows), k, np.array(allowed), rows["seen_items"])
    for number, row in enumerate(found):
        scores = scores_of_one(row)
        left = [
            item
            for item, name in enumerate(RECOMMENDER.ranker.item_ids)
            if allowed[item] and name not in row["seen_items"]
        ]
        expected = sorted(left, key=lambda item: -scores[item])[:k]
        names = best.item_ids[number].as_py()
        assert best.candidates[number] == len(left)
        assert len(names) == len(set(names)) == len(expected)
        assert set(names) <= {RECOMMENDER.ranker.item_ids[item] for item in left}
        np.testing.assert_allclose(best.scores[number].as_py(), scores[expected], rtol=1e-4, atol=1e-5)
        of_names = scores[[RECOMMENDER.ranker.item_ids.index(name) for name in names]]
        np.testing.assert_allclose(of_names, scores[expected], rtol=1e-4, atol=1e-5)


def test_rows_that_do_not_fit_are_refused_by_number():
    row = {"item_ids": ["i0"], "event_times": [NOW], "query_time": NOW, "event_count": 1, "event_count_recency": 0}
    good = row | {"vector_sum": [0] * DIMENSIONS}
    with pytest.raises(LTEError, match="row 1 of the input has 1 item_ids and 0 event_times"):
        RECOMMENDER.read(rows_of([good, good | {"event_times": []}]))
    with pytest.raises(
        LTEError, match="row 1 of the input has a vector_sum of 1 dimensions, the model's basis b has 4"
    ):
        RECOMMENDER.read(rows_of([good, good | {"vector_sum": [1]}]))

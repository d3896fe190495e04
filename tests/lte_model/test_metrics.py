import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lte_model.evaluation.comparison import Comparison
from lte_model.figures import UNDEFINED
from lte_model.metrics import bootstrap_means, interval, measures, mrr, ndcg, recall, relative_difference
from lte_model.ranker.ranks import count_ranks, ranks_of
from lte_model.settings import Settings

few_scores = st.lists(st.integers(-2, 2), min_size=1, max_size=12)


def oracle_rank(scores: list[int], target: int) -> float:
    """The target's mean rank over all orders of the items that agree with the scores."""
    higher = [item for item, score in enumerate(scores) if score > scores[target]]
    alike = [item for item, score in enumerate(scores) if score == scores[target]]
    places = range(len(higher) + 1, len(higher) + len(alike) + 1)
    return sum(places) / len(places)


@given(few_scores, st.data())
def test_a_rank_is_the_mean_place_among_ties(scores, data):
    target = data.draw(st.integers(0, len(scores) - 1))
    ranks = ranks_of(torch.tensor([scores], dtype=torch.float32), torch.tensor([target]))
    assert ranks.tolist() == [oracle_rank(scores, target)]


@given(few_scores)
def test_ranks_by_counts_are_ranks_by_scores(counts):
    targets = np.arange(len(counts))
    by_scores = ranks_of(torch.tensor(counts).repeat(len(counts), 1), torch.from_numpy(targets))
    assert count_ranks(np.array(counts), targets).tolist() == by_scores.tolist()


@given(rank=st.integers(1, 30), cutoff=st.integers(1, 30))
def test_metrics_are_those_of_one_relevant_item(rank, cutoff):
    relevance = [float(place == rank) for place in range(1, 31)][:cutoff]
    gain = sum(relevant / math.log2(1 + place) for place, relevant in enumerate(relevance, start=1))
    ideal = 1 / math.log2(2)
    ranks = np.array([rank], dtype=np.float64)
    assert ndcg(ranks, cutoff)[0] == pytest.approx(gain / ideal)
    assert recall(ranks, cutoff)[0] == sum(relevance)
    assert mrr(ranks, cutoff)[0] == pytest.approx(sum(r / place for place, r in enumerate(relevance, start=1)))


def test_ndcg_agrees_with_scikit_learn():
    from sklearn.metrics import ndcg_score

    random = np.random.default_rng(0)
    scores = random.normal(size=(20, 30))  # no ties: scikit-learn averages gains over them, not places
    targets = random.integers(30, size=20)
    ranks = ranks_of(torch.from_numpy(scores), torch.from_numpy(targets)).numpy()
    for cutoff in (1, 5, 30):
        assert ndcg(ranks, cutoff).mean() == pytest.approx(ndcg_score(np.eye(30)[targets], scores, k=cutoff))


def test_measures_are_named_by_metric_and_cutoff():
    assert set(measures(np.array([1.0]), (10, 500))) == {
        f"{metric}@{cutoff}" for metric in ("ndcg", "recall", "mrr") for cutoff in (10, 500)
    }


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = random.exponential(size=(200, 1))
        found = interval(values.mean(), bootstrap_means(values, 300, seed=trial)[:, 0])
        covered += found.low <= 1 <= found.high
    assert 0.89 <= covered / 200 <= 0.98


def test_pairing_narrows_the_interval_of_a_difference():
    """The per-user noise that two sides share cancels in their difference."""
    random = np.random.default_rng(0)
    noise = random.exponential(size=500)
    values = np.column_stack((noise + 0.1 + random.normal(0, 0.01, 500), noise))
    means = bootstrap_means(values, 500, seed=0)
    found = interval(0.1, means[:, 0] - means[:, 1])
    assert 0.09 < found.low < 0.1 < found.high < 0.11
    assert means.std(axis=0).min() > 0.03


def test_the_bootstrap_is_the_same_for_the_same_seed_and_whatever_the_block(monkeypatch):
    values = np.random.default_rng(0).normal(size=(50, 3))
    whole = bootstrap_means(values, 40, seed=3)
    assert np.array_equal(whole, bootstrap_means(values, 40, seed=3))
    assert not np.array_equal(whole, bootstrap_means(values, 40, seed=4))
    monkeypatch.setattr("lte_model.metrics.BLOCK", 7 * 50)
    np.testing.assert_allclose(bootstrap_means(values, 40, seed=3), whole)


def test_a_ratio_to_zero_is_not_defined():
    assert np.isnan(relative_difference(1.0, 0.0))
    assert relative_difference(3.0, 2.0) == 0.5
    assert interval(float("nan"), np.array([np.nan, np.nan])) == UNDEFINED


def test_of_nobody_every_figure_is_undefined():
    """No division by the number of users, whatever is compared."""
    nobody = Comparison.of({side: np.zeros(0) for side in ("prefix", "none", "popularity_30d")}, Settings())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = [nobody.metrics(), nobody.uplifts(), nobody.among(np.zeros(0, dtype=bool)).metrics()]
    assert {figure for sides in figures for of_side in sides.values() for figure in of_side.values()} == {UNDEFINED}
    assert np.isnan(bootstrap_means(np.zeros((0, 3)), 7, seed=0)).all()
    assert bootstrap_means(np.zeros((0, 3)), 7, seed=0).shape == (7, 3)

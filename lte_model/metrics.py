"""Ranking metrics over the full catalogue, with bootstrap confidence intervals.

The rank of a target is 1 + the items that score higher + half of the *other* items that score the same. So a model that
scores all items alike ranks a target mid-catalogue; with ties counted as wins it would look perfect.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from lte_model.figures import Figure

CONFIDENCE = 0.95

BLOCK = 2**24
"""The most user numbers that a bootstrap draws at once."""


def ndcg(ranks: np.ndarray, cutoff: int) -> np.ndarray:
    """1 / log2(1 + rank) up to the cutoff, else 0: NDCG of one relevant item, whose ideal is 1."""
    return np.where(ranks <= cutoff, 1 / np.log2(1 + ranks), 0.0)


def recall(ranks: np.ndarray, cutoff: int) -> np.ndarray:
    """1 up to the cutoff, else 0."""
    return (ranks <= cutoff).astype(np.float64)


def mrr(ranks: np.ndarray, cutoff: int) -> np.ndarray:
    """1 / rank up to the cutoff, else 0."""
    return np.where(ranks <= cutoff, 1 / ranks, 0.0)


METRICS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"ndcg": ndcg, "recall": recall, "mrr": mrr}


def measures(ranks: np.ndarray, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """Every metric at every cutoff, per case: {"ndcg@10": (N,), …}."""
    return {f"{name}@{cutoff}": metric(ranks, cutoff) for name, metric in METRICS.items() for cutoff in cutoffs}


def bootstrap_means(values: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Means (samples, columns) of `values` (users, columns) over users drawn with replacement.

    All columns of a sample use the same users, so that columns are compared in pairs. Without users every mean is NaN.
    """
    users = len(values)
    if not users:
        return np.full((samples, values.shape[1]), np.nan)
    random = np.random.default_rng(seed)
    block = max(1, BLOCK // users)
    means = []
    for first in range(0, samples, block):
        rows = min(block, samples - first)
        drawn = random.integers(users, size=(rows, users)) + np.arange(rows)[:, None] * users
        times = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
        means.append(times @ values / users)
    return np.concatenate(means)


def interval(value: float | np.ndarray, resampled: np.ndarray) -> Figure:
    """`value` (a number or an array of shape ()) with its percentile interval at `CONFIDENCE`; NaN becomes None."""
    finite = resampled[np.isfinite(resampled)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, (tail, 1 - tail)) if len(finite) else (np.nan, np.nan)
    return Figure(*(float(end) if np.isfinite(end) else None for end in (value, low, high)))


def relative_difference(ours: np.ndarray | float, base: np.ndarray | float) -> np.ndarray:
    """The relative difference ours / base − 1; NaN where base is 0."""
    ours, base = np.asarray(ours, dtype=np.float64), np.asarray(base, dtype=np.float64)
    return np.divide(ours, base, out=np.full(ours.shape, np.nan), where=base != 0) - 1


def mean_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The mean cosine between the rows of two (users, dimensions) matrices, without zero rows; NaN if none is left."""
    dot, *squares = (
        np.einsum("ud,ud->u", a, b, dtype=np.float64) for a, b in ((one, other), (one, one), (other, other))
    )
    lengths = np.sqrt(squares[0] * squares[1])
    some = lengths > 0
    return float((dot[some] / lengths[some]).mean()) if some.any() else math.nan

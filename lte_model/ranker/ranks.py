"""The rank of each target in the full catalogue, by a ranker's scores or by counts."""

import numpy as np
import torch

from lte_model.ranker.batches import scored
from lte_model.ranker.cases import Cases
from lte_model.ranker.model import Ranker


def ranks_of(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The ranks (B,) float64 of `targets` (B,), one per row of the finite `scores` (B, items).

    A rank is 1 + greater + (alike − 1) / 2. Because greater + less + alike = items, it equals
    (1 + items + greater − less) / 2: one sum of signs, which float32 takes exactly up to 2^24 items.
    """
    above = (scores - scores.gather(1, targets[:, None])).sign().sum(dim=1, dtype=torch.float32)
    return (1 + scores.shape[1] + above.double()) / 2


def target_ranks(ranker: Ranker, cases: Cases, device: torch.device, batch_size: int = 0) -> np.ndarray:
    """The rank (N,) that `ranker`, on `device`, gives the target of each case."""
    was_training = ranker.training
    ranker.eval()
    ranks = np.empty(len(cases))
    for numbers, scores in scored(ranker, cases, device, cases.popularity_on(device), batch_size):
        ranks[numbers] = ranks_of(scores, torch.from_numpy(cases.targets[numbers]).to(device)).cpu().numpy()
    ranker.train(was_training)
    return ranks


def count_ranks(counts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The ranks (N,) of `targets` if every case has the same scores, `counts` (items,)."""
    ascending = np.sort(counts)
    of_target = counts[targets]
    not_greater = np.searchsorted(ascending, of_target, side="right")
    less = np.searchsorted(ascending, of_target, side="left")
    return 1 + (len(counts) - not_greater) + (not_greater - less - 1) / 2

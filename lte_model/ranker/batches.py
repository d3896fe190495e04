"""What a ranker reads of many users: their events and LTEs as flat arrays, which become padded batches.

Training and evaluation read their users from tables (lte_model/training/training_set.py); a served model and the
scoring of all users read them from Arrow rows (recommender.py). Only this file decides which events are read, how they
are padded and which users share a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lte_model.ranker.model import Batch, Ranker, gap_buckets

BATCHES = {"cpu": 128, "cuda": 512}
"""Users per scoring batch. On a CPU, its cache must hold a layer of the batch."""

SCORES_AT_ONCE = 2**24
"""The most scores held in memory at once."""


@dataclass(frozen=True)
class Users:
    """N users, each at one date.

    User i holds the events `items[starts[i]:ends[i]]`, rows of the catalogue, oldest first; `gaps` has the bucket of
    the time from each event to the next one, or from the last to the date. The LTEs are `lte[i]` (representations,
    dimensions) float32 where `has_lte[i]`.
    """

    items: np.ndarray
    gaps: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    lte: np.ndarray
    has_lte: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """How many events each user has, (users,)."""
        return self.ends - self.starts

    def batch(self, numbers: np.ndarray, most_events: int | None = None, older_events: int = 0) -> Batch:
        """A batch of the users `numbers`, in that order.

        Each user has its newest `most_events` events (None: all) and the `older_events` before them.
        """
        return self.batch_before(self.ends[numbers], numbers, most_events, older_events)

    def batch_before(self, ends: np.ndarray, numbers: np.ndarray, most_events: int | None, older_events: int) -> Batch:
        """`batch`, but of each user's events before the index `ends` (users,)."""
        starts = self.starts[numbers]
        lengths = ends - starts
        if most_events is not None:
            lengths = np.minimum(lengths, most_events)
        place, real = places(ends - lengths, lengths)
        older, older_lengths = None, None
        if older_events:
            older_lengths = np.minimum(ends - lengths - starts, older_events)
            older = torch.from_numpy(_padded(self.items, *places(ends - lengths - older_lengths, older_lengths)))
            older_lengths = torch.from_numpy(older_lengths)
        return Batch(
            items=torch.from_numpy(_padded(self.items, place, real)),
            lengths=torch.from_numpy(lengths),
            lte=torch.from_numpy(self.lte[numbers]),
            has_lte=torch.from_numpy(self.has_lte[numbers]),
            gaps=torch.from_numpy(_padded(self.gaps, place, real)),
            older=older,
            older_lengths=older_lengths,
        )


def scored(
    ranker: Ranker,
    users: Users,
    device: torch.device,
    popularity: torch.Tensor | None = None,
    batch_size: int = 0,
    table: torch.Tensor | None = None,
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yields (numbers, scores (B, items)) per batch of all users; `popularity` and `table` are as in `Ranker.scores`.

    Scores are computed in float32, whatever the precision of the training. Users of similar length share a batch, which
    saves padding. The same users in the same order make the same batches.
    """
    batch_size = max(1, min(batch_size or BATCHES.get(device.type, 512), SCORES_AT_ONCE // len(ranker.item_ids)))
    most_events, older_events = ranker.config.max_events, ranker.config.max_older_events
    order = np.argsort(np.minimum(users.lengths, most_events + older_events), kind="stable")
    if table is None:
        with torch.inference_mode():
            table = ranker.item_table()
    for numbers in np.split(order, range(batch_size, len(order), batch_size)):
        batch = users.batch(numbers, most_events, older_events).to(device)
        yield numbers, ranker.scores(batch, popularity, table)


def places(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (B, T) of the runs of `lengths` that begin at `starts`, and a mask (B, T) that is False for padding."""
    columns = np.arange(lengths.max(initial=0))
    return starts[:, None] + columns, columns < lengths[:, None]


def gaps_to_next(minutes: np.ndarray, ends: np.ndarray, lengths: np.ndarray, now: np.ndarray) -> np.ndarray:
    """The bucket of the time from each event to the next one of its user, or from the last to `now` (users,).

    All times are minutes since 1970; each user's events end at index `ends` (users,).
    """
    following = np.append(minutes[1:], 0)
    following[ends[lengths > 0] - 1] = now[lengths > 0]
    return gap_buckets(following - minutes)


def _padded(values: np.ndarray, place: np.ndarray, real: np.ndarray) -> np.ndarray:
    padded = np.zeros(real.shape, dtype=np.int64)
    padded[real] = values[place[real]]
    return padded

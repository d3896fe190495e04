"""The cases of a split, one user at one date each, as flat arrays that become batches."""

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from lte_model.ranker.batches import Users
from lte_model.ranker.model import Batch


@dataclass(frozen=True)
class Cases(Users):
    """The cases of one split, ordered by snapshot date and user: N users, each at one date D.

    The newest `target_counts[i]` events of case i are dated in [D−L, D); its LTEs average `event_counts[i]` events.
    `dates[i]` is a row of `popularity` (dates, counts, items), which is None if the settings want none. `targets[i]` is
    the catalogue row of the item to predict. In the training split it is −1, and the newest `target_counts[i]` events
    are predicted. Event e is predicted from the events of its case before the index `inputs_end[e]`.
    """

    user_ids: pl.Series
    inputs_end: np.ndarray
    target_counts: np.ndarray
    event_counts: np.ndarray
    dates: np.ndarray
    popularity: np.ndarray | None
    targets: np.ndarray
    history_counts: np.ndarray
    seen: np.ndarray
    dropped_unknown_target: int

    def sequence(self, case: int) -> np.ndarray:
        """The catalogue rows of all events of `case`, oldest first."""
        return self.items[self.starts[case] : self.ends[case]]

    @property
    def input_lengths(self) -> np.ndarray:
        """How many events predict the newest target of each training case."""
        return self.inputs_end[self.ends - 1] - self.starts

    def windows(self, max_events: int, last_only: bool = False) -> "Cases":
        """Training cases, cut so that a model of `max_events` reaches every target.

        A sequence with more than `max_events` inputs is cut from its end into windows. Each window predicts the targets
        that have an input within it, so that every target is predicted once, after at least one earlier event.
        `last_only` keeps only the newest target of each case.
        """
        numbers, ends, targets = [], [], []
        number = np.arange(len(self))
        end, left = self.ends.copy(), np.minimum(self.target_counts, 1) if last_only else self.target_counts.copy()
        while len(number):
            oldest = self.inputs_end[end - 1] - max_events
            reached = np.searchsorted(self.inputs_end, oldest, side="right")
            first = np.where(oldest <= self.starts[number], end - left, reached)
            taken = np.minimum(left, end - first)
            numbers.append(number)
            ends.append(end)
            targets.append(taken)
            more = left > taken
            number, end, left = number[more], (end - taken)[more], (left - taken)[more]
        number = np.concatenate(numbers)
        order = np.argsort(number, kind="stable")
        return dataclasses.replace(
            self.taken(number[order]),
            ends=np.concatenate(ends)[order],
            target_counts=np.concatenate(targets)[order],
        )

    def taken(self, numbers: np.ndarray) -> "Cases":
        """The cases `numbers`, over the same events."""
        per_case = (
            "starts", "ends", "target_counts", "lte", "has_lte", "event_counts", "dates", "targets", "history_counts",
        )  # fmt: skip
        return dataclasses.replace(
            self,
            user_ids=self.user_ids.gather(numbers),
            **{name: getattr(self, name)[numbers] for name in per_case},
        )

    def batch_before(self, ends: np.ndarray, numbers: np.ndarray, most_events: int | None, older_events: int) -> Batch:
        """`Users.batch_before`, plus each case's popularity row."""
        batch = super().batch_before(ends, numbers, most_events, older_events)
        return dataclasses.replace(batch, dates=torch.from_numpy(self.dates[numbers]))

    def training_batch(self, numbers: np.ndarray, most_events: int, older_events: int = 0) -> Batch:
        """A batch of cases that `windows` cut: the inputs of their newest targets, and all targets."""
        ends, counts = self.ends[numbers], self.target_counts[numbers]
        input_ends = self.inputs_end[ends - 1]
        batch = self.batch_before(input_ends, numbers, most_events, older_events)
        users = np.repeat(np.arange(len(numbers)), counts)
        events = np.arange(len(users)) + np.repeat(ends - counts.cumsum(), counts)
        oldest = input_ends - batch.lengths.numpy()
        return dataclasses.replace(
            batch,
            targets=torch.from_numpy(self.items[events].astype(np.int64)),
            target_users=torch.from_numpy(users),
            target_places=torch.from_numpy(self.inputs_end[events] - oldest[users]),
        )

    def popularity_on(self, device: torch.device) -> torch.Tensor | None:
        """`popularity` on `device`, as `Ranker.loss` and `Ranker.scores` take it."""
        return None if self.popularity is None else torch.from_numpy(self.popularity).to(device)

    def digest(self) -> bytes:
        """A hash of everything that a model learns from these cases."""
        content = hashlib.sha256()
        for array in (
            self.items, self.inputs_end, self.gaps, self.starts, self.ends, self.target_counts, self.lte, self.has_lte,
            self.dates, self.targets, self.seen,
        ):  # fmt: skip
            content.update(np.ascontiguousarray(array).data)
        if self.popularity is not None:
            content.update(np.ascontiguousarray(self.popularity).data)
        return content.digest()


def first_places(*keys: np.ndarray) -> np.ndarray:
    """For each row of the columns `keys`, where equal rows are adjacent: the index of the first row equal to it."""
    another = np.ones(len(keys[0]), dtype=bool)
    another[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.maximum.accumulate(np.where(another, np.arange(len(another)), 0))


def target_counts_of(cases: Cases, items: int) -> np.ndarray:
    """How often each item (items,) is a target of the training cases."""
    ends = cases.ends
    edges = np.zeros(len(cases.items) + 1, dtype=np.int64)
    np.add.at(edges, ends - cases.target_counts, 1)
    np.add.at(edges, ends, -1)
    times = edges.cumsum()[:-1]
    return np.bincount(cases.items, weights=times, minlength=items).astype(np.int64)

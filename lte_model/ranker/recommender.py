"""Ranks the best items for many users: Arrow rows of events and LTEs in, lists of items with scores out.

The served model (lte_model/serving/pyfunc.py) and the job that scores every user (jobs/score_users.py) both use this
file. A row is a user, with the columns that pyfunc.py describes. Null may stand for an empty list and for a count of 0.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lte_model.domain.basis import to_vector
from lte_model.errors import LTEError
from lte_model.ranker.batches import Users, gaps_to_next, places, scored
from lte_model.ranker.model import Ranker
from lte_model.ranker.saved import load_ranker


@dataclass(frozen=True)
class Ranked:
    """The best items of N users.

    `item_ids` and `scores` (logits, float32) have a list per user, best first; `candidates` (N,) says how many items
    each list was chosen from.
    """

    item_ids: pa.ListArray
    scores: pa.ListArray
    candidates: np.ndarray


class Recommender:
    """A ranker on a CPU, ready to rank: what is the same for all users is computed once."""

    def __init__(self, ranker: Ranker):
        self.ranker = ranker.eval()
        self.item_ids = pa.array(ranker.item_ids, pa.string())
        with torch.inference_mode():
            self.table = ranker.item_table()

    def read(self, rows: pa.RecordBatch) -> Users:
        """The users of `rows`. It skips events of items that the catalogue lacks, as in training.

        Raises `LTEError` for an LTE with other dimensions than the model's, and unless every event has a time.
        """
        lengths = _lengths(rows["item_ids"])
        items = self._rows_of(rows["item_ids"])
        user, kept = np.repeat(np.arange(len(rows)), lengths), items >= 0
        lengths_kept = np.bincount(user[kept], minlength=len(rows))
        ends = lengths_kept.cumsum()
        gaps = np.zeros(int(kept.sum()), dtype=np.uint8)
        if self.ranker.config.time_features:
            wrong = np.flatnonzero(lengths != _lengths(rows["event_times"]))
            if len(wrong):
                raise LTEError(
                    f"row {wrong[0]} of the input has {lengths[wrong[0]]} item_ids and "
                    f"{_lengths(rows['event_times'])[wrong[0]]} event_times; give the time of each event"
                )
            minutes = rows["event_times"].flatten().to_numpy() // 60
            gaps = gaps_to_next(minutes[kept], ends, lengths_kept, rows["query_time"].to_numpy() // 60)
        lte, has_lte = self._ltes(rows)
        return Users(items[kept], gaps, ends - lengths_kept, ends, lte, has_lte)

    @torch.inference_mode()
    def best(
        self, users: Users, k: int, allowed: np.ndarray | None = None, hidden: pa.ListArray | None = None
    ) -> Ranked:
        """The `k` best items of each user, or as many as there are.

        `allowed` (items,) bool is the mask of items to rank; `hidden` lists, for each user, item ids to leave out. The
        item bias, if the model has one, is that of the newest date of its training.
        """
        items, device = len(self.item_ids), torch.device("cpu")
        k = min(k, items)
        rows, scores = np.zeros((len(users), k), dtype=np.int64), np.zeros((len(users), k), dtype=np.float32)
        candidates = np.full(len(users), items)
        if hidden is not None:
            hidden_rows, hidden_lengths = self._rows_of(hidden), _lengths(hidden)
            hidden_starts = hidden_lengths.cumsum() - hidden_lengths
        for numbers, of_batch in scored(self.ranker, users, device, table=self.table):
            if allowed is not None:
                of_batch.masked_fill_(torch.from_numpy(~allowed), -torch.inf)
            if hidden is not None:
                place, real = places(hidden_starts[numbers], hidden_lengths[numbers])
                item, user = hidden_rows[place[real]], np.nonzero(real)[0]
                of_batch[user[item >= 0], item[item >= 0]] = -torch.inf
            if allowed is not None or hidden is not None:
                candidates[numbers] = items - of_batch.isneginf().sum(dim=1).numpy()
            found = of_batch.topk(k)
            rows[numbers], scores[numbers] = found.indices.numpy(), found.values.numpy()
        kept = ~np.isneginf(scores)
        offsets = pa.array(np.append(0, kept.sum(axis=1).cumsum()).astype(np.int32))
        return Ranked(
            pa.ListArray.from_arrays(offsets, self.item_ids.take(pa.array(rows[kept]))),
            pa.ListArray.from_arrays(offsets, pa.array(scores[kept])),
            candidates,
        )

    def _rows_of(self, item_ids: pa.ListArray) -> np.ndarray:
        """The catalogue rows of all items of the lists, flattened; −1 for an item that the catalogue lacks."""
        return pc.index_in(item_ids.flatten(), value_set=self.item_ids).fill_null(-1).to_numpy()

    def _ltes(self, rows: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """LTEs (users, representations, dimensions) float32, and a mask (users, representations) of which exist."""
        names, dimensions = self.ranker.kind.representations, self.ranker.config.dimensions
        lte = np.zeros((len(rows), len(names), dimensions), dtype=np.float32)
        event_counts = np.zeros((len(rows), len(names)), dtype=np.int64)
        for number, name in enumerate(names):
            suffix = f"_{name}" if number else ""
            event_counts[:, number] = rows[f"event_count{suffix}"].fill_null(0).to_numpy()
            has_lte = event_counts[:, number] > 0
            vector_sums = rows[f"vector_sum{suffix}"]
            wrong = np.flatnonzero(has_lte & (_lengths(vector_sums) != dimensions))
            if len(wrong):
                raise LTEError(
                    f"row {wrong[0]} of the input has a vector_sum{suffix} of {_lengths(vector_sums)[wrong[0]]} "
                    f"dimensions, the model's basis {self.ranker.kind.basis_id} has {dimensions}; give the row of "
                    "lte_live as it is"
                )
            sums = vector_sums.filter(pa.array(has_lte)).flatten().to_numpy().reshape(-1, dimensions)
            lte[has_lte, number] = to_vector(sums, event_counts[has_lte, number])
        return lte, event_counts > 0


def _lengths(lists: pa.ListArray) -> np.ndarray:
    return pc.list_value_length(lists).fill_null(0).to_numpy().astype(np.int64)


@functools.lru_cache(maxsize=1)
def open_recommender(directory: str) -> Recommender:
    """The model that `save_ranker` wrote, loaded once per process and run by one thread.

    A Spark worker has one core, and each core has a worker.
    """
    torch.set_num_threads(1)
    return Recommender(load_ranker(directory))

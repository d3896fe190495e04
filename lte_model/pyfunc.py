"""The ranker as MLflow serves it: recent items and an LTE in, the highest ranked items with their scores out.

MLflow keeps this file in the logged model and runs it when the model is loaded ("models from code"); weights and
catalogue come from the safetensors and JSON that lie beside it. Nothing is pickled.

A row of the input is a user: `item_ids`, the events of the sequence, oldest first, and the columns of the user's row
in `lte_live` as they are; with several representations, those of the first. A user without an LTE has `event_count` 0
and an empty `vector_sum`.

A model asks for more where its description says so: with time features, `event_times` of the sequence and the
`query_time`, in Unix seconds; with several representations, a pair of columns `vector_sum_<name>` and
`event_count_<name>` for each after the first.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from lte_model.basis import to_grid, to_vector
from lte_model.errors import LTEError
from lte_model.model import Batch, LTEKind, Ranker, gap_buckets, load_ranker, require_kind

ARTIFACT = "ranker"
"""The name under which the directory of `save_ranker` is logged."""


def signature(ranker: Ranker) -> ModelSignature:
    """The columns that the ranker reads of a user, and what it answers."""
    columns = [
        ColSpec(Array(DataType.string), "item_ids"),
        ColSpec(Array(DataType.long), "vector_sum"),
        ColSpec(DataType.long, "event_count"),
        ColSpec(DataType.string, "basis_id"),
        ColSpec(DataType.string, "representation"),
        ColSpec(DataType.long, "lag_days"),
        ColSpec(DataType.long, "window_days"),
    ]
    for name in ranker.kind.representations[1:]:
        columns += [ColSpec(Array(DataType.long), f"vector_sum_{name}"), ColSpec(DataType.long, f"event_count_{name}")]
    if ranker.config.time_features:
        columns += [ColSpec(Array(DataType.long), "event_times"), ColSpec(DataType.long, "query_time")]
    return ModelSignature(
        inputs=Schema(columns),
        outputs=Schema([ColSpec(Array(DataType.string), "item_ids"), ColSpec(Array(DataType.float), "scores")]),
        params=ParamSchema([ParamSpec("k", DataType.long, 10)]),
    )


def input_example(ranker: Ranker) -> pd.DataFrame:
    """Two users whom the ranker can read: one with a sequence and an LTE, one of whom nothing is known."""
    first_vector = to_grid(ranker.content[:1].numpy(force=True))[0].tolist()
    names = ranker.kind.representations
    rows = []
    for item_ids, vector_sum, event_count in ((list(ranker.item_ids[:3]), first_vector, 1), ([], [], 0)):
        row = {"item_ids": item_ids, "vector_sum": vector_sum, "event_count": event_count}
        row |= vars(ranker.kind.of(names[0]))
        for name in names[1:]:
            row |= {f"vector_sum_{name}": vector_sum, f"event_count_{name}": event_count}
        if ranker.config.time_features:
            row |= {"event_times": [0] * len(item_ids), "query_time": 3600}
        rows.append(row)
    return pd.DataFrame(rows)


class ServedRanker(PythonModel):
    """Ranks the whole catalogue for each user; items seen before are not filtered."""

    def load_context(self, context: PythonModelContext) -> None:
        self.ranker = load_ranker(context.artifacts[ARTIFACT])
        self.rows = {item_id: row for row, item_id in enumerate(self.ranker.item_ids)}

    def predict(self, context, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The `k` best `item_ids` of each user with their `scores` (logits), best first.

        Events of items that the catalogue lacks are passed over, as in training. Raises `LTEError` for an LTE of
        another basis, representation, lag or window than the model's, and for a vector of other dimensions.
        """
        k = int((params or {}).get("k", 10))
        if k < 1:
            raise LTEError(f"k = {k} asks for no item; give 1 or more")
        scores = self.ranker.scores(self._batch(model_input))  # (users, items)
        best = scores.topk(min(k, scores.shape[1]))
        return pd.DataFrame(
            {
                "item_ids": [[self.ranker.item_ids[row] for row in rows] for rows in best.indices.tolist()],
                "scores": best.values.tolist(),
            },
            index=model_input.index,
        )

    def _batch(self, users: pd.DataFrame) -> Batch:
        config = self.ranker.config
        read = config.max_events + config.max_older_events
        events = [
            [(self.rows[item], gap) for item, gap in zip(items, gaps, strict=True) if item in self.rows][-read:]
            for items, gaps in zip(users["item_ids"], self._gaps(users), strict=True)
        ]
        newest = [row[-config.max_events :] for row in events]
        older = [row[: -config.max_events] for row in events]
        lte, has_lte = self._ltes(users)
        return Batch(
            items=_padded([[item for item, _ in row] for row in newest]),
            lengths=torch.tensor([len(row) for row in newest], dtype=torch.int64),
            lte=lte,
            has_lte=has_lte,
            gaps=_padded([[gap for _, gap in row] for row in newest]),
            older=_padded([[item for item, _ in row] for row in older]),
            older_lengths=torch.tensor([len(row) for row in older], dtype=torch.int64),
        )

    def _gaps(self, users: pd.DataFrame) -> list[list[int]]:
        """The bucket of the time from each event to the next, or to the query; zeros where the model reads no time."""
        if not self.ranker.config.time_features:
            return [[0] * len(items) for items in users["item_ids"]]
        return [
            gap_buckets(np.diff(np.append(np.asarray(times, dtype=np.int64), now) // 60)).tolist()
            for times, now in zip(users["event_times"], users["query_time"], strict=True)
        ]

    def _ltes(self, users: pd.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
        """LTEs (users, representations, dimensions) float32, and who has which (users, representations)."""
        first, *further = self.ranker.kind.representations
        counts = [users["event_count"].to_numpy()] + [users[f"event_count_{name}"].to_numpy() for name in further]
        event_counts = np.stack(counts, axis=1)
        fields = list(LTEKind.__dataclass_fields__)
        for kind in users.loc[event_counts[:, 0] > 0, fields].drop_duplicates().itertuples(index=False):
            found = LTEKind(*kind)
            require_kind(self.ranker.kind.of(first), found, "the input's LTE")
        lte = np.zeros((*event_counts.shape, self.ranker.config.dimensions), dtype=np.float32)
        for number, column in enumerate(["vector_sum", *(f"vector_sum_{name}" for name in further)]):
            lte[:, number] = self._vectors(users[column], event_counts[:, number], column)
        return torch.from_numpy(lte), torch.from_numpy(event_counts > 0)

    def _vectors(self, vector_sums: pd.Series, event_counts: np.ndarray, column: str) -> np.ndarray:
        dimensions = self.ranker.config.dimensions
        sums = np.zeros((len(vector_sums), dimensions), dtype=np.int64)
        for user in np.flatnonzero(event_counts > 0):
            vector_sum = vector_sums.iloc[user]
            if len(vector_sum) != dimensions:
                raise LTEError(
                    f"row {user} of the input has a {column} of {len(vector_sum)} dimensions, the model's basis "
                    f"{self.ranker.kind.basis_id} has {dimensions}; give the row of lte_live as it is"
                )
            sums[user] = vector_sum
        return to_vector(sums, event_counts)


def _padded(rows: list[list[int]]) -> torch.Tensor:
    """Rows of numbers (users, T), padded with 0 on the right."""
    padded = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
    for user, row in enumerate(rows):
        padded[user, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded


set_model(ServedRanker())

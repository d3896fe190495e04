"""The ranker as MLflow serves it: recent items and an LTE in, the highest ranked items with their scores out.

MLflow keeps this file in the logged model and runs it when the model is loaded ("models from code"); weights and
catalogue come from the safetensors and JSON that lie beside it. Nothing is pickled.

A row of the input is a user: `item_ids`, the events of the short-term sequence, oldest first, and the columns of the
user's row in `lte_live` as they are. A user without an LTE has `event_count` 0 and an empty `vector_sum`.
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
from lte_model.model import LTEKind, Ranker, load_ranker

ARTIFACT = "ranker"
"""The name under which the directory of `save_ranker` is logged."""

SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(Array(DataType.string), "item_ids"),
            ColSpec(Array(DataType.long), "vector_sum"),
            ColSpec(DataType.long, "event_count"),
            ColSpec(DataType.string, "basis_id"),
            ColSpec(DataType.string, "representation"),
            ColSpec(DataType.long, "lag_days"),
            ColSpec(DataType.long, "window_days"),
        ]
    ),
    outputs=Schema([ColSpec(Array(DataType.string), "item_ids"), ColSpec(Array(DataType.float), "scores")]),
    params=ParamSchema([ParamSpec("k", DataType.long, 10)]),
)


def input_example(ranker: Ranker) -> pd.DataFrame:
    """Two users whom the ranker can read: one with a sequence and an LTE, one of whom nothing is known."""
    first_vector = to_grid(ranker.content[:1].numpy(force=True))[0]
    kind = vars(ranker.kind)
    known = {"item_ids": list(ranker.item_ids[:3]), "vector_sum": first_vector.tolist(), "event_count": 1, **kind}
    unknown = {"item_ids": [], "vector_sum": [], "event_count": 0, **kind}
    return pd.DataFrame([known, unknown])


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
        items, lengths = self._sequences(model_input["item_ids"])
        lte, has_lte = self._ltes(model_input)
        scores = self.ranker.scores(items, lengths, lte, has_lte)  # (users, items)
        best = scores.topk(min(k, scores.shape[1]))
        return pd.DataFrame(
            {
                "item_ids": [[self.ranker.item_ids[row] for row in rows] for rows in best.indices.tolist()],
                "scores": best.values.tolist(),
            },
            index=model_input.index,
        )

    def _sequences(self, item_ids: pd.Series) -> tuple[torch.Tensor, torch.Tensor]:
        """Row numbers (users, T), padded on the right, and how many of them are real (users,)."""
        newest = self.ranker.config.max_events
        rows = [[self.rows[item] for item in items if item in self.rows][-newest:] for items in item_ids]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        padded = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
        for user, row in enumerate(rows):
            padded[user, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return padded, lengths

    def _ltes(self, users: pd.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
        """LTEs (users, dimensions) float32, and who has one (users,)."""
        counts = users["event_count"].to_numpy()
        has_lte = counts > 0
        for kind in users.loc[has_lte, list(LTEKind.__dataclass_fields__)].drop_duplicates().itertuples(index=False):
            self.ranker.require(LTEKind(*kind), "the input's LTE")
        dimensions = self.ranker.config.dimensions
        sums = np.zeros((len(users), dimensions), dtype=np.int64)
        for user in np.flatnonzero(has_lte):
            vector_sum = users["vector_sum"].iloc[user]
            if len(vector_sum) != dimensions:
                raise LTEError(
                    f"row {user} of the input has a vector_sum of {len(vector_sum)} dimensions, the model's basis "
                    f"{self.ranker.kind.basis_id} has {dimensions}; give the row of lte_live as it is"
                )
            sums[user] = vector_sum
        return torch.from_numpy(to_vector(sums, counts)), torch.from_numpy(has_lte)


set_model(ServedRanker())

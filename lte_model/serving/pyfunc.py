"""The ranker as MLflow serves it: recent items and an LTE in, the highest ranked items with their scores out.

MLflow stores this file in the logged model and runs it in `mlflow models serve` ("models from code"). Weights and
catalogue come from the safetensors and JSON files beside it; nothing is pickled. The pipeline itself reads only those
files (`lte_model.registry.versions.load`), and runs no code of a registry.

A row of the input is a user: `item_ids`, the events of the sequence, oldest first, and the unchanged columns of the
user's row in `lte_live` (of the first representation, if there are several). A user without an LTE has `event_count` 0
and an empty `vector_sum`. A `user_id` may replace these columns: the model then reads them from `lte_live` of the
installation whose settings file LTE_SETTINGS names on the server.

Some models need more columns: with time features, `event_times` of the sequence and the `query_time`, in Unix seconds;
with several representations, `vector_sum_<name>` and `event_count_<name>` for each after the first.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
from mlflow.models import Model, ModelSignature, set_model
from mlflow.pyfunc import PyFuncModel, PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array

from lte_model.domain.basis import to_grid
from lte_model.domain.kind import KIND_FIELDS, LTEKind, require_kind
from lte_model.errors import LTEError
from lte_model.ranker.model import Ranker
from lte_model.ranker.recommender import Recommender
from lte_model.ranker.saved import load_ranker
from lte_model.serving.live import with_live_ltes
from lte_model.settings import load_settings

ARTIFACT = "ranker"
"""The name under which the directory of `save_ranker` is logged."""

_TYPES = {DataType.string: pa.string(), DataType.long: pa.int64()}

_KIND_COLUMNS = {
    field.name: DataType.long if field.type is int else DataType.string for field in dataclasses.fields(LTEKind)
}


def signature(ranker: Ranker) -> ModelSignature:
    """The columns that the ranker reads for a user, and its output."""
    columns: list[ColSpec | TensorSpec] = [ColSpec(Array(DataType.string), "item_ids")]
    # Either these or the user's id, as `predict` says.
    columns += [ColSpec(type_, name, required=False) for name, type_ in _lte_columns(ranker).items()]
    columns += [ColSpec(type_, name, required=False) for name, type_ in _KIND_COLUMNS.items()]
    columns += [ColSpec(DataType.string, "user_id", required=False)]
    if ranker.config.time_features:
        columns += [ColSpec(Array(DataType.long), "event_times"), ColSpec(DataType.long, "query_time")]
    return ModelSignature(
        inputs=Schema(columns),
        outputs=Schema([ColSpec(Array(DataType.string), "item_ids"), ColSpec(Array(DataType.float), "scores")]),
        params=ParamSchema([ParamSpec("k", DataType.long, 10)]),
    )


def _lte_columns(ranker: Ranker) -> dict[str, Array | DataType]:
    """The columns of the LTEs themselves, with their types."""
    columns: dict[str, Array | DataType] = {}
    for number, name in enumerate(ranker.kind.representations):
        suffix = f"_{name}" if number else ""
        columns |= {f"vector_sum{suffix}": Array(DataType.long), f"event_count{suffix}": DataType.long}
    return columns


def input_example(ranker: Ranker) -> pd.DataFrame:
    """Two example users: one with a sequence and an LTE, one with neither."""
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
        """Loads the ranker from the files of the model; MLflow calls it once."""
        self.recommender = Recommender(load_ranker(context.artifacts[ARTIFACT]))

    def predict(self, context, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The `k` best `item_ids` of each user with their `scores` (logits), best first.

        Events of items that the catalogue lacks are skipped, as in training. Raises `LTEError` for an LTE of another
        basis, representation, lag or window than the model's, for a vector of other dimensions, and for users with
        neither LTE nor id.
        """
        k = int((params or {}).get("k", 10))
        if k < 1:
            raise LTEError(f"k = {k} asks for no item; give 1 or more")
        ranker, fields = self.recommender.ranker, list(KIND_FIELDS)
        missing = [name for name in (*_lte_columns(ranker), *fields) if name not in model_input]
        if missing:
            if "user_id" not in model_input:
                raise LTEError(f"the input has neither {missing[0]} nor user_id; give the row of lte_live, or the id")
            model_input = with_live_ltes(model_input, ranker.kind, load_settings())
        first = ranker.kind.of(ranker.kind.representations[0])
        for kind in model_input.loc[model_input["event_count"] > 0, fields].drop_duplicates().itertuples(index=False):
            require_kind(first, LTEKind(*kind), "the input's LTE")
        ranked = self.recommender.best(self.recommender.read(as_rows(model_input, ranker)), k)
        lists = {"item_ids": ranked.item_ids.to_pylist(), "scores": ranked.scores.to_pylist()}
        return pd.DataFrame(lists, index=model_input.index)


def served(ranker: Ranker) -> PyFuncModel:
    """The ranker as MLflow serves it, with the code of this installation."""
    model = ServedRanker()
    model.recommender = Recommender(ranker)
    loaded = PyFuncModel(Model(signature=signature(ranker)), SimpleNamespace(predict=partial(model.predict, None)))
    loaded.input_example = input_example(ranker)
    return loaded


def as_rows(users: pd.DataFrame, ranker: Ranker) -> pa.RecordBatch:
    """The columns that the ranker reads for each user, as Arrow."""
    columns = {}
    for name, column in signature(ranker).inputs.input_dict().items():
        if name not in _KIND_COLUMNS and name != "user_id":
            is_list = isinstance(column.type, Array)
            type_ = _TYPES[column.type.dtype if is_list else column.type]
            columns[name] = pa.array(users[name].tolist(), pa.list_(type_) if is_list else type_)
    return pa.RecordBatch.from_pydict(columns)


set_model(ServedRanker())

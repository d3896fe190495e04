"""The ranker as MLflow serves it: recent items and an LTE in, the highest ranked items with their scores out.

MLflow stores this file in the logged model and runs it in `mlflow models serve` ("models from code"). Weights and
catalogue come from the safetensors and JSON files beside it; nothing is pickled. The pipeline itself reads only those
files (`lte_model.registry.versions.load`), and runs no code of a registry.

A row of the input is a user: `item_ids`, the events of the sequence, oldest first, and the unchanged columns of the
user's row in `lte_live` (of the first representation, if there are several). A user without an LTE has an `event_count`
of 0 or null, as a left join with `lte_live` gives it; null `item_ids` are no events. A `user_id` may replace the LTE's
columns: the model then reads them from `lte_live` of the installation whose settings file LTE_SETTINGS names on the
server.

Some models need more columns: with time features, `event_times` of the sequence and the `query_time`, in Unix seconds;
with several representations, `vector_sum_<name>` and `event_count_<name>` for each after the first.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from mlflow.models import Model, ModelSignature, set_model
from mlflow.pyfunc import PyFuncModel, PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array

from lte_model.domain.basis import GRID, to_grid
from lte_model.domain.kind import KIND_FIELDS, LTEKind, require_kind
from lte_model.domain.representations import representation
from lte_model.errors import LTEError
from lte_model.ranker.model import Ranker
from lte_model.ranker.recommender import Recommender
from lte_model.ranker.saved import load_ranker
from lte_model.serving.live import with_live_ltes
from lte_model.settings import load_settings

ARTIFACT = "ranker"
"""The name under which the directory of `save_ranker` is logged."""

DEFAULT_K = 10
"""How many items a user gets where nobody says how many."""

_KIND_COLUMNS = {field.name: pa.int64() if field.type is int else pa.string() for field in dataclasses.fields(LTEKind)}


def signature(ranker: Ranker) -> ModelSignature:
    """The columns that the ranker reads of a user, and what it answers.

    No column has a type here: MLflow refuses a batch for one null, and pandas makes floats of whole numbers beside a
    null. `read_column` reads them, and names the row of what it can't be.
    """
    # The LTE's columns or the user's id, as `predict` says.
    columns = (*_columns(ranker), *_KIND_COLUMNS, "user_id")
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name, required=False) for name in columns]),
        outputs=Schema([ColSpec(Array(DataType.string), "item_ids"), ColSpec(Array(DataType.float), "scores")]),
        params=ParamSchema([ParamSpec("k", DataType.long, DEFAULT_K)]),
    )


def _columns(ranker: Ranker) -> dict[str, pa.DataType]:
    """What `as_rows` reads of a user, and as what."""
    columns: dict[str, pa.DataType] = {"item_ids": pa.list_(pa.string())} | _lte_columns(ranker)
    if ranker.config.time_features:
        columns |= {"event_times": pa.list_(pa.int64()), "query_time": pa.int64()}
    return columns


def _lte_columns(ranker: Ranker) -> dict[str, pa.DataType]:
    """The columns of the LTEs themselves, and what they hold."""
    columns: dict[str, pa.DataType] = {}
    for suffix, _ in _suffixes(ranker):
        columns |= {f"vector_sum{suffix}": pa.list_(pa.int64()), f"event_count{suffix}": pa.int64()}
    return columns


def _suffixes(ranker: Ranker) -> list[tuple[str, str]]:
    """(how the columns of a representation end, its name) of each that the ranker reads."""
    return [(f"_{name}" if number else "", name) for number, name in enumerate(ranker.kind.representations)]


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
        basis, representation, lag or window than the model's, for a vector of other dimensions or longer than any LTE
        is, and for users with neither LTE nor id.
        """
        wanted = (params or {}).get("k")
        k = DEFAULT_K if wanted is None else int(wanted)
        if k < 1:
            raise LTEError(f"k = {k} asks for no item; give 1 or more")
        ranker, fields = self.recommender.ranker, list(KIND_FIELDS)
        missing = [name for name in (*_lte_columns(ranker), *fields) if name not in model_input]
        if missing:
            if "user_id" not in model_input:
                raise LTEError(f"the input has neither {missing[0]} nor user_id; give the row of lte_live, or the id")
            users = model_input.assign(user_id=read_column(model_input["user_id"], pa.string()).to_pylist())
            model_input = with_live_ltes(users, ranker.kind, load_settings())
        rows = as_rows(model_input, ranker)
        require_ltes(rows, ranker)
        _require_kinds(model_input, rows, ranker)
        ranked = self.recommender.best(self.recommender.read(rows), k)
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
    """The columns that the ranker reads for each user, as Arrow.

    Raises `LTEError` for a column that isn't there, and names the row of a value that isn't what the column holds.
    """
    columns = {}
    for name, type_ in _columns(ranker).items():
        if name not in users:
            raise LTEError(f"the input has no {name}; the head of lte_model/serving/pyfunc.py says what a row holds")
        columns[name] = read_column(users[name], type_)
    if "query_time" in columns and (without := pc.is_null(columns["query_time"]).to_numpy(False)).any():
        raise LTEError(f"row {without.argmax()} of the input has no query_time; give the time that the list is for")
    return pa.RecordBatch.from_pydict(columns)


def read_column(values: pd.Series, type_: pa.DataType) -> pa.Array:
    """A column as pandas holds it: None, NaN and NA are null, and a float that is whole is a whole number.

    Raises `LTEError` for a value of another type, by the number of its row.
    """
    read = []
    for number, value in enumerate(values.tolist()):
        try:
            read.append(_read(value, type_))
        except (ValueError, TypeError, OverflowError, pa.ArrowException):
            kind = "a list of " if pa.types.is_list(type_) else ""
            of = type_.value_type if kind else type_
            wanted = f"{kind}{'text' if pa.types.is_string(of) else 'whole numbers' if kind else 'a whole number'}"
            shown = repr(value)[:100]
            raise LTEError(f"row {number} of the input has {shown} for {values.name}; give {wanted}, or null") from None
    return pa.array(read, type_)


def _read(value: Any, type_: pa.DataType) -> Any:
    if pa.types.is_list(type_):
        if isinstance(value, str | bytes | Mapping):
            raise TypeError(value)
        if not isinstance(value, Iterable):
            if value is None or pd.isna(value):
                return None
            raise TypeError(value)
        if pa.types.is_string(type_.value_type):
            return pa.array(value, pa.string(), from_pandas=True)
        return _whole(value)
    if value is None or pd.isna(value):
        return None
    if pa.types.is_string(type_):
        return pa.scalar(value, type_)
    return int(_whole([value])[0])


def _whole(values: Iterable[Any]) -> np.ndarray:
    """The numbers as int64. Raises `ValueError` or `TypeError` where one is none, or not whole."""
    numbers = np.asarray(values if isinstance(values, np.ndarray) else list(values))
    if not len(numbers):
        return np.zeros(0, dtype=np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
        raise TypeError(values)
    with np.errstate(invalid="ignore"):
        whole = numbers.astype(np.int64)
    if not np.array_equal(whole, numbers):
        raise ValueError(values)
    return whole


def require_ltes(rows: pa.RecordBatch, ranker: Ranker) -> None:
    """Raises `LTEError` for sums that no LTE has: of fewer events than none, or longer than any average of vectors."""
    dimensions = ranker.config.dimensions
    for suffix, name in _suffixes(ranker):
        counts = rows[f"event_count{suffix}"].fill_null(0).to_numpy()
        of_dimensions = pc.equal(pc.list_value_length(rows[f"vector_sum{suffix}"]), dimensions).fill_null(False)
        with_lte = (counts > 0) & of_dimensions.to_numpy(zero_copy_only=False)  # the recommender names the others
        sums = rows[f"vector_sum{suffix}"].filter(pa.array(with_lte)).flatten().to_numpy().reshape(-1, dimensions)
        norms, components = np.zeros(len(counts)), np.zeros(len(counts))
        means = sums / (counts[with_lte, None] * float(GRID))
        norms[with_lte], components[with_lte] = np.linalg.norm(means, axis=1), np.abs(means).max(axis=1, initial=0)
        longest = representation(name).largest_norm(dimensions)
        wrong = np.flatnonzero((counts < 0) | (norms > longest) | (components > 1))
        if len(wrong):
            row = wrong[0]
            found = f"event_count{suffix} {counts[row]}"
            if counts[row] > 0:
                found = f"a vector_sum{suffix} of {counts[row]} events whose average has the length {norms[row]:.3g}"
            raise LTEError(f"row {row} of the input has {found}: no {name} LTE has; give the row of lte_live as it is")


def _require_kinds(users: pd.DataFrame, rows: pa.RecordBatch, ranker: Ranker) -> None:
    """Raises `LTEError` for an LTE of another kind than the ranker reads. Who has none has no kind."""
    counts = [rows[f"event_count{suffix}"].fill_null(0).to_numpy() for suffix, _ in _suffixes(ranker)]
    with_lte = users[np.max(counts, axis=0) > 0] if len(users) else users
    kinds = {name: read_column(with_lte[name], type_).to_pylist() for name, type_ in _KIND_COLUMNS.items()}
    first = ranker.kind.of(ranker.kind.representations[0])
    for kind in dict.fromkeys(zip(*kinds.values(), strict=True)):
        require_kind(first, LTEKind(*kind), "the input's LTE")


set_model(ServedRanker())

"""What a service may send to the served model, as pandas and JSON have it, and what is refused by its row."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import scoring_server

from lte_model.domain.basis import GRID
from lte_model.domain.kind import KIND_FIELDS
from lte_model.errors import LTEError
from lte_model.serving.pyfunc import DEFAULT_K, served
from tests.lte_model.registered import DIMENSIONS, KIND, random_ranker

NAN = float("nan")
NO_KIND = dict.fromkeys(KIND_FIELDS)


@pytest.fixture(scope="module")
def model():
    return served(random_ranker())


@pytest.fixture(scope="module")
def model_with_times():
    kind = dataclasses.replace(KIND, representation="uniform+autoencoder")
    return served(random_ranker(kind=kind, representations=2, time_features=True))


def unit(dimension=0, events=1):
    return [events * GRID if number == dimension else 0 for number in range(DIMENSIONS)]


def user(**columns):
    return {"item_ids": ["item 1"], "vector_sum": unit(), "event_count": 1, **dataclasses.asdict(KIND), **columns}


def as_frame(rows):
    return pd.DataFrame(rows)


def as_nullable(rows):
    return pd.DataFrame(rows).convert_dtypes()


def as_arrow(rows):
    return pd.DataFrame(rows).convert_dtypes(dtype_backend="pyarrow")


def as_json(rows):
    """What the server of `mlflow models serve` makes of the body of a request."""
    schema = served(random_ranker()).metadata.get_input_schema()
    return scoring_server.infer_and_parse_data(json.loads(json.dumps({"dataframe_records": rows})), schema)


WITHOUT_LTE = {
    "joined with lte_live, and not in it": {"vector_sum": None, "event_count": None, **NO_KIND},
    "null count": {"event_count": None},
    "NaN count": {"event_count": NAN},
    "count of 0, empty sum": {"event_count": 0, "vector_sum": []},
    "count of 0, null sum": {"event_count": 0, "vector_sum": None},
    "count of 0.0, no kind": {"event_count": 0.0, **NO_KIND},
}


@pytest.mark.parametrize("read", [as_frame, as_nullable, as_arrow, as_json])
@pytest.mark.parametrize("columns", WITHOUT_LTE.values(), ids=WITHOUT_LTE)
def test_a_null_is_a_user_without_an_lte_and_leaves_the_batch_alone(model, read, columns):
    others = [user(), user(item_ids=["item 2", "item 3"])]
    none = user(event_count=0, vector_sum=[])
    wanted = model.predict(as_frame([others[0], none, others[1]]))
    for rows in ([others[0], user(**columns), others[1]], [user(**columns)]):
        found = model.predict(read(rows))
        assert found["item_ids"].tolist() == (wanted if len(rows) > 1 else wanted[1:2])["item_ids"].tolist()


SAME = {
    "whole floats": {"event_count": 2.0, "lag_days": 30.0, "window_days": 365.0},
    "a sum of floats": {"vector_sum": [float(part) for part in unit(events=2)]},
    "an array": {"vector_sum": np.array(unit(events=2), dtype=np.int32)},
    "a count as numpy has it": {"event_count": np.int32(2)},
    "an item that nobody knows": {"item_ids": [None, "item 1"]},
}


@pytest.mark.parametrize("columns", SAME.values(), ids=SAME)
def test_the_same_numbers_in_another_type_are_the_same_user(model, columns):
    rows = [user(event_count=2, vector_sum=unit(events=2))]
    wanted = model.predict(as_frame(rows))
    pd.testing.assert_frame_equal(model.predict(as_frame([rows[0] | columns])), wanted)
    beside_a_null = model.predict(as_frame([rows[0] | columns, user(vector_sum=None, event_count=None, **NO_KIND)]))
    assert beside_a_null["item_ids"][0] == wanted["item_ids"][0]


@pytest.mark.parametrize("read", [as_frame, as_nullable, as_arrow, as_json])
@pytest.mark.parametrize("nothing", [None, []])
def test_null_items_are_no_events(model, read, nothing):
    found = model.predict(read([user(), user(item_ids=nothing), user(item_ids=nothing)]))
    wanted = model.predict(as_frame([user(), user(item_ids=[]), user(item_ids=[])]))
    assert found["item_ids"].tolist() == wanted["item_ids"].tolist()
    assert model.predict(read([user(item_ids=nothing)]))["item_ids"].tolist() == wanted["item_ids"][1:2].tolist()


def test_a_null_k_is_the_default_one(model):
    for params in ({"k": None}, {}, None):
        assert [len(items) for items in model.predict(as_frame([user()]), params=params)["item_ids"]] == [DEFAULT_K]
    assert [len(items) for items in model.predict(as_frame([user()]), params={"k": 3})["item_ids"]] == [3]


LONG = [GRID // 2] * DIMENSIONS  # an average of length √2

REFUSED = {
    "a negative count": ({"event_count": -1}, "event_count -1: no uniform LTE has"),
    "half an event": ({"event_count": 2.5}, "2.5 for event_count; give a whole number, or null"),
    "an infinite count": ({"event_count": float("inf")}, "inf for event_count"),
    "text for a count": ({"event_count": "2"}, "'2' for event_count"),
    "yes for a count": ({"event_count": True}, "True for event_count"),
    "a sum for a count": ({"event_count": [1]}, r"\[1\] for event_count"),
    "a component beyond the grid": ({"vector_sum": unit(events=2)}, "a vector_sum of 1 events whose average has the l"),
    "a long vector": ({"vector_sum": LONG}, "whose average has the length 1.41: no uniform LTE has"),
    "a sum of more events": ({"vector_sum": unit(events=7), "event_count": 5}, "of 5 events whose average has"),
    "a hole in a sum": ({"vector_sum": [None, *unit()[1:]]}, "for vector_sum; give a list of whole numbers"),
    "a NaN in a sum": ({"vector_sum": [NAN, *unit()[1:]]}, "for vector_sum"),
    "half a grid step": ({"vector_sum": [0.5, *unit()[1:]]}, "for vector_sum"),
    "a number for a sum": ({"vector_sum": 7}, "7 for vector_sum; give a list of whole numbers, or null"),
    "no sum": ({"vector_sum": None}, "a vector_sum of 0 dimensions"),
    "text for items": ({"item_ids": "item 1"}, "'item 1' for item_ids; give a list of text, or null"),
    "numbers for items": ({"item_ids": [1, 2]}, r"\[1, 2\] for item_ids"),
}


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(("columns", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_no_lte_can_be_is_refused_by_its_row(model, columns, problem, at):
    rows = [user(), user(), user()]
    rows[at] |= columns
    with pytest.raises(LTEError, match=f"row {at} of the input has .*{problem}"):
        model.predict(as_frame(rows))


def test_an_lte_is_as_long_as_its_representation_allows(model_with_times):
    """An encoder's vectors are longer than those of content; and each representation is looked at."""
    times = {"event_times": [0], "query_time": 3600}
    good = user(**times, vector_sum_autoencoder=LONG, event_count_autoencoder=1)
    model_with_times.predict(as_frame([good]))
    for columns, problem in (
        ({"vector_sum_autoencoder": [GRID + 1, *LONG[1:]]}, "has a vector_sum_autoencoder of 1 events"),
        ({"event_count_autoencoder": -3}, "has event_count_autoencoder -3: no autoencoder LTE has"),
        ({"query_time": None}, "has no query_time"),
        ({"event_times": None}, "has 1 item_ids and 0 event_times"),
    ):
        with pytest.raises(LTEError, match=f"row 1 of the input {problem}"):
            model_with_times.predict(as_frame([good, good | columns]))
    without = {"event_count": None, "vector_sum": None}
    for field, other in (("basis_id", "other"), ("lag_days", 7), ("window_days", None)):
        with pytest.raises(LTEError, match=f"trained on {field} .* has {field} {other}"):
            model_with_times.predict(as_frame([good | without | {field: other}]))
    model_with_times.predict(as_frame([good | without | NO_KIND | {"event_count_autoencoder": None}]))


@pytest.mark.parametrize("name", ["item_ids", "event_times", "query_time"])
def test_a_column_that_is_missing_is_named(model_with_times, name):
    row = user(event_times=[0], query_time=3600, vector_sum_autoencoder=LONG, event_count_autoencoder=1)
    with pytest.raises(LTEError, match=f"the input has no {name}"):
        model_with_times.predict(as_frame([row]).drop(columns=name))

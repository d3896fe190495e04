"""A registered version as MLflow serves it: in process, by user id, and over HTTP."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from mlflow.exceptions import MlflowException

from lte_model.domain.basis import GRID
from lte_model.errors import LTEError
from lte_model.registry import versions
from lte_model.tracking.lineage import CHALLENGER
from tests.loopback import free_port
from tests.lte_model.registered import DIMENSIONS, JANUARY, KIND, settings_file, trained


@pytest.mark.parametrize("field", ["basis_id", "representation", "lag_days", "window_days"])
def test_served_model_refuses_an_lte_of_another_kind(served, field):
    users = served.input_example
    other = "other" if isinstance(users[field][0], str) else 7
    with pytest.raises((LTEError, MlflowException), match=f"trained on {field} .* has {field} {other}"):
        served.predict(users.assign(**{field: pd.Series([other] * 2, dtype=users[field].dtype)}))


def test_served_model_refuses_a_vector_of_other_dimensions(served):
    users = served.input_example
    users.at[0, "vector_sum"] = [1, 2]
    with pytest.raises((LTEError, MlflowException), match="row 0 of the input has a vector_sum of 2 dimensions"):
        served.predict(users)


@pytest.fixture(scope="module")
def served(registered):
    return versions.load(registered, CHALLENGER)


def make_live(settings):
    """Writes `lte_live` rows of two users, with other LTEs in a second basis; returns those of the first basis."""
    random = np.random.default_rng(1)
    rows = [
        {
            "user_id": user,
            "vector_sum": random.integers(-GRID // 4, GRID // 4, DIMENSIONS).tolist(),
            "event_count": count,
            **dataclasses.asdict(KIND),
            "basis_id": basis_id,
        }
        for basis_id in (KIND.basis_id, "older")
        for count, user in enumerate(("u1", "u2"), start=1)
    ]
    types = {"vector_sum": pl.List(pl.Int32), "event_count": pl.Int32, "lag_days": pl.Int32, "window_days": pl.Int32}
    pl.DataFrame(rows, schema_overrides=types).write_delta(settings.table_path("lte_live"))
    return pd.DataFrame(rows[:2])


def test_a_user_id_is_looked_up_in_what_is_live(installation, tmp_path, monkeypatch):
    trained(installation, JANUARY)
    versions.register(installation, JANUARY)
    model = versions.load(installation, CHALLENGER)
    monkeypatch.setenv("LTE_SETTINGS", str(settings_file(installation, tmp_path)))
    by_id = pd.DataFrame({"item_ids": [["item 3"], [], ["item 5"]], "user_id": ["u2", "u1", "nobody"]})
    with pytest.raises((LTEError, MlflowException), match=r"table lte_live does not exist at .*; run jobs.publish_lte"):
        model.predict(by_id)
    known = make_live(installation).set_index("user_id").loc[["u2", "u1", "u1"]].reset_index(drop=True)
    known.loc[2, "event_count"] = 0
    by_row = known.assign(item_ids=by_id["item_ids"])
    pd.testing.assert_frame_equal(model.predict(by_id), model.predict(by_row))
    with pytest.raises((LTEError, MlflowException), match="the input has neither vector_sum nor user_id"):
        model.predict(by_id.drop(columns="user_id"))


@pytest.mark.slow
def test_it_is_served_over_http(installation, tmp_path):
    """For a user's id, `mlflow models serve` gives the same answer as the loaded model."""
    trained(installation, JANUARY)
    version = versions.register(installation, JANUARY)
    user = make_live(installation).head(1)
    expected = versions.load_version(installation, version).predict(user.assign(item_ids=[["item 3"]]), params={"k": 3})
    port = free_port()
    uri = f"models:/{version.name}/{version.version}"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-p", str(port)],
        env=os.environ
        | {
            "MLFLOW_TRACKING_URI": installation.mlflow.tracking_uri,
            "LTE_SETTINGS": str(settings_file(installation, tmp_path)),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        start_new_session=True,
    )
    try:
        body = {"dataframe_records": [{"item_ids": ["item 3"], "user_id": "u1"}], "params": {"k": 3}}
        (answered,) = answer_of(server, f"http://127.0.0.1:{port}/invocations", body)["predictions"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert answered["item_ids"] == expected["item_ids"][0]
    assert answered["scores"] == pytest.approx(expected["scores"][0])


def answer_of(server, url, body):
    """Retries until the server has started; returns its answer."""
    deadline = time.monotonic() + 120
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            pytest.fail(error.read().decode())
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.2)

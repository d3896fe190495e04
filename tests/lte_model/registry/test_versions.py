"""Registers models on a real MLflow with SQLite."""

import dataclasses
import datetime
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from lte_model.domain.basis import GRID, to_vector
from lte_model.errors import LTEError
from lte_model.ranker.model import Batch
from lte_model.ranker.recommender import Recommender
from lte_model.ranker.saved import load_ranker
from lte_model.registry import gate, promotion, versions
from lte_model.serving.pyfunc import as_rows
from lte_model.tracking import code_version, runs
from lte_model.tracking.lineage import CHALLENGER, CHAMPION, version_with
from tests.lte_model.registered import DIMENSIONS, ITEMS, JANUARY, KIND, aliases, figure, settings_file, trained


def test_registered_version_says_what_it_is(installation):
    trained(installation, JANUARY)
    version = versions.register(installation, JANUARY)
    assert aliases(installation) == {"challenger": 1}
    wanted = {
        "training_date": "2026-01-01", "basis_id": KIND.basis_id, "representation": "uniform", "lag_days": "30",
        "window_days": "365", "delta_version.training_set": "6", "delta_version.events": "41",
        "anchors": '["2025-10-01", "2025-11-01"]', "test": '["2025-12-01", "2026-01-01"]',
    }  # fmt: skip
    assert wanted.items() <= version.tags.items()
    assert json.loads(version.tags["prefix.recall_at_500"]) == dataclasses.asdict(figure(0.15, 0.02))
    assert json.loads(version.tags["prefix over none.ndcg_at_500"]) == dataclasses.asdict(figure(0.2, 0.1))
    assert version.run_id == runs.find_or_create_run(installation, JANUARY, "prefix")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert version.tags["code_version"].removesuffix("-dirty") == commit[:12]


def test_the_version_of_a_learned_representation_is_its_encoders(installation):
    accounts = {
        "snapshot_date": [datetime.date(2025, 11, 1), datetime.date(2025, 12, 1), datetime.date(2025, 12, 1)],
        "basis_id": [KIND.basis_id] * 2 + ["other"],
        "representation": ["autoencoder"] * 3,
        "encoder_id": ["e1", "e2", "e3"],
    }
    pl.DataFrame(accounts).write_delta(installation.table_path("snapshot_accounts"))
    trained(installation, JANUARY, kind=dataclasses.replace(KIND, representation="autoencoder"))
    version = versions.register(installation, JANUARY)
    assert json.loads(version.tags["encoders"]) == {"2025-11-01": "e1", "2025-12-01": "e2"}


def test_without_a_checkout_the_code_is_known_by_its_sources(monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(code_version.PACKAGE.parent.parent))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert re.fullmatch("sha256:[0-9a-f]{12}", code_version.code_version())


def test_the_same_model_is_registered_once_and_another_anew(installation):
    trained(installation, JANUARY)
    assert [versions.register(installation, JANUARY).version for _ in range(2)] == [1, 1]
    trained(installation, JANUARY, seed=1)
    assert versions.register(installation, JANUARY).version == 2
    trained(installation, JANUARY, over_none=0.05)
    assert versions.register(installation, JANUARY).version == 1
    assert aliases(installation) == {"challenger": 1}
    refreshed = versions.required_version(installation, CHALLENGER)
    assert json.loads(refreshed.tags["prefix over none.ndcg_at_500"]) == dataclasses.asdict(figure(0.05, 0.1))


def test_loaded_model_ranks_as_the_trained_one(installation, monkeypatch):
    ranker = trained(installation, JANUARY)
    versions.register(installation, JANUARY)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = versions.load(installation, CHALLENGER)
    sums = np.arange(DIMENSIONS, dtype=np.int32) * 1000
    kind = dataclasses.asdict(KIND)
    users = pd.DataFrame(
        [
            {"item_ids": ["item 3", "not in the catalogue", "item 5"], "vector_sum": sums, "event_count": 2, **kind},
            {"item_ids": [f"item {row}" for row in range(12)], "vector_sum": [], "event_count": 0, **kind},
            {"item_ids": [], "vector_sum": sums, "event_count": 2, **kind},
        ]
    ).astype({"event_count": "int32", "lag_days": "int32", "window_days": "int32"})
    ranked = model.predict(users, params={"k": 7})
    lte = torch.from_numpy(to_vector(sums[None], np.array([2]))).expand(3, 1, -1)
    batch = Batch(
        items=torch.tensor([[3, 5, 0, 0, 0], [7, 8, 9, 10, 11], [0, 0, 0, 0, 0]]),
        lengths=torch.tensor([2, 5, 0]),
        lte=lte,
        has_lte=torch.tensor([[True], [False], [True]]),
    )
    expected = ranker.scores(batch).topk(7)
    assert ranked["item_ids"].tolist() == [[f"item {row}" for row in rows] for rows in expected.indices.tolist()]
    np.testing.assert_allclose(np.stack(ranked["scores"]), expected.values, rtol=1e-4, atol=1e-5)


def test_a_model_that_reads_more_is_served_by_a_wider_signature(installation):
    """A model with two representations, times, popularity and a memory ranks the same when loaded from the registry."""
    options = {"representations": 2, "time_features": True, "popularity_bias": True, "long_memory": "linear_attention"}
    kind = dataclasses.replace(KIND, representation="uniform+recency")
    ranker = trained(installation, JANUARY, kind=kind, **options)
    versions.register(installation, JANUARY)
    sums, other = np.arange(DIMENSIONS) * 1000, np.arange(DIMENSIONS)[::-1] * 1000
    times = list(range(0, 700 * 60, 100 * 60))  # every 100 minutes; the query is 350 minutes after the last
    user = {
        "item_ids": [f"item {row}" for row in range(7)], "vector_sum": sums, "event_count": 2,
        **dataclasses.asdict(KIND), "vector_sum_recency": other, "event_count_recency": 4,
        "event_times": times, "query_time": times[-1] + 350 * 60,
    }  # fmt: skip
    ranked = versions.load(installation, CHALLENGER).predict(pd.DataFrame([user]), params={"k": 5})
    lte = [to_vector(vector[None], np.array([count])) for vector, count in ((sums, 2), (other, 4))]
    newest = ranker.config.max_events
    batch = Batch(
        items=torch.arange(7 - newest, 7)[None],
        lengths=torch.tensor([newest]),
        lte=torch.from_numpy(np.stack(lte, axis=1)),
        has_lte=torch.ones(1, 2, dtype=torch.bool),
        gaps=torch.tensor([[6] * (newest - 1) + [8]]),
        older=torch.arange(7 - newest)[None],
        older_lengths=torch.tensor([7 - newest]),
    )
    expected = ranker.scores(batch).topk(5)
    assert ranked["item_ids"].tolist() == [[f"item {row}" for row in expected.indices[0].tolist()]]
    np.testing.assert_allclose(np.stack(ranked["scores"]), expected.values, rtol=1e-4, atol=1e-5)


def test_a_model_of_a_leaking_window_is_not_registered(installation):
    trained(installation, JANUARY, kind=dataclasses.replace(KIND, representation="uniform+leaking"), representations=2)
    with pytest.raises(LTEError, match="reads representation leaking, which is never published: a window without lag"):
        versions.register(installation, JANUARY)


def test_a_champion_is_found_and_its_files_rank_as_the_one_that_is_served(installation, tmp_path):
    """Scores are equal bit for bit for the same users in the same order, and no code from the registry runs."""
    assert version_with(installation, CHAMPION) is None
    trained(installation, JANUARY)
    versions.register(installation, JANUARY)
    assert version_with(installation, CHAMPION) is None
    gate.gate(installation, "1")
    promotion.promote(installation, "1", None)
    version = version_with(installation, CHAMPION)
    for set_uri in (mlflow.set_tracking_uri, mlflow.set_registry_uri):
        set_uri(f"sqlite:///{tmp_path}/elsewhere.db")  # a reader doesn't depend on the process' tracking URI
    recommender = Recommender(load_ranker(versions.fetch(installation, version, tmp_path / "fetched")))
    runs.configure(installation)
    served = versions.load(installation, CHAMPION)
    random = np.random.default_rng(0)
    users = pd.DataFrame(
        {
            "item_ids": [[f"item {row}" for row in random.integers(ITEMS + 1, size=length)] for length in range(9)],
            "vector_sum": [random.integers(-GRID // 4, GRID // 4, DIMENSIONS) for _ in range(9)],
            "event_count": [number % 3 for number in range(9)],
            **{field: [value] * 9 for field, value in dataclasses.asdict(KIND).items()},
        }
    )
    best = recommender.best(recommender.read(as_rows(users, recommender.ranker)), 7)
    ranked = served.predict(users, params={"k": 7})
    assert ranked["item_ids"].tolist() == best.item_ids.to_pylist()
    assert ranked["scores"].tolist() == best.scores.to_pylist()


def test_files_that_are_gone_are_named(installation, tmp_path):
    trained(installation, JANUARY)
    version = versions.register(installation, JANUARY)
    for file in (tmp_path / "artifacts").rglob("MLmodel"):
        file.unlink()
    with pytest.raises(LTEError, match=r"the files of .* version 1 can't be had from MLflow at sqlite:"):
        versions.fetch(installation, version, tmp_path / "fetched")


def test_logged_model_holds_no_pickle(installation, tmp_path):
    trained(installation, JANUARY)
    versions.register(installation, JANUARY)
    folder = mlflow.artifacts.download_artifacts(
        f"models:/{installation.mlflow.model_name}@challenger", dst_path=str(tmp_path / "downloaded")
    )
    files = {path.name for path in (tmp_path / "downloaded").rglob("*") if path.is_file()}
    assert {"MLmodel", "pyfunc.py", "model.safetensors", "model.json", "input_example.json"} <= files
    assert not {name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".pyc"))}
    assert mlflow.models.Model.load(folder).flavors["python_function"]["loader_module"].endswith("code_model")


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch '{self.proof}'",)


def plant(settings, tampered, kind, proof):
    """Registers a model that writes `proof` if its code runs on loading; any writer of the registry could do that."""
    version = versions.required_version(settings, CHALLENGER)
    mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}", dst_path=str(tampered))
    described = tampered / "MLmodel"
    code = f"import pathlib; pathlib.Path({str(proof)!r}).touch()\n"
    match kind:
        case "pickled model":
            (tampered / "python_model.pkl").write_bytes(pickle.dumps(Trap(proof)))
            text = re.sub("model_code_path: .*", "python_model: python_model.pkl", described.read_text())
            described.write_text(text.replace("mlflow.pyfunc.loaders.code_model", "mlflow.pyfunc.model"))
        case "pickle for weights":
            for file in tampered.rglob("model.safetensors"):
                file.write_bytes(pickle.dumps(Trap(proof)))
        case "code of the model":
            (tampered / "pyfunc.py").write_text(code + (tampered / "pyfunc.py").read_text())
        case "code beside it":
            for file in (tampered / "code").rglob("*.py"):
                file.write_text(code + file.read_text())
        case "loader of its own":
            (tampered / "code" / "loader.py").write_text(code + "def _load_pyfunc(path): pass\n")
            described.write_text(
                described.read_text().replace(
                    "loader_module: mlflow.pyfunc.loaders.code_model", "loader_module: loader"
                )
            )
        case "ranker elsewhere":
            described.write_text(re.sub(r"(?m)^(\s+path: )artifacts/.*$", r"\1../../elsewhere", described.read_text()))
        case "YAML that is code":
            described.write_text(f"x: !!python/object/apply:os.system [\"touch '{proof}'\"]\n" + described.read_text())
    client = mlflow.MlflowClient()
    return client.create_model_version(version.name, str(tampered), tags=version.tags)


PLANTED = {
    "pickled model": "is not what lte_model.registry.versions registers: it holds python_model.pkl, "
    "and no pickle is ever loaded",
    "pickle for weights": "header",
    "loader of its own": None,
    "code of the model": None,
    "code beside it": None,
    "ranker elsewhere": "it names no directory ranker of its own",
    "YAML that is code": "python/object/apply",
}
"""{what is planted: the error that refuses it}; None if the model ranks, with our code instead of the planted one."""


@pytest.mark.parametrize("kind", PLANTED)
def test_nothing_of_a_registered_model_is_run(registered, tmp_path, kind):
    proof = tmp_path / "proof"
    version = plant(registered, tmp_path / "tampered", kind, proof)
    path = list(sys.path)
    if PLANTED[kind] is None:
        model = versions.load_version(registered, version)
        assert len(model.predict(model.input_example)) == 2
    else:
        with pytest.raises(Exception, match=PLANTED[kind]):
            versions.load_version(registered, version)
        found = gate.gate(registered, str(version.version))
        assert not next(check for check in found.checks if check.rule == "loads from the registry").holds
    assert not proof.exists()
    assert sys.path == path
    if kind == "pickled model":
        pickle.loads((tmp_path / "tampered" / "python_model.pkl").read_bytes())
        assert proof.exists(), "the trap would not have caught anybody"


def test_missing_parts_are_named(installation):
    with pytest.raises(LTEError, match=r"has no challenger in sqlite:.*; run .* register --date D first"):
        versions.load(installation, CHALLENGER)
    with pytest.raises(LTEError, match=r"has no version 3; .* status lists those that there are"):
        versions.version_of(installation, "3")
    assert "no version yet" in versions.status(installation)[0]
    with pytest.raises(LTEError, match="the training of 2026-01-01 has no evaluation"):
        versions.register(installation, JANUARY)
    trained(installation, JANUARY)
    runs.find_or_create_run(installation, JANUARY, "prefix", anew=True)
    with pytest.raises(
        LTEError, match=r"the newest training is run .*lte_model.evaluation.evaluate --date 2026-01-01 again"
    ):
        versions.register(installation, JANUARY)


def test_command_line_names_the_version(installation, tmp_path, monkeypatch, capsys):
    trained(installation, JANUARY)
    file = settings_file(installation, tmp_path)
    for command in (["register", "--date", "2026-01-01"], ["status"]):
        monkeypatch.setattr(sys, "argv", ["registry", *command, "--settings", str(file)])
        versions.main()
        (line,) = capsys.readouterr().out.splitlines()
        assert f"{installation.mlflow.model_name} version 1" in line

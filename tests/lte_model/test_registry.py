"""Registering, checking and promoting, on a real MLflow that keeps its records in SQLite."""

import dataclasses
import datetime
import json
import sys

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lte_model import registry, tracking, verdict
from lte_model.basis import GRID, to_vector
from lte_model.errors import LTEError
from lte_model.model import Batch, LTEKind, Ranker, RankerConfig, load_ranker, save_ranker
from lte_model.pyfunc import as_rows
from lte_model.ranking import Recommender
from lte_model.settings import MLflow, Settings
from lte_model.training import MODEL_DIRECTORY, side_directory

JANUARY, FEBRUARY = datetime.date(2026, 1, 1), datetime.date(2026, 2, 1)
KIND = LTEKind("3f2ac41b907d", "uniform", 30, 365)
ITEMS, DIMENSIONS = 20, 8


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """One SQLite file for all tests: creating MLflow's tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def settings(tmp_path, database, request):
    """An installation of its own: experiment and model are named after the test."""
    return Settings(
        home=str(tmp_path),
        warehouse=str(tmp_path / "warehouse"),
        checkpoints=str(tmp_path / "checkpoints"),
        reports=str(tmp_path / "reports"),
        mlflow=MLflow(
            tracking_uri=database,
            artifacts=str(tmp_path / "artifacts"),
            experiment=request.node.name,
            model_name=request.node.name.replace("[", "-").replace("]", ""),
        ),
    )


def figure(value, spread):
    return {"value": value, "low": value - spread, "high": value + spread}


def trained(settings, date, seed=0, over_none=0.2, over_popularity=0.3, kind=KIND, **options):
    """A prefix model with random weights and its evaluation, as training and evaluation leave them."""
    torch.manual_seed(seed)
    content = torch.nn.functional.normalize(torch.randn(ITEMS, DIMENSIONS), dim=1)
    content = (content * GRID).round() / GRID
    config = RankerConfig(items=ITEMS, dimensions=DIMENSIONS, max_tokens=6, width=16, heads=2, **options)
    ranker = Ranker(config, kind, [f"item {row}" for row in range(ITEMS)], content).eval()
    if config.popularity_bias:
        torch.nn.init.normal_(ranker.popularity_scale)
        ranker.popularity.normal_()
    save_ranker(ranker, side_directory(settings, date, "prefix") / MODEL_DIRECTORY)
    metrics = {name: figure(0.15, 0.02) for name in ("ndcg@10", "ndcg@500", "recall@500")}
    evaluation = {
        "training_date": date.isoformat(),
        **dataclasses.asdict(kind),
        "test_users": 1045,
        "sides": {
            "prefix": {"run_id": tracking.find_or_create_run(settings, date, "prefix"), "metrics": metrics},
            **{side: {"metrics": metrics} for side in ("none", "popularity_all", "popularity_30d", "popularity_7d")},
        },
        "uplift": {
            verdict.OVER_NONE: {"ndcg@500": figure(over_none, 0.1)},
            verdict.OVER_POPULARITY: {"ndcg@500": figure(over_popularity, 0.1)},
        },
        "tables": {"training_set": {"version": 6}, "events": {"version": 41}},
    }
    path = verdict.evaluation_path(settings, date)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evaluation), encoding="utf-8")
    return ranker


def publish(settings, kind, date=FEBRUARY):
    """One row of `lte_live`, of 1 February unless `date` says otherwise."""
    row = {"user_id": "u", "snapshot_date": date} | dataclasses.asdict(kind)
    pl.DataFrame([row]).write_delta(settings.table_path("lte_live"), mode="append")


def aliases(settings):
    named = MlflowClient().get_registered_model(settings.mlflow.model_name).aliases
    return {alias: int(version) for alias, version in named.items()}


def test_registered_version_says_what_it_is(settings):
    trained(settings, JANUARY)
    version = registry.register(settings, JANUARY)
    assert aliases(settings) == {"challenger": 1}
    wanted = {
        "training_date": "2026-01-01", "basis_id": KIND.basis_id, "representation": "uniform", "lag_days": "30",
        "window_days": "365", "delta_version.training_set": "6", "delta_version.events": "41",
    }  # fmt: skip
    assert wanted.items() <= version.tags.items()
    assert json.loads(version.tags["prefix.recall_at_500"]) == figure(0.15, 0.02)
    assert json.loads(version.tags["prefix over none.ndcg_at_500"]) == figure(0.2, 0.1)
    assert version.run_id == tracking.find_or_create_run(settings, JANUARY, "prefix")


def test_the_same_model_is_registered_once_and_another_anew(settings):
    trained(settings, JANUARY)
    assert [registry.register(settings, JANUARY).version for _ in range(2)] == [1, 1]
    trained(settings, JANUARY, seed=1)
    assert registry.register(settings, JANUARY).version == 2
    trained(settings, JANUARY, over_none=0.05)
    assert registry.register(settings, JANUARY).version == 1
    assert aliases(settings) == {"challenger": 1}
    assert "+5.0 %" in registry.gate(settings).summary


def test_loaded_model_ranks_as_the_trained_one(settings, monkeypatch):
    ranker = trained(settings, JANUARY)
    registry.register(settings, JANUARY)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = registry.load(settings, registry.CHALLENGER)
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


def test_a_model_that_reads_more_is_served_by_a_wider_signature(settings):
    """Two representations, times, popularity and a memory: from the registry, it ranks as the model itself does."""
    options = {"representations": 2, "time_features": True, "popularity_bias": True, "long_memory": "linear_attention"}
    kind = dataclasses.replace(KIND, representation="uniform+recency")
    ranker = trained(settings, JANUARY, kind=kind, **options)
    registry.register(settings, JANUARY)
    sums, other = np.arange(DIMENSIONS) * 1000, np.arange(DIMENSIONS)[::-1] * 1000
    times = list(range(0, 700 * 60, 100 * 60))  # every 100 minutes; the query is 350 minutes after the last
    user = {
        "item_ids": [f"item {row}" for row in range(7)], "vector_sum": sums, "event_count": 2,
        **dataclasses.asdict(KIND), "vector_sum_recency": other, "event_count_recency": 4,
        "event_times": times, "query_time": times[-1] + 350 * 60,
    }  # fmt: skip
    ranked = registry.load(settings, registry.CHALLENGER).predict(pd.DataFrame([user]), params={"k": 5})
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


def test_a_model_of_two_representations_needs_both_live(settings):
    kind = dataclasses.replace(KIND, representation="uniform+recency")
    trained(settings, JANUARY, kind=kind, representations=2)
    registry.register(settings, JANUARY)
    publish(settings, KIND)
    with pytest.raises(LTEError, match="reads the live LTEs: .*representation uniform, not recency"):
        registry.gate(settings).require()
    publish(settings, dataclasses.replace(KIND, representation="recency"))
    registry.gate(settings).require()


def test_a_representation_without_a_newer_row_is_live_all_the_same(settings):
    """A row that a later publication finds unchanged keeps its date."""
    kind = dataclasses.replace(KIND, representation="uniform+recency")
    trained(settings, JANUARY, kind=kind, representations=2)
    registry.register(settings, JANUARY)
    publish(settings, KIND)
    publish(settings, kind.of("recency"), FEBRUARY + datetime.timedelta(days=1))
    registry.gate(settings).require()


def test_a_model_of_a_leaking_window_is_not_registered(settings):
    trained(settings, JANUARY, kind=dataclasses.replace(KIND, representation="uniform+leaking"), representations=2)
    with pytest.raises(LTEError, match="reads representation leaking, which is never published: a window without lag"):
        registry.register(settings, JANUARY)


def test_a_champion_is_found_and_its_files_rank_as_the_one_that_is_served(settings, tmp_path):
    """Bit for bit, for the same users in the same order; and none of the registry's code runs."""
    assert registry.find(settings, registry.CHAMPION) is None
    trained(settings, JANUARY)
    registry.register(settings, JANUARY)
    assert registry.find(settings, registry.CHAMPION) is None
    registry.gate(settings)
    registry.promote(settings)
    version = registry.find(settings, registry.CHAMPION)
    recommender = Recommender(load_ranker(registry.fetch(settings, version, tmp_path / "fetched")))
    served = registry.load(settings, registry.CHAMPION)
    random = np.random.default_rng(0)
    users = pd.DataFrame(
        {
            "item_ids": [[f"item {row}" for row in random.integers(ITEMS + 1, size=length)] for length in range(9)],
            "vector_sum": [random.integers(-GRID, GRID, DIMENSIONS) for _ in range(9)],
            "event_count": [number % 3 for number in range(9)],
            **{field: [value] * 9 for field, value in dataclasses.asdict(KIND).items()},
        }
    )
    best = recommender.best(recommender.read(as_rows(users, recommender.ranker)), 7)
    ranked = served.predict(users, params={"k": 7})
    assert ranked["item_ids"].tolist() == best.item_ids.to_pylist()
    assert ranked["scores"].tolist() == best.scores.to_pylist()


def test_files_that_are_gone_are_named(settings, tmp_path):
    trained(settings, JANUARY)
    version = registry.register(settings, JANUARY)
    for file in (tmp_path / "artifacts").rglob("MLmodel"):
        file.unlink()
    with pytest.raises(LTEError, match="the files of .* version 1 can't be had from MLflow at sqlite:"):
        registry.fetch(settings, version, tmp_path / "fetched")


def test_logged_model_holds_no_pickle(settings, tmp_path):
    trained(settings, JANUARY)
    registry.register(settings, JANUARY)
    folder = mlflow.artifacts.download_artifacts(
        f"models:/{settings.mlflow.model_name}@challenger", dst_path=str(tmp_path / "downloaded")
    )
    files = {path.name for path in (tmp_path / "downloaded").rglob("*") if path.is_file()}
    assert {"MLmodel", "pyfunc.py", "model.safetensors", "model.json", "input_example.json"} <= files
    assert not {name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".pyc"))}
    assert mlflow.models.Model.load(folder).flavors["python_function"]["loader_module"].endswith("code_model")


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
def served(tmp_path_factory, database):
    folder = tmp_path_factory.mktemp("served")
    options = MLflow(tracking_uri=database, artifacts=str(folder / "a"), experiment="served", model_name="served")
    settings = Settings(checkpoints=str(folder / "checkpoints"), reports=str(folder / "reports"), mlflow=options)
    trained(settings, JANUARY)
    registry.register(settings, JANUARY)
    return registry.load(settings, registry.CHALLENGER)


def test_gate_passes_a_good_challenger(settings):
    trained(settings, JANUARY)
    registry.register(settings, JANUARY)
    publish(settings, dataclasses.replace(KIND, basis_id="older"))
    publish(settings, KIND)
    gate = registry.gate(settings)
    gate.require()
    assert [str(check)[:2] for check in gate.checks] == ["ok"] * 4
    assert "\n" not in gate.summary
    for words in ("version 1**", "0.1500 [0.1300, 0.1700]", "**+20.0 % [+10.0 %, +30.0 %]**", "no champion yet"):
        assert words in gate.summary
    assert gate.summary.endswith(f"report: `{verdict.report_path(settings, JANUARY)}`")


@pytest.mark.parametrize(
    ("figures", "rule"),
    [
        ({"over_none": -0.2}, r"not below the model without LTE: NDCG@500 −20.0 % \[−30.0 %, −10.0 %\]"),
        ({"over_popularity": -0.11}, r"not below the popularity of 30 days: NDCG@500 −11.0 % \[−21.0 %, −1.0 %\]"),
        ({"kind": dataclasses.replace(KIND, basis_id="0ld")}, "reads the live LTEs: .* basis_id 3f2ac41b907d, not 0ld"),
        ({"kind": dataclasses.replace(KIND, lag_days=14)}, "reads the live LTEs: .* lag_days 30, not 14"),
    ],
    ids=["none", "popularity", "basis", "lag"],
)
def test_gate_names_the_broken_rule(settings, figures, rule):
    trained(settings, JANUARY, **figures)
    registry.register(settings, JANUARY)
    publish(settings, KIND)
    with pytest.raises(LTEError, match=f"version 1 must not be promoted: {rule}"):
        registry.gate(settings).require()


def test_gate_lets_an_undecided_challenger_pass(settings):
    trained(settings, JANUARY, over_none=-0.05)
    registry.register(settings, JANUARY)
    registry.gate(settings).require()


def test_gate_fails_a_model_whose_files_are_gone(settings, tmp_path):
    trained(settings, JANUARY)
    registry.register(settings, JANUARY)
    (weights,) = (tmp_path / "artifacts").rglob("model.safetensors")
    weights.unlink()
    with pytest.raises(LTEError, match="loads from the registry: LTEError: there is no trained model"):
        registry.gate(settings).require()


def test_promotion_moves_the_aliases(settings):
    trained(settings, JANUARY)
    registry.register(settings, JANUARY)
    registry.gate(settings)
    assert registry.promote(settings).tags["promoted_from"] == "no champion"
    trained(settings, FEBRUARY, seed=1)
    registry.register(settings, FEBRUARY)
    assert aliases(settings) == {"champion": 1, "challenger": 2}
    assert "would replace version 1 (training of 2026-01-01" in registry.gate(settings).summary
    promoted = registry.promote(settings)
    assert promoted.tags["promoted_from"] == "version 1"
    assert datetime.datetime.fromisoformat(promoted.tags["promoted_at"]).tzinfo is not None
    assert registry.promote(settings).tags == promoted.tags
    assert aliases(settings) == {"champion": 2, "challenger": 2, "previous": 1}
    assert [line.rpartition("; ")[2] for line in registry.status(settings)] == ["previous", "challenger, champion"]


def test_promotion_that_was_killed_is_done_by_the_next(settings, monkeypatch):
    for number, date in enumerate((JANUARY, FEBRUARY)):
        trained(settings, date, seed=number)
        registry.register(settings, date)
        registry.gate(settings)
        if date == JANUARY:
            registry.promote(settings)
    with monkeypatch.context() as killed:
        killed.setattr(MlflowClient, "set_model_version_tag", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            registry.promote(settings)
    assert aliases(settings)["champion"] == 1
    registry.promote(settings)
    assert aliases(settings) == {"champion": 2, "challenger": 2, "previous": 1}


def test_a_challenger_that_came_after_the_gate_is_not_promoted(settings):
    trained(settings, JANUARY)
    registry.register(settings, JANUARY)
    registry.gate(settings)
    trained(settings, FEBRUARY, seed=1)
    registry.register(settings, FEBRUARY)
    with pytest.raises(LTEError, match="version 2 is challenger, but its gate says: not asked; run lte_promotion"):
        registry.promote(settings)
    assert aliases(settings) == {"challenger": 2}


def test_missing_parts_are_named(settings):
    for command in (registry.gate, registry.promote):
        with pytest.raises(LTEError, match="has no challenger in sqlite:.*; run .* register --date D first"):
            command(settings)
    assert "no version yet" in registry.status(settings)[0]
    with pytest.raises(LTEError, match="the training of 2026-01-01 has no evaluation"):
        registry.register(settings, JANUARY)
    trained(settings, JANUARY)
    tracking.find_or_create_run(settings, JANUARY, "prefix", anew=True)
    with pytest.raises(LTEError, match="the newest training is run .*lte_model.evaluation --date 2026-01-01 again"):
        registry.register(settings, JANUARY)


def test_command_line_ends_with_the_summary(settings, tmp_path, monkeypatch, capsys):
    trained(settings, JANUARY)
    file = tmp_path / "lte.toml"
    options = settings.mlflow
    file.write_text(
        f'[mlflow]\ntracking_uri = "{options.tracking_uri}"\nexperiment = "{options.experiment}"\n'
        f'artifacts = "artifacts"\nmodel_name = "{options.model_name}"\n'
    )
    for command in (["register", "--date", "2026-01-01"], ["gate"], ["promote"], ["status"]):
        monkeypatch.setattr(sys, "argv", ["registry", *command, "--settings", str(file)])
        registry.main()
        lines = capsys.readouterr().out.splitlines()
        if command == ["gate"]:
            assert len(lines) == 5
            assert lines[-1].startswith(f"**{options.model_name} version 1**")
        else:
            assert len(lines) == 1
            assert f"{options.model_name} version 1" in lines[0]

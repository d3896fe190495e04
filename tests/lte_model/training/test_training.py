import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from lte_model.errors import LTEError
from lte_model.ranker.cases import target_counts_of
from lte_model.ranker.saved import WEIGHTS_FILE, load_ranker
from lte_model.settings import Settings
from lte_model.tracking.runs import configure, find_runs
from lte_model.training import fit
from lte_model.training import train as training
from lte_model.training.checkpoints import CHECKPOINT_FILE, read_result, side_directory
from lte_model.training.train import train
from lte_model.training.training_set import open_training_set
from tests.lte_model.small_shop import OTHER_REPRESENTATION, REPRESENTATION, TRAINING_DATE, write_table


def with_training(settings: Settings, **options) -> Settings:
    return settings.model_copy(update={"training": settings.training.model_copy(update=options)})


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / WEIGHTS_FILE)


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def uninterrupted(shop, tmp_path_factory) -> Path:
    """The model of an undisturbed training."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    own = shop.model_copy(update={"checkpoints": str(folder)})
    return train(own, TRAINING_DATE, "prefix")


def test_training_learns_and_keeps_the_best_epoch(shop, uninterrupted):
    result = json.loads((uninterrupted.parent / "training.json").read_text())
    losses = [epoch["training_loss"] for epoch in result["curve"]]
    measured = [epoch["validation_ndcg@40"] for epoch in result["curve"]]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1
    assert result["best_epoch"] == 1 + int(np.argmax(measured))
    ranker = load_ranker(uninterrupted)
    assert ranker.kind == open_training_set(shop, TRAINING_DATE).kind


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_weights(trainable_shop, uninterrupted, tmp_path):
    """Sends SIGKILL to the running command, and runs it again."""
    settings_file = tmp_path / "settings.toml"
    settings_file.write_text((Path(trainable_shop.home) / "settings.toml").read_text())
    command = [sys.executable, "-u", "-m", "lte_model.training.train"]
    command += ["--date", str(TRAINING_DATE), "--integration", "prefix", "--settings", str(settings_file)]
    environment = os.environ | {
        "LTE_WAREHOUSE": trainable_shop.warehouse,
        "LTE_CHECKPOINTS": trainable_shop.checkpoints,
        "LTE_MLFLOW__TRACKING_URI": trainable_shop.mlflow.tracking_uri,
        "LTE_MLFLOW__EXPERIMENT": trainable_shop.mlflow.experiment,
        "LTE_MLFLOW__ARTIFACTS": trainable_shop.mlflow.artifacts,
    }
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch 2:"):
                process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (side_directory(trainable_shop, TRAINING_DATE, "prefix") / "model").exists()

    model = train(trainable_shop, TRAINING_DATE, "prefix")
    assert same_weights(model, uninterrupted)
    curve = read_result(trainable_shop, TRAINING_DATE, "prefix")["curve"]
    assert [epoch["epoch"] for epoch in curve] == [1, 2, 3, 4]
    (run,) = runs(trainable_shop, "prefix")  # the second try resumed the first one's run
    assert run.info.status == "FINISHED"
    history = MlflowClient().get_metric_history(run.info.run_id, "training_loss")
    assert {(entry.step, entry.value) for entry in history} == {(e["epoch"], e["training_loss"]) for e in curve}


@pytest.mark.slow
def test_two_processes_train_as_one(trainable_shop, tmp_path, capsys):
    """Without dropout, the curve equals that of one process: each batch and its gradient are the same."""
    # With an odd batch size the processes' shares differ in size.
    settings = with_training(trainable_shop, epochs=2, threads=1, batch_size=31)
    model = settings.model.model_copy(update={"dropout": 0.0, "id_dropout": 0.0})
    one = train(settings.model_copy(update={"model": model}), TRAINING_DATE, "prefix").parent
    assert "1 x 1 threads" in capsys.readouterr().out
    settings_file = tmp_path / "settings.toml"
    settings_file.write_text((Path(trainable_shop.home) / "settings.toml").read_text())
    environment = os.environ | {
        "LTE_MODEL__DROPOUT": "0",
        "LTE_MODEL__ID_DROPOUT": "0",
        "LTE_TRAINING__EPOCHS": "2",
        "LTE_TRAINING__THREADS": "1",
        "LTE_TRAINING__BATCH_SIZE": "31",
        "LTE_WAREHOUSE": trainable_shop.warehouse,
        "LTE_CHECKPOINTS": str(tmp_path / "two"),
        "LTE_MLFLOW__TRACKING_URI": trainable_shop.mlflow.tracking_uri,
        "LTE_MLFLOW__EXPERIMENT": trainable_shop.mlflow.experiment,
        "LTE_MLFLOW__ARTIFACTS": trainable_shop.mlflow.artifacts,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "lte_model.training.train", "--date", str(TRAINING_DATE), "--integration", "prefix"]
    command += ["--settings", str(settings_file)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 x 1 threads" in done.stdout and done.stdout.count("\nepoch 2:") == 1
    folders = (one, tmp_path / "two" / str(TRAINING_DATE) / "prefix")
    curves = [json.loads((folder / "training.json").read_text())["curve"] for folder in folders]
    for of_one, of_two in zip(*curves, strict=True):
        for measure in ("training_loss", "validation_ndcg@40"):
            assert of_two[measure] == pytest.approx(of_one[measure], rel=1e-4)
    ours, theirs = (weights(folder / "model") for folder in folders)
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ("training", {"loss_positions": "last"}),
        ("training", {"predict_from": "earlier_days"}),
        ("training", {"precision": "bfloat16"}),
        ("training", {"exact_items": 10, "sampled_items": 30}),
        ("training", {"exact_items": 10, "sampled_items": 30, "sampling_correction": False}),
        ("model", {"sequence": "newest", "max_tokens": 5}),
        ("model", {"sequence": "newest", "max_tokens": 5, "long_memory": "linear_attention", "memory_events": 20}),
        ("model", {"popularity_bias": True, "time_features": True, "repeat_bias": True}),
        ("model", {"representations": (REPRESENTATION, OTHER_REPRESENTATION), "integration": "late_fusion"}),
    ],
    ids=[
        "last position",
        "by day",
        "bfloat16",
        "sampled",
        "sampled, uncorrected",
        "newest",
        "memory",
        "popularity, time and repeats",
        "two LTEs",
    ],
)
def test_every_way_to_train_learns_and_can_be_repeated(trainable_shop, tmp_path, section, options):
    settings = with_training(trainable_shop, epochs=3)
    settings = settings.model_copy(update={section: getattr(settings, section).model_copy(update=options)})
    integration = options.get("integration", "prefix")
    model = train(settings, TRAINING_DATE, integration)
    losses = [epoch["training_loss"] for epoch in read_result(settings, TRAINING_DATE, integration)["curve"]]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.05
    again = train(settings.model_copy(update={"checkpoints": str(tmp_path / "again")}), TRAINING_DATE, integration)
    assert same_weights(model, again)
    assert load_ranker(model).config.items == 80


@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40), decay=st.floats(0, 0.999))
@hypothesis_settings(max_examples=50, deadline=None)
def test_the_moving_average_is_that_of_the_steps(values, decay):
    module, averaged = (torch.nn.ParameterList([torch.zeros(1)]) for _ in range(2))
    expected = 0.0
    for step, value in enumerate(values):
        module[0].data.fill_(value)
        fit.average(averaged, module, step, decay)
        kept = min(decay, (1 + step) / (10 + step)) if step else 0
        expected = kept * expected + (1 - kept) * value
    assert averaged[0].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_the_averaged_weights_are_measured_and_kept(trainable_shop, averaging):
    model = train(with_training(trainable_shop, epochs=2, averaging=averaging), TRAINING_DATE, "none")
    checkpoint = torch.load(model.parent / CHECKPOINT_FILE, weights_only=True)
    kept, last, best = weights(model), checkpoint["model"], checkpoint["progress"]["best_weights"]
    averaged = checkpoint["averaged"]
    assert all(torch.equal(kept[name], best[name]) for name in kept)
    assert checkpoint["progress"]["best_epoch"] == 2 and all(torch.equal(kept[name], averaged[name]) for name in kept)
    assert all(torch.equal(kept[name], last[name]) for name in kept) == (averaging == 0)


def test_targets_are_counted_for_each_item(shop):
    cases = open_training_set(shop, TRAINING_DATE).cases("train").windows(5)
    expected = np.zeros(80, dtype=int)
    for i in range(len(cases)):
        for item in cases.sequence(i)[-cases.target_counts[i] :]:
            expected[item] += 1
    assert target_counts_of(cases, 80).tolist() == expected.tolist()


def test_a_side_may_have_a_name_of_its_own(trainable_shop):
    model = train(with_training(trainable_shop, epochs=1), TRAINING_DATE, "none", side="none seed 7")
    assert model.parent.name == "none seed 7" and load_ranker(model).config.integration == "none"
    assert len(runs(trainable_shop, "none seed 7")) == 1


def test_a_finished_training_is_not_done_again(trainable_shop, capsys):
    trainable_shop = with_training(trainable_shop, epochs=1)
    model = train(trainable_shop, TRAINING_DATE, "none")
    written = {file: file.stat().st_mtime_ns for file in model.parent.rglob("*")}
    capsys.readouterr()
    assert train(trainable_shop, TRAINING_DATE, "none") == model
    assert "is done already" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in model.parent.rglob("*")} == written


def test_other_settings_start_anew_and_say_so(trainable_shop, capsys):
    train(with_training(trainable_shop, epochs=1), TRAINING_DATE, "none")
    capsys.readouterr()
    train(with_training(trainable_shop, epochs=1, learning_rate=0.002), TRAINING_DATE, "none")
    printed = capsys.readouterr().out
    assert "starting anew" in printed and "belongs to other settings or other rows" in printed
    # The record of the first training is not overwritten.
    assert [run.data.params["learning_rate"] for run in runs(trainable_shop, "none")] == ["0.005", "0.002"]


def test_a_checkpoint_that_cannot_be_read_starts_anew(trainable_shop, capsys):
    directory = side_directory(trainable_shop, TRAINING_DATE, "none")
    directory.mkdir(parents=True)
    (directory / CHECKPOINT_FILE).write_bytes(b"cut off")
    train(with_training(trainable_shop, epochs=1), TRAINING_DATE, "none")
    assert "can't be read" in capsys.readouterr().out


def test_a_refit_learns_from_the_days_before_the_test_too(smaller_shop, tmp_path, capsys):
    def trained(name: str, **options) -> Path:
        settings = with_training(smaller_shop, epochs=2, **options)
        return train(settings.model_copy(update={"checkpoints": str(tmp_path)}), TRAINING_DATE, "prefix", side=name)

    plain, refitted = trained("plain"), trained("refitted", refit=True)
    curves = [json.loads((model.parent / "training.json").read_text()) for model in (plain, refitted)]
    assert curves[0]["best_epoch"] == curves[1]["best_epoch"]  # validation chose the same epoch
    measured = [[(epoch["epoch"], epoch["training_loss"]) for epoch in of["curve"]] for of in curves]
    assert measured[0] == measured[1]
    epochs = curves[1]["best_epoch"]
    printed = capsys.readouterr().out
    assert printed.count("refit, epoch ") == epochs and f"refit, epoch {epochs} of {epochs}: loss" in printed
    assert not same_weights(refitted, plain)

    assert same_weights(trained("again", refit=True), refitted)
    written = (refitted / WEIGHTS_FILE).stat().st_mtime_ns
    capsys.readouterr()
    assert trained("refitted", refit=True) == refitted
    assert "is done already" in capsys.readouterr().out and (refitted / WEIGHTS_FILE).stat().st_mtime_ns == written


def test_a_refit_reads_the_targets_of_the_split_refit(own_shop):
    """Another target in that split changes the refitted weights, but not validation's choice."""
    own_shop = with_training(own_shop, epochs=1, refit=True)
    before = train(own_shop, TRAINING_DATE, "prefix")
    was, loss = weights(before), read_result(own_shop, TRAINING_DATE, "prefix")["curve"][0]["training_loss"]
    rows = pl.read_delta(own_shop.table_path("training_set"))
    reversed_items = pl.col("item_ids").list.reverse()
    of_refit = pl.when(pl.col("split") == "refit").then(reversed_items).otherwise(pl.col("item_ids"))
    write_table(own_shop, "training_set", rows.with_columns(of_refit.alias("item_ids")))
    after = weights(train(own_shop, TRAINING_DATE, "prefix"))
    assert any(not torch.equal(was[name], after[name]) for name in was)
    assert read_result(own_shop, TRAINING_DATE, "prefix")["curve"][0]["training_loss"] == loss


def test_the_seed_decides_the_weights(trainable_shop, uninterrupted):
    other = train(with_training(trainable_shop, seed=1), TRAINING_DATE, "prefix")
    assert not same_weights(other, uninterrupted)  # the same seed gives equal weights, see above


def test_training_stops_when_nothing_improves(trainable_shop):
    train(with_training(trainable_shop, epochs=20, patience=2, learning_rate=1e-12), TRAINING_DATE, "none")
    result = read_result(trainable_shop, TRAINING_DATE, "none")
    assert len(result["curve"]) == result["best_epoch"] + 2 < 20


def test_a_loss_that_is_no_number_stops_and_names_the_batch(trainable_shop):
    with pytest.raises(
        LTEError, match=r"the loss is (nan|inf) in epoch 1, batch \d+ of \d+ \(users u\d+, .*learning_rate"
    ):
        train(with_training(trainable_shop, learning_rate=1e30), TRAINING_DATE, "none")
    (run,) = runs(trainable_shop, "none")
    assert run.info.status == "FAILED"


def test_a_cuda_device_that_is_not_there_is_named(trainable_shop, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LTEError, match=r"training.device is cuda, but torch finds no CUDA device"):
        train(with_training(trainable_shop, device="cuda"), TRAINING_DATE, "none")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_repeats_itself(trainable_shop, tmp_path):
    on_cuda = with_training(trainable_shop, device="cuda", epochs=2)
    first = train(on_cuda, TRAINING_DATE, "prefix")
    again = train(on_cuda.model_copy(update={"checkpoints": str(tmp_path / "again")}), TRAINING_DATE, "prefix")
    assert same_weights(first, again)


def test_mlflow_holds_parameters_metrics_inputs_and_kind(trainable_shop):
    train(with_training(trainable_shop, epochs=1), TRAINING_DATE, "prefix")
    (run,) = runs(trainable_shop, "prefix")
    training_set = open_training_set(trainable_shop, TRAINING_DATE)
    assert run.data.params["width"] == "16" and run.data.params["batch_size"] == "32"
    assert {"training_loss", "validation_ndcg_at_40", "targets_per_second", "best_epoch"} <= set(run.data.metrics)
    for tag, value in (("basis_id", training_set.kind.basis_id), ("integration", "prefix"), ("lag_days", "20")):
        assert run.data.tags[tag] == value
    inputs = {entry.dataset.name: entry.dataset for entry in run.inputs.dataset_inputs}
    for table, version in training_set.tables.versions.items():
        assert json.loads(inputs[table].source)["path"] == trainable_shop.table_path(table)
        assert inputs[table].digest == f"v{version}"
    (parent,) = runs(trainable_shop, "training")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == "FINISHED"


def test_the_command_refuses_in_one_line(trainable_shop, monkeypatch, capsys):
    monkeypatch.setattr("lte_model.command_line.load_settings", lambda path: trainable_shop)
    monkeypatch.setattr(sys, "argv", ["training", "--date", "2024-10-01", "--integration", "prefix"])
    with pytest.raises(SystemExit) as left:
        training.run(training.main)
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: training_set has no rows of 2024-10-01; run jobs.build_training_set --date 2024-10-01"
    ]


def runs(settings: Settings, side: str) -> list[mlflow.entities.Run]:
    return find_runs(configure(settings).experiment_id, TRAINING_DATE, side)


@pytest.mark.parametrize(("predict_from", "times"), [("earlier_days", 10), ("earlier_events", 1)])
def test_the_repeat_bias_learns_faster_by_day_alone(trainable_shop, predict_from, times):
    """AdamW's first step has the size of the learning rate, whatever the gradient: it shows each weight's rate."""
    options = {"sequence": "newest", "repeat_bias": True}
    shop = trainable_shop.model_copy(update={"model": trainable_shop.model.model_copy(update=options)})
    shop = with_training(shop, predict_from=predict_from, epochs=1, batch_size=10_000, averaging=0.0)
    repeats = load_ranker(train(shop, TRAINING_DATE, "none")).repeats
    assert repeats.abs().max().item() == pytest.approx(times * shop.training.learning_rate, rel=1e-3)

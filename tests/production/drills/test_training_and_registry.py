"""A training is killed or MLflow goes down: the weights are equal, with one run, one version and no half promotion."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lte_model.ranker.saved import WEIGHTS_FILE
from lte_model.registry import gate, promotion
from lte_model.registry.versions import register
from lte_model.tracking import runs
from lte_model.tracking.lineage import CHALLENGER, CHAMPION, ON_RECORD, PREVIOUS
from lte_model.training.checkpoints import CHECKPOINT_FILE, MODEL_DIRECTORY, read_result, side_directory
from lte_model.training.train import train
from tests.lte_model.registered import FEBRUARY, JANUARY, aliases, trained
from tests.lte_model.small_shop import TRAINING_DATE
from tests.lte_model.training.test_training import same_weights
from tests.production.drills.unreliable import Fault, resize, small_disk
from tests.repository import REPOSITORY

pytestmark = [pytest.mark.production, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def undisturbed(shop, tmp_path_factory) -> Path:
    """The model of an undisturbed training."""
    own = shop.model_copy(update={"checkpoints": str(tmp_path_factory.mktemp("undisturbed"))})
    return train(own, TRAINING_DATE, "prefix")


def start_training(settings, **environment):
    """Starts the command that Airflow runs; returns its process."""
    given = {
        "LTE_WAREHOUSE": settings.warehouse,
        "LTE_CHECKPOINTS": settings.checkpoints,
        "LTE_MLFLOW__TRACKING_URI": settings.mlflow.tracking_uri,
        "LTE_MLFLOW__EXPERIMENT": settings.mlflow.experiment,
        "LTE_MLFLOW__ARTIFACTS": settings.mlflow.artifacts,
    }
    command = [sys.executable, "-u", "-m", "lte_model.training.train", "--date", str(TRAINING_DATE)]
    command += ["--integration", "prefix", "--settings", str(Path(settings.home) / "settings.toml")]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | given | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def the_run(settings):
    """The training's MLflow run; asserts that all tries share one run."""
    (run,) = runs.find_runs(runs.configure(settings).experiment_id, TRAINING_DATE, "prefix")
    return run


def test_a_training_killed_in_the_middle_of_epochs_ends_in_the_same_weights(trainable_shop, undisturbed, outcome):
    random_instant, kills = random.Random(0), 0
    for epoch in (None, 1, 2, 3):
        with start_training(trainable_shop) as process:
            for line in process.stdout:
                # Kill it within the next epoch, not right after a checkpoint.
                if line.startswith("prefix:") if epoch is None else line.startswith((f"epoch {epoch}:", "going on")):
                    time.sleep(random_instant.uniform(0, 0.1))
                    process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    with start_training(trainable_shop) as process:
        said = process.stdout.read()
    assert process.returncode == 0, said[-2000:]
    model = side_directory(trainable_shop, TRAINING_DATE, "prefix") / MODEL_DIRECTORY
    same = same_weights(model, undisturbed)
    outcome("Training process killed in an epoch", times=kills, lost=int(not same), of="models with other weights")
    assert kills >= 3 and same
    curve = read_result(trainable_shop, TRAINING_DATE, "prefix")["curve"]
    assert [epoch["epoch"] for epoch in curve] == [1, 2, 3, 4]
    assert the_run(trainable_shop).info.status == "FINISHED"


def test_the_disk_of_the_checkpoints_is_full(trainable_shop, undisturbed, tmp_path, outcome):
    full = 0
    with small_disk(tmp_path / "disk", 2**14) as disk:
        settings = trainable_shop.model_copy(update={"checkpoints": str(disk)})
        checkpoint = side_directory(settings, TRAINING_DATE, "prefix") / CHECKPOINT_FILE
        with start_training(settings) as process:
            process.stdout.read()
        full += process.returncode != 0 and not checkpoint.exists()
        resize(disk, 2**19)
        with start_training(settings) as process:
            for line in process.stdout:
                if line.startswith("epoch 1:"):
                    # Leaves space for the checkpoint and half of the next one.
                    resize(disk, checkpoint.stat().st_size * 3 // 2 + 2**14)
        full += process.returncode != 0 and checkpoint.exists()
        resize(disk, 2**24)
        with start_training(settings) as process:
            said = process.stdout.read()
        assert process.returncode == 0 and "going on after epoch" in said, said[-2000:]
        same = same_weights(checkpoint.parent / MODEL_DIRECTORY, undisturbed)
    outcome("Disk full during a training", times=full, lost=int(not same), of="models with other weights")
    assert full == 2 and same


def test_mlflow_goes_down_while_a_model_trains(trainable_shop, undisturbed, trackable, outcome):
    options = {"tracking_uri": trackable.url, "artifacts": "mlflow-artifacts:/"}
    settings = trainable_shop.model_copy(update={"mlflow": trainable_shop.mlflow.model_copy(update=options)})
    ended = []
    for fault in Fault:
        with start_training(settings) as process:
            for line in process.stdout:
                if line.startswith("epoch"):
                    trackable.fail_after(0, fault)
        ended.append(process.returncode)
        trackable.heal()
    with start_training(settings) as process:
        said = process.stdout.read()
    assert process.returncode == 0 and "going on after epoch" in said, said[-2000:]
    same = same_weights(side_directory(settings, TRAINING_DATE, "prefix") / MODEL_DIRECTORY, undisturbed)
    outcome("MLflow down during a training", times=len(ended), lost=int(not same), of="models with other weights")
    assert ended == [1, 1] and same
    assert the_run(settings).info.status == "FINISHED"


@pytest.fixture
def on_server(installation, trackable):
    options = {"tracking_uri": trackable.url, "artifacts": "mlflow-artifacts:/"}
    return installation.model_copy(update={"mlflow": installation.mlflow.model_copy(update=options)})


def requests_of(server, call):
    """The number of requests to MLflow that the call makes without faults."""
    server.fail_after(None)
    call()
    return server.answered


def test_mlflow_goes_down_at_any_request_of_a_promotion(on_server, trackable, outcome):
    """MLflow fails after each possible request, either before or after it handled the request.

    A reader of `champion` finds the old or the new version, a rollback stays possible, and the task's rerun succeeds.
    """
    name = on_server.mlflow.model_name
    for date, seed in ((JANUARY, 0), (FEBRUARY, 1)):
        trained(on_server, date, seed=seed)
        register(on_server, date)
    for number in ("1", "2"):
        gate.gate(on_server, number)
    promotion.promote(on_server, "1", None)
    client = MlflowClient()

    def as_before():
        trackable.heal()
        client.set_registered_model_alias(name, CHAMPION, "1")
        client.delete_registered_model_alias(name, PREVIOUS)
        client.set_registered_model_tag(name, ON_RECORD, "1")

    def promote():
        promotion.promote(on_server, "2", "1")

    requests = requests_of(trackable, promote)
    after = {CHALLENGER: 2, CHAMPION: 2, PREVIOUS: 1}
    assert aliases(on_server) == after and requests > 5
    times, half = 0, 0
    for fault in Fault:
        for answered in range(requests):
            as_before()
            trackable.fail_after(answered, fault)
            with pytest.raises(MlflowException):
                promote()
            trackable.heal()
            times += 1
            left = aliases(on_server)
            half += left.get(CHAMPION) not in (1, 2) or (left[CHAMPION] == 2 and left.get(PREVIOUS) != 1)
            promote()
            assert aliases(on_server) == after, f"{fault}, request {answered}"
            assert promotion.watch(on_server).endswith("version 2 is champion, as on record")
    outcome("MLflow down during a promotion", times=times, lost=half, of="half-promoted models")
    assert half == 0


def test_mlflow_goes_down_at_requests_of_a_registration(on_server, trackable, outcome):
    trained(on_server, JANUARY)
    times, name = 0, on_server.mlflow.model_name
    answered, fault = 0, Fault.REFUSED
    while True:
        trackable.fail_after(answered, fault)
        try:
            register(on_server, JANUARY)
            break
        except Exception as error:  # MLflow's, or its upload library's
            assert not isinstance(error, AssertionError)
        times += 1
        trackable.heal()
        assert len(MlflowClient().search_model_versions(f"name = '{name}'")) <= 1
        answered, fault = (answered, Fault.ANSWER_LOST) if fault is Fault.REFUSED else (answered + 3, Fault.REFUSED)
    trackable.heal()
    versions = MlflowClient().search_model_versions(f"name = '{name}'")
    outcome("MLflow down during a registration", times=times, lost=len(versions) - 1, of="versions too many")
    assert [str(version.version) for version in versions] == ["1"] and aliases(on_server) == {CHALLENGER: 1}
    gate.gate(on_server, "1").require()
    assert (Path(on_server.checkpoints) / str(JANUARY) / "prefix" / MODEL_DIRECTORY / WEIGHTS_FILE).is_file()
    assert times > 4

import datetime
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lte_model.errors import LTEError
from lte_model.tracking import runs

DATE = datetime.date(2024, 12, 1)


def test_a_side_is_found_again_and_is_a_child_of_its_training(trainable_shop):
    with runs.training_run(trainable_shop, DATE, "prefix") as first:
        mlflow.log_param("width", 16)
    with runs.training_run(trainable_shop, DATE, "prefix") as again:
        mlflow.log_param("width", 16)
    with runs.training_run(trainable_shop, DATE, "none") as other:
        pass
    with runs.training_run(trainable_shop, DATE + datetime.timedelta(days=1), "prefix") as next_day:
        pass
    assert first.info.run_id == again.info.run_id
    assert len({first.info.run_id, other.info.run_id, next_day.info.run_id}) == 3
    parents = [run.data.tags["mlflow.parentRunId"] for run in (first, again, other, next_day)]
    assert parents[0] == parents[1] == parents[2] != parents[3]
    assert runs.find_or_create_run(trainable_shop, DATE, "training") == parents[0]


def test_a_run_that_broke_is_failed_and_so_is_its_training(trainable_shop):
    with pytest.raises(ZeroDivisionError), runs.training_run(trainable_shop, DATE, "none") as run:
        raise ZeroDivisionError
    client = MlflowClient()
    parent = client.get_run(run.info.run_id).data.tags["mlflow.parentRunId"]
    assert [client.get_run(run_id).info.status for run_id in (run.info.run_id, parent)] == ["FAILED", "FAILED"]


def test_metrics_go_to_a_run_that_has_ended(trainable_shop):
    with runs.training_run(trainable_shop, DATE, "prefix") as run:
        pass
    before = MlflowClient().get_run(run.info.run_id).info.end_time
    runs.log_metrics(run.info.run_id, {"test_ndcg@500": 0.25})
    after = MlflowClient().get_run(run.info.run_id)
    assert after.data.metrics == {"test_ndcg_at_500": 0.25}
    assert (after.info.end_time, after.info.status) == (before, "FINISHED")


def test_a_deleted_experiment_is_named(trainable_shop):
    MlflowClient(trainable_shop.mlflow.tracking_uri).delete_experiment(runs.configure(trainable_shop).experiment_id)
    with pytest.raises(LTEError, match=f"experiment '{trainable_shop.mlflow.experiment}' .* can't be used"):
        runs.configure(trainable_shop)


def test_trainings_that_start_at_once_name_the_same_tables(trainable_shop):
    """MLflow alone fails here: each training looks for a version of a table, finds none, and adds it."""
    sides, versions = ("prefix", "none", "late_fusion"), range(5)
    runs.find_or_create_run(trainable_shop, DATE, "training")
    start = threading.Barrier(len(sides), timeout=60)

    def name_tables(side: str) -> str:
        with runs.training_run(trainable_shop, DATE, side) as run:
            for version in versions:
                start.wait()
                runs.log_dataset(trainable_shop, "events", version, "training")
        return run.info.run_id

    with ThreadPoolExecutor(len(sides)) as pool:
        for run_id in pool.map(name_tables, sides):
            inputs = MlflowClient().get_run(run_id).inputs.dataset_inputs
            assert {entry.dataset.digest for entry in inputs} == {f"v{version}" for version in versions}


def test_a_server_on_which_another_was_faster_is_asked_again(trainable_shop, monkeypatch):
    log_input, failures = mlflow.log_input, [MlflowException("UNIQUE constraint failed")]

    def refused_once(*arguments, **options):
        if failures:
            raise failures.pop()
        log_input(*arguments, **options)

    monkeypatch.setattr(mlflow, "log_input", refused_once)
    with runs.training_run(trainable_shop, DATE, "prefix") as run:
        runs.log_dataset(trainable_shop, "events", 3, "training")
    (entry,) = MlflowClient().get_run(run.info.run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("events", "v3") and not failures


@pytest.mark.slow
def test_two_processes_that_start_at_once_share_a_new_file(trainable_shop, tmp_path):
    """MLflow alone fails here: both processes create its database tables."""
    settings_file = tmp_path / "settings.toml"
    settings_file.write_text((Path(trainable_shop.home) / "settings.toml").read_text())
    script = (
        "import datetime, sys; from lte_model.tracking import runs; from lte_model.settings import load_settings\n"
        "with runs.training_run(load_settings(sys.argv[1]), datetime.date(2024, 12, 1), sys.argv[2]) as run:\n"
        "    print(run.data.tags['mlflow.parentRunId'])"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, settings_file, side], stdout=subprocess.PIPE, text=True)
        for side in ("prefix", "none")
    ]
    outputs = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1] != ""

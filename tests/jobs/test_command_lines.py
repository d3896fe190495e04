"""Each job's command line: bad input gives one line on stderr, exit code 2, and no table."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lte_model import command_line, errors
from tests.jobs.conftest import small_settings
from tests.jobs.feed_files import event, write_parquet
from tests.repository import REPOSITORY

pytestmark = pytest.mark.slow

JOBS = (
    "jobs.ingest_items",
    "jobs.ingest_events",
    "jobs.fit_basis",
    "jobs.embed_items",
    "jobs.encode_items",
    "jobs.snapshot_lte",
    "jobs.publish_lte",
    "jobs.push_lte",
    "jobs.count_popularity",
    "jobs.score_users",
    "jobs.build_training_set",
    "jobs.audit_lte",
    "jobs.monitor_lte",
    "jobs.check_freshness",
    "jobs.maintain_tables",
    "jobs.quality.check events",
    "jobs.measure_test --test t --from 2024-01-01 --to 2024-02-01",
)


def run(command: str, home: Path, **environment: str) -> subprocess.CompletedProcess:
    small_settings(home)
    return subprocess.run(
        [sys.executable, "-m", *command.split(), "--settings", str(home / "settings.toml")],
        cwd=REPOSITORY,
        env=os.environ | environment,
        check=False,
        capture_output=True,
        text=True,
    )


def error_of(done: subprocess.CompletedProcess) -> str:
    """The single line of an error message."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if "incubator" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


@pytest.fixture
def refusal(tmp_path, capsys, monkeypatch) -> Callable[[str], str]:
    """Calls a command's `main` in this process, which saves the imports of a new Python."""

    def of(command: str) -> str:
        module, *options = command.split()
        small_settings(tmp_path)
        monkeypatch.setattr("sys.argv", [module, *options, "--settings", str(tmp_path / "settings.toml")])
        with pytest.raises(SystemExit) as end:
            command_line.run(importlib.import_module(module).main)
        return error_of(subprocess.CompletedProcess(command, end.value.code, *capsys.readouterr()))

    return of


@pytest.mark.parametrize("job", JOBS)
def test_a_date_in_the_future_is_refused(tmp_path, refusal, job):
    assert "2999-01-01 is in the future" in refusal(f"{job} --date 2999-01-01")
    assert not (tmp_path / "warehouse").exists()


def test_a_refusal_ends_the_command_line_with_its_exit_code(tmp_path):
    assert "2999-01-01 is in the future" in error_of(run("jobs.snapshot_lte --date 2999-01-01", tmp_path))


def test_an_unknown_setting_is_refused(monkeypatch, refusal):
    monkeypatch.setenv("LTE_WINDOW__LAGS", "3")
    with pytest.raises(errors.LTEError, match=r"unknown key 'window.lags'"):
        refusal("jobs.snapshot_lte --date 2024-03-01")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "give --date, or --from and --to"),
        ("--from 2024-01-01", "give --from and --to together, without --date"),
        ("--from 2024-01-02 --to 2024-01-01", "no date lies in [2024-01-02, 2024-01-01)"),
        ("--from 2024-01-01 --to 2024-02-01 --every 0", "a step of 0 days does not advance"),
        ("--date 1.3.2024", "'1.3.2024' is not a date; write it YYYY-MM-DD"),
    ],
)
def test_dates_that_make_no_range_are_refused(refusal, options, message):
    assert message in refusal(f"jobs.snapshot_lte {options}")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("jobs.snapshot_lte --representation unifrom", "there is no representation 'unifrom'; take some of uniform"),
        ("jobs.snapshot_lte --representation recency --representation recency", "'recency' is named 2 times"),
        ("jobs.publish_lte --representation leaking", "representation leaking is never published: a window without"),
        ("jobs.audit_lte --representation recency", "covers the exact representations alone (uniform, autoencoder)"),
    ],
)
def test_a_representation_that_can_not_be_is_refused(refusal, command, message):
    assert message in refusal(f"{command} --date 2024-03-01")


def test_without_the_autoencoder_no_items_are_encoded_and_no_jvm_is_started(tmp_path):
    done = run("jobs.encode_items --date 2024-03-01 --anchors --if-read", tmp_path, JAVA_HOME=str(tmp_path), PATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "nothing to encode: autoencoder is not among model.representations of the settings\n"


def test_without_an_online_store_nothing_is_pushed_and_no_feast_is_asked_for(tmp_path):
    done = run("jobs.push_lte --date 2024-03-01", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "nothing to push: online_store.type is none in the settings\n"


def test_an_online_store_without_feast_is_named(tmp_path):
    error = error_of(run("jobs.push_lte --date 2024-03-01", tmp_path, LTE_ONLINE_STORE__TYPE="sqlite"))
    assert "there is no Feast at online_store.python = ''; run make online-store" in error


def test_without_a_champion_nobody_is_scored_and_no_jvm_is_started(tmp_path):
    job = "jobs.score_users --date 2024-03-01"
    done = run(f"{job} --if-champion", tmp_path, JAVA_HOME=str(tmp_path), PATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "nothing to score with: no version of model lte-ranker is champion\n"
    error = error_of(run(job, tmp_path, JAVA_HOME=str(tmp_path), PATH=""))
    assert error.endswith(f"is champion in sqlite:///{tmp_path / 'mlflow.db'}; run lte_promotion first")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_basis_is_asked_for_where_there_is_one_to_choose(refusal):
    error = refusal("jobs.quality.check events --date 2024-03-01 --basis b")
    assert "--basis is for item_embeddings, item_encodings, lte_snapshots; the gate of events has no" in error
    assert "table semantic_bases does not exist" in refusal("jobs.retire_basis --basis b")
    assert "table semantic_bases does not exist" in refusal("lte_model.registry.basis_change status")


@pytest.mark.parametrize("share", ["0", "nan"])
def test_a_share_of_the_users_that_is_none_is_refused(refusal, share):
    error = refusal(f"jobs.audit_lte --date 2024-03-01 --share={share}")
    assert "is no share of the users; give more than 0 and at most 1" in error


@pytest.mark.spark
def test_a_job_runs_alone_and_prints_its_account(tmp_path):
    write_parquet(tmp_path / "source" / "events.parquet", [event(), event(user=None)])
    done = run("jobs.ingest_events --date 2024-03-01", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "events known in [2024-02-29, 2024-03-01): read 2 = kept 1 + quarantined 1 + exact duplicates 0\n"
    )


@pytest.mark.spark
def test_a_missing_table_is_named_with_the_job_that_writes_it(tmp_path):
    error = error_of(run("jobs.publish_lte --date 2024-03-01", tmp_path))
    assert "table semantic_bases does not exist" in error and "run jobs.fit_basis first" in error


@pytest.mark.spark
def test_a_job_runs_by_spark_submit(tmp_path):
    write_parquet(tmp_path / "source" / "events.parquet", [event()])
    settings = small_settings(tmp_path)
    jars = sorted(map(str, Path(settings.spark.jars).glob("*.jar"))) if settings.spark.jars else []
    if not jars:
        pytest.skip("no prepared jars: run make setup")
    submit = Path(sys.executable).with_name("spark-submit")
    # The defaults of Delta, Spark and the JVM suit a cluster: hundreds of tasks for one row, code compiled twice.
    small = (
        "spark.sql.shuffle.partitions=2",
        "spark.databricks.delta.snapshotPartitions=2",
        "spark.driver.defaultJavaOptions=-XX:TieredStopAtLevel=1",
    )
    done = subprocess.run(
        [submit, "--master", "local[1]", "--driver-class-path", ":".join(jars)]
        + [option for setting in small for option in ("--conf", setting)]
        + ["jobs/ingest_events.py", "--date", "2024-03-01", "--settings", str(tmp_path / "settings.toml")],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYSPARK_PYTHON": sys.executable},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "read 1 = kept 1" in done.stdout

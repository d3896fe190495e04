"""What the driver sends to executors: the repository's code, and Delta's jars."""

import subprocess
import sys
import zipfile

import pytest

from jobs.spark.session import _configuration, is_local
from jobs.spark.shipping import write_code
from lte_model.settings import Spark
from tests.repository import REPOSITORY

pytestmark = pytest.mark.slow


def test_the_code_is_imported_from_the_archive_where_there_is_no_checkout(tmp_path):
    archive = write_code(tmp_path / "code.zip")
    program = "import jobs.engine.run, jobs.recipes.weighted, lte_model.domain.basis; print(jobs.engine.run.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd="/",
        env={"PYTHONPATH": str(archive)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == f"{archive}/jobs/engine/run.py", done.stderr


def test_the_archive_holds_every_file_of_both_packages(tmp_path):
    with zipfile.ZipFile(write_code(tmp_path / "code.zip")) as archive:
        names = set(archive.namelist())
    listing = ["git", "ls-files", "jobs", "lte_model"]
    tracked = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("no git here, or no checkout")
    assert set(tracked.stdout.split()) <= names
    assert not any("__pycache__" in name or name.startswith("tests") for name in names)


@pytest.mark.parametrize(
    ("master", "local"),
    [
        ("local", True),
        ("local[*]", True),
        ("local[4, 2]", True),
        ("local-cluster[2,1,1024]", False),
        ("spark://h:7077", False),
        ("k8s://https://h", False),
        ("yarn", False),
    ],
)
def test_a_cluster_gets_the_jars_from_the_driver_and_a_local_session_reads_them(settings, tmp_path, master, local):
    """The driver's local paths don't exist on other machines."""
    for name in ("a.jar", "b.jar"):
        (tmp_path / name).touch()
    spark = Spark(master=master, jars=str(tmp_path))
    configuration = _configuration(settings.model_copy(update={"spark": spark}))
    assert is_local(master) is local
    assert configuration.get("spark.jars") == (None if local else f"{tmp_path}/a.jar,{tmp_path}/b.jar")
    assert configuration.get("spark.driver.extraClassPath") == (f"{tmp_path}/a.jar:{tmp_path}/b.jar" if local else None)
    assert "spark.executor.extraClassPath" not in configuration


def test_executors_know_which_store_and_no_secret(settings, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not theirs")
    monkeypatch.delenv("AWS_REGION", raising=False)
    configuration = _configuration(settings)
    of_executors = {key: value for key, value in configuration.items() if key.startswith("spark.executorEnv.")}
    assert of_executors == {"spark.executorEnv.AWS_ENDPOINT_URL": "https://s3.example.org"}
    assert "not theirs" not in configuration.values()

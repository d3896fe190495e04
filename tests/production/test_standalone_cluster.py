"""Jobs on a standalone cluster make the same rows, bit for bit, as on one machine, without the driver's disk.

The cluster's workers see neither this checkout nor the driver's scratch folder. If this machine can't hide folders, the
workers still start elsewhere, with an empty environment. They share the warehouse and the feed with the driver, as a
store would be shared. Executors use a packed environment and code that came with the job.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import polars as pl
import pytest

from infra.environments import FOLDER, pack
from lte_model.warehouse.tables import TABLES
from tests.jobs.conftest import small_settings
from tests.jobs.kills import difference, rows_of
from tests.production.every_table import write_feeds
from tests.production.standalone_cluster import LOOPBACK, StandaloneCluster, can_hide
from tests.repository import REPOSITORY

pytestmark = [pytest.mark.production, pytest.mark.timeout(1800)]

SMALL_MODEL = {
    "model": {"width": 8, "blocks": 1},
    "training": {"epochs": 1, "device": "cpu"},
    "autoencoder": {"anchors": 2, "epochs": 1},
    "evaluation": {"bootstrap_samples": 50},
}


@pytest.fixture(scope="module")
def environment() -> Path:
    """The executors' packed environment."""
    return pack("executors", FOLDER / "executors.tar.gz")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_feeds(folder)
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """The driver's private folder."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, scratch):
    hidden = [REPOSITORY, (REPOSITORY / ".cache").resolve(), scratch]
    with StandaloneCluster(tmp_path_factory.mktemp("cluster"), hidden) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def local(tmp_path_factory, shop, scratch) -> Path:
    """The home of an installation whose jobs all ran on one machine."""
    home = tmp_path_factory.mktemp("local")
    run_every_job(scratch, write_settings(home, shop))
    return home


@pytest.fixture(scope="module")
def on_cluster(tmp_path_factory, local, shop, scratch, cluster, environment) -> Path:
    """The home of an installation whose jobs all ran on the cluster. It uses the models of `local`."""
    home = tmp_path_factory.mktemp("on-cluster")
    models = {
        "checkpoints": f"{local}/checkpoints",
        "mlflow": {"tracking_uri": f"sqlite:///{local}/mlflow.db", "artifacts": f"{local}/mlartifacts"},
    }
    spark = cluster_spark(cluster, environment)
    # The packed environment has no torch (5 GB with CUDA's libraries), so scoring uses the nodes' Python.
    conf = {key: value for key, value in spark["conf"].items() if key != "spark.archives"}
    of_nodes = spark | {"conf": conf | {"spark.pyspark.python": str(cluster.python)}}
    scoring = write_settings(home, shop, models | {"spark": of_nodes})
    scoring = scoring.rename(home / "scoring.toml")
    run_every_job(scratch, write_settings(home, shop, models | {"spark": spark}), scoring)
    return home


def cluster_spark(cluster: StandaloneCluster, environment: Path) -> dict:
    """Section `[spark]` of infra/settings/standalone.toml, adapted to a small cluster on loopback."""
    spark = tomllib.loads((REPOSITORY / "infra/settings/standalone.toml").read_text())["spark"]
    small = {
        "spark.archives": f"{environment}#environment",
        "spark.cores.max": cluster.workers,
        "spark.executor.cores": 1,
        "spark.executor.memory": "1g",
        "spark.executor.memoryOverhead": "384m",
        "spark.driver.memory": "1g",
        "spark.default.parallelism": 3,
        "spark.sql.shuffle.partitions": 3,
    }
    assert small.keys() <= spark["conf"].keys()
    here = {"spark.driver.host": LOOPBACK, "spark.driver.bindAddress": LOOPBACK, "spark.ui.enabled": "false"}
    small |= {"spark.databricks.delta.snapshotPartitions": 2}  # the tables have few files
    small |= {"spark.sql.sources.parallelPartitionDiscovery.parallelism": 4}
    jars = str(REPOSITORY / ".cache/jars")
    return {"master": cluster.master, "jars": jars, "conf": spark["conf"] | small | here}


def write_settings(home: Path, shop: Path, more: dict | None = None) -> Path:
    """Writes the settings of a small installation that reads the shop's feeds; returns their path."""
    small_settings(home)
    file = home / "settings.toml"
    values = tomllib.loads(file.read_text()) | SMALL_MODEL | (more or {})
    values["window"]["window_days"] = 30
    values["sources"] = {feed: f"{shop}/{feed}.parquet" for feed in ("events", "items", "outcomes")}
    file.write_text(toml_of(values))
    events = pl.read_parquet(shop / "events.parquet", columns=["user_id"]).drop_nulls()
    (home / "erased.txt").write_text(events["user_id"].mode().sort()[0] + "\n")
    return file


def toml_of(values: dict, table: str = "") -> str:
    """Nested dicts as TOML. Text, numbers and lists are written as JSON, which is valid TOML for them."""
    lines = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            name = f"{table}.{key}" if table else key
            lines += [f"[{name}]", toml_of(value, name)]
    return "\n".join(lines)


def run_every_job(scratch: Path, *arguments: Path | str) -> None:
    private = {"TMPDIR": str(scratch), "SPARK_LOCAL_DIRS": str(scratch), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.production.every_table", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | private, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"


def test_every_table_is_the_same_bits_on_a_cluster(local, on_cluster, outcome):
    expected, found = rows_of(local / "warehouse"), rows_of(on_cluster / "warehouse")
    assert expected.keys() == TABLES.keys()
    assert all(expected.values()), f"empty: {[name for name, rows in expected.items() if not rows]}"
    assert difference(found, expected) is None
    rows = sum(map(len, expected.values()))
    outcome("one machine exchanged for a cluster", times=len(TABLES), lost=0, of=f"of {rows:,} rows differ")


def test_the_cluster_did_it_on_what_came_with_the_job(on_cluster, cluster, scratch):
    """Both workers ran executors with the code and the environment that the driver sent."""
    started = list(cluster.folder.glob("worker-*/work/app-*/*"))
    assert {executor.relative_to(cluster.folder).parts[0] for executor in started} == {"worker-0", "worker-1"}
    with_tasks = [executor for executor in started if (executor / "lte-code.zip").is_file()]
    assert any((executor / "environment/bin/python").exists() for executor in with_tasks)
    if can_hide():
        assert cluster.sees(REPOSITORY) == cluster.sees(scratch) == []

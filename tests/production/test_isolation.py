"""Airflow in an environment without PySpark or torch runs jobs and models in theirs, and jobs on a cluster.

A real Airflow runs lte_bootstrap and a date of lte_daily twice. First its commands run in the environments of jobs and
models. Then its Spark jobs are submitted to a standalone cluster, whose machines have neither environment. The tables
must equal those of the same commands without Airflow, on one machine, in an environment with all packages.
"""

import subprocess

import pytest
from deltalake import DeltaTable

from infra.environments import FOLDER, make
from infra.local.stack import LocalStack
from infra.runs.airflow_runs import FollowedRuns
from tests.jobs.kills import difference, rows_of
from tests.production.every_table import FIRST, SECOND, SINCE
from tests.production.test_standalone_cluster import (  # noqa: F401 – fixtures
    cluster,
    cluster_spark,
    environment,
    run_every_job,
    scratch,
    shop,
    write_settings,
)
from tests.repository import REPOSITORY

pytestmark = [pytest.mark.production, pytest.mark.e2e, pytest.mark.timeout(3600)]

ABSENT = {
    "airflow": ("pyspark", "torch", "mlflow", "delta"),
    "jobs": ("airflow", "torch"),
    "training": ("airflow", "pyspark", "delta"),
    "executors": ("airflow", "pyspark", "torch", "mlflow"),
}
PRESENT = {
    "airflow": ("airflow", "airflow.providers.cncf.kubernetes"),
    "jobs": ("pyspark", "delta", "mlflow", "great_expectations"),
    "training": ("torch", "mlflow"),
    "executors": ("pyarrow", "scipy"),
}


@pytest.fixture(scope="module")
def pythons():
    return {name: make(name) for name in ("airflow", "jobs", "training")}


def has(python, module) -> bool:
    program = f"import importlib.util as u; raise SystemExit(u.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", program], check=False, cwd="/").returncode == 0


@pytest.mark.parametrize("name", ABSENT)
def test_an_environment_has_what_it_needs_and_not_the_others_packages(name):
    python = make(name)
    assert {module: has(python, module) for module in ABSENT[name]} == dict.fromkeys(ABSENT[name], False)
    assert {module: has(python, module) for module in PRESENT[name]} == dict.fromkeys(PRESENT[name], True)


def test_an_environment_that_is_as_it_should_be_is_not_made_again(pythons):
    stamp = FOLDER / "airflow/made-from"
    before = stamp.stat().st_mtime_ns
    make("airflow")
    assert stamp.stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def expected(tmp_path_factory, shop, scratch):  # noqa: F811
    """The tables of the same commands on one machine."""
    home = tmp_path_factory.mktemp("expected")
    run_every_job(scratch, write_settings(home, shop), "--dags")
    return rows_of(home / "warehouse")


def run_dags(settings, python, lte):
    """lte_bootstrap and lte_daily through a real Airflow; returns the rows of every table."""
    with LocalStack(settings, mlflow_ui=False, feed_end=SECOND, python=python, lte=lte) as stack:
        progress = FollowedRuns(stack)
        run = stack.api.trigger("lte_bootstrap", FIRST, {"since": SINCE.isoformat()})
        progress.follow("lte_bootstrap", {run: "lte_bootstrap"})
        run = stack.api.trigger("lte_daily", SECOND)
        stack.api.unpause("lte_daily")
        progress.follow("lte_daily", {run: "lte_daily"})
    return rows_of(settings.parent / "warehouse")


def test_the_dags_run_across_environments(pythons, expected, tmp_path, shop):  # noqa: F811
    apart = {"jobs_python": str(pythons["jobs"]), "training_python": str(pythons["training"])}
    found = run_dags(write_settings(tmp_path, shop), pythons["airflow"], apart)
    assert difference(found, expected) is None


def test_the_dags_submit_to_a_cluster(pythons, expected, tmp_path, shop, cluster, environment, outcome):  # noqa: F811
    spark = cluster_spark(cluster, environment)
    distribution = next(FOLDER.glob("jobs/lib/python3*/site-packages/pyspark"))
    conf = spark["conf"] | {"spark.pyspark.driver.python": str(pythons["jobs"])}
    options = " ".join(f"--conf {key}={value}" for key, value in conf.items() if key != "spark.archives")
    jars = ",".join(str(jar) for jar in sorted((REPOSITORY / ".cache/jars").glob("*.jar")))
    submit = f"{distribution}/bin/spark-submit --master {cluster.master} --jars {jars} {options}"
    submit += f" --archives {conf['spark.archives']}"
    apart = {"jobs_python": str(pythons["jobs"]), "training_python": str(pythons["training"])}
    before = len(cluster.state()["completedapps"])
    settings = write_settings(tmp_path, shop)
    found = run_dags(settings, pythons["airflow"], apart | {"runner": "spark-submit", "spark_submit": submit})
    assert difference(found, expected) is None
    submitted = len(cluster.state()["completedapps"]) - before
    assert submitted >= 9, "each Spark job of the two DAGs is an application of the cluster"
    assert DeltaTable(str(tmp_path / "warehouse/lte_live")).version() >= 1
    outcome("one machine exchanged for Airflow and a cluster", times=submitted, lost=0, of="rows that differ")

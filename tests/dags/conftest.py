"""Fixtures: a temporary AIRFLOW_HOME, and every DAG of the repository."""

import os
import tempfile

import pytest

from tests.dags.context import DAGS

# Airflow creates its home on import: keep it out of the user's home folder.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-of-tests-"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")


@pytest.fixture(scope="module")
def dags():
    from airflow.dag_processing.dagbag import BundleDagBag

    bag = BundleDagBag(DAGS, bundle_path=DAGS)
    assert not bag.import_errors
    return bag.dags

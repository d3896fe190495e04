"""For all tests."""

import os
import sys

import pytest
from hypothesis import settings

# A machine that is busy with something else fails no property.
settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Of several processes each has a core; torch and what the tests start would take them all.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # PySpark takes a main module of no file for its own doctests, and ends the process.
    sys.modules["__main__"].__file__ = pytest.__file__


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes: a file is never divided, nor is the one Airflow, which begins first."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
    for item in items:
        of_airflow = item.get_closest_marker("e2e") is not None
        item.add_marker(pytest.mark.xdist_group("e2e" if of_airflow else item.path.stem))

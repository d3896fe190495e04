"""Options and markers of all tests. `--production` runs the slow production tests and prints what they lost."""

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.production.outcomes import outcomes_of, table_of

DAGS = Path(__file__).parent / "dags"

# A busy machine must not fail a property by its deadline.
settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores; torch and child processes would each use all of them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # If the main module has no file, PySpark assumes that its doctests run, and ends the process.
    sys.modules["__main__"].__file__ = pytest.__file__


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--production", action="store_true", help="run the tests marked production, and no others")
    parser.addoption("--outcomes", metavar="FILE", help="write what those tests broke and lost there, as JSON")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        _mark_by_what_it_needs(item)
    is_wanted = [bool(item.get_closest_marker("production")) == config.getoption("--production") for item in items]
    config.hook.pytest_deselected(items=[item for item, wanted in zip(items, is_wanted, strict=True) if not wanted])
    items[:] = [item for item, wanted in zip(items, is_wanted, strict=True) if wanted]


def _mark_by_what_it_needs(item: pytest.Item) -> None:
    """Adds a marker: `spark` if the test uses a Spark session, `mlflow` if a tracking store, `airflow` if the DAGs."""
    fixtures = getattr(item, "fixturenames", ())
    for fixture, mark in (("spark", pytest.mark.spark), ("tracking_uri", pytest.mark.mlflow)):
        if fixture in fixtures:
            item.add_marker(mark)
    if DAGS in item.path.parents:
        item.add_marker(pytest.mark.airflow)


def pytest_terminal_summary(terminalreporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    outcomes = outcomes_of(report for report in reports if report.when == "call")
    if not outcomes:
        return
    terminalreporter.section("what was broken, how often, and what was lost")
    for line in table_of(outcomes):
        terminalreporter.write_line(line)
    file = terminalreporter.config.getoption("--outcomes")
    if file:
        figures = [figure for outcome in outcomes for figure in outcome.figures()]
        Path(file).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

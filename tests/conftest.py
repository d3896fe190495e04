"""For all tests: `--production` runs those of a whole production, which take longer, and shows what they lost."""

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.production.outcomes import outcomes_of, table_of

DAGS = Path(__file__).parent / "dags"

# A machine that is busy with something else fails no property.
settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores; torch and what the tests start would each take them all.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # PySpark takes a main module of no file for its own doctests, and ends the process.
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
    """Mark a test `spark` that asks for a Spark session, `mlflow` for records, `airflow` one that reads the DAGs."""
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

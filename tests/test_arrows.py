"""Which room may import which: dags → nothing, jobs → lte_model, lte_model → neither; and rooms without torch."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository import REPOSITORY

FORBIDDEN = {
    "dags": {"jobs", "lte_model", "infra", "tests", "pyspark", "torch", "mlflow"},
    "jobs": {"dags", "infra", "tests", "airflow", "torch"},
    "lte_model": {"dags", "jobs", "infra", "tests", "airflow", "pyspark", "delta"},
    "infra": {"dags", "jobs", "tests", "pyspark", "torch"},
}
FLOORS = {
    "lte_model": (
        {"errors", "files", "figures"},
        {"metrics", "object_store", "domain"},
        {"settings"},
        {"ranker", "warehouse", "command_line", "tracking", "pages"},
        {"training", "serving", "online_test"},
        {"evaluation"},
        {"monitoring", "studies", "registry"},
    ),
    "jobs": ({"spark", "quality", "demo_shop"}, {"feeds", "engine"}, {"recipes"}),
    "infra": ({"repository"}, {"local", "checks", "environments"}, {"runs"}),
}
"""Rooms and files, from the lowest floor up: each imports only from lower floors. Tasks of jobs/ may import all."""

LIGHT = ("domain", "warehouse", "errors", "files", "figures", "metrics", "object_store", "settings", "command_line")
"""Rooms and files that every job and every check in a DAG imports."""

WITH_MLFLOW = ("tracking", "online_test")
"""Rooms that jobs import as well; they use MLflow, which imports PySpark if it is installed."""

HAS_A_SETTING = {"lte_model/__init__.py"}
"""The one exception: torch reads OpenMP's wait policy on import, so it must be set before any module."""


def _imported(file: Path) -> Iterator[tuple[str, int]]:
    """(full name, line) of every import in the file, at the top or within a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _files(top: str) -> list[Path]:
    return sorted((REPOSITORY / top).rglob("*.py"))


def _room(name: str) -> str:
    """The room or file in a module's name (its second part); "" for a package itself, or a task of jobs."""
    top, _, rest = name.partition(".")
    room = rest.partition(".")[0]
    return room if any(room in floor for floor in FLOORS[top]) else ""


def _module(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("top", FORBIDDEN)
def test_a_top_room_imports_only_what_it_may(top):
    wrong = [
        f"{file.relative_to(REPOSITORY)}:{line} imports {name}"
        for file in _files(top)
        for name, line in _imported(file)
        if name.partition(".")[0] in FORBIDDEN[top]
    ]
    assert wrong == []


@pytest.mark.parametrize("top", FLOORS)
def test_a_room_imports_only_from_the_floors_below_it(top):
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS[top]) for room in rooms}
    wrong = []
    for file in _files(top):
        here = _room(_module(file))
        for name, line in _imported(file):
            there = _room(name) if name.startswith(f"{top}.") else here
            if here and here != there and not floor_of.get(there, len(FLOORS[top])) < floor_of[here]:
                wrong.append(f"{file.relative_to(REPOSITORY)}:{line} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("top", FLOORS)
def test_every_room_and_file_has_a_floor(top):
    """The tasks at the top of jobs/ are above all floors; nothing may import them."""
    found = {file.relative_to(REPOSITORY / top).parts[0].removesuffix(".py") for file in _files(top)} - {"__init__"}
    if top == "jobs":
        found = {name for name in found if (REPOSITORY / top / name).is_dir()}
    assert found == set().union(*FLOORS[top])


def test_folders_import_each_other_in_no_circle():
    """A node is a room with all of its files, or a single file at the top of lte_model/, jobs/ and the others."""
    arrows: dict[str, set[str]] = {}
    for file in (file for top in FLOORS for file in _files(top)):
        here = _folder(_module(file))
        targets = {_folder(name) for name, _ in _imported(file) if name.partition(".")[0] in FLOORS}
        arrows.setdefault(here, set()).update(targets - {here})
    tuple(graphlib.TopologicalSorter(arrows).static_order())


def _folder(name: str) -> str:
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize(
    "file",
    [file for top in FLOORS for file in _files(top) if file.name == "__init__.py"],
    ids=lambda file: str(file.relative_to(REPOSITORY)),
)
def test_a_package_imports_nothing_for_those_who_import_from_it(file):
    """`from lte_model.registry.in_force import …` also runs the package's __init__.py."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no docstring"
    if str(file.relative_to(REPOSITORY)) not in HAS_A_SETTING:
        assert len(tree.body) == 1


@pytest.mark.parametrize("rooms", [LIGHT, WITH_MLFLOW], ids=["without MLflow", "with MLflow"])
def test_what_jobs_need_brings_neither_torch_nor_spark(rooms):
    """Checks transitive imports: a Spark image has no torch, and a GPU image has no Java."""
    modules = [module for module in map(_module, _files("lte_model")) if _room(module) in rooms]
    assert {_room(module) for module in modules} == set(rooms)
    unwanted = {"torch", "airflow"} | (set() if rooms is WITH_MLFLOW else {"mlflow", "pyspark"})
    program = f"import sys, {', '.join(modules)}; print(*{unwanted} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.slow
def test_the_model_runs_where_spark_is_not_installed():
    """A GPU image has neither PySpark nor Java; MLflow looks for PySpark but works without it."""
    modules = ", ".join(map(_module, _files("lte_model")))
    program = f"import sys; sys.modules['pyspark'] = sys.modules['airflow'] = None; import {modules}"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

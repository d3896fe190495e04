"""Which room may import which: dags ⇢ nothing, jobs → lte_model, lte_model → neither; and what must stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import REPOSITORY

FORBIDDEN = {
    "dags": {"jobs", "lte_model", "infra", "tests", "pyspark", "torch", "mlflow"},
    "jobs": {"dags", "infra", "tests", "airflow", "torch"},
    "lte_model": {"dags", "jobs", "infra", "tests", "airflow", "pyspark", "delta"},
    "infra": {"dags", "jobs", "tests", "pyspark", "torch"},
}
WITHOUT_TORCH = (
    "lte_model.domain.windows",
    "lte_model.domain.basis",
    "lte_model.tracking.code_version",
    "lte_model.domain.representations",
    "lte_model.training.encoder_files",
    "lte_model.settings",
    "lte_model.object_store",
    "lte_model.errors",
    "lte_model.online_test.statistics",
)


def _imported(file: Path) -> dict[str, int]:
    """Every module that the file names in an import, at the top or within a function, with its line."""
    found = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            found[node.module] = node.lineno
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_only_what_it_may(room):
    wrong = [
        f"{file.relative_to(REPOSITORY)}:{line} imports {module}"
        for file in sorted((REPOSITORY / room).rglob("*.py"))
        for module, line in _imported(file).items()
        if module.partition(".")[0] in FORBIDDEN[room]
    ]
    assert wrong == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_jobs_need_brings_neither_torch_nor_spark(module):
    """Transitively: a Spark image holds no torch, and a GPU image no Java."""
    program = f"import sys, {module}; print(*{{'torch', 'pyspark', 'airflow', 'mlflow'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_model_runs_where_spark_is_not_installed():
    """A GPU image has neither. (MLflow looks for PySpark by itself, and does without.)"""
    modules = [
        f"lte_model.{file.stem}" for file in sorted((REPOSITORY / "lte_model").glob("*.py")) if file.stem != "__init__"
    ]
    program = f"import sys; sys.modules['pyspark'] = sys.modules['airflow'] = None; import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

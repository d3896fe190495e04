"""House rules for every DAG of this repository."""

import argparse
import ast
import datetime
import importlib
import itertools
import shlex
import string
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import ParamValidationError

from jobs.erase_users import FILES, TABLES_WITH_USERS
from lte_model.errors import LTEError
from lte_model.warehouse.tables import TABLES
from tests.dags.context import CONTEXT, DAGS, ENTRY, POOLS, filled
from tests.repository import REPOSITORY

GATES = (
    "quality.check", "promotion challenger", "promotion gate", "promotion watch", "audit_lte", "monitor_lte",
    "ablation list", "basis_change", "check_freshness",
)  # fmt: skip
"""Parts of the commands of gates and listings, which have no retries."""


def _tasks(dags, kind=None):
    """All tasks; a mapped task is expanded for one entry."""
    tasks = [task for dag in dags.values() for task in dag.tasks if kind is None or task.task_type == kind]
    return [task.unmap({"env": ENTRY}) if isinstance(task, MappedOperator) else task for task in tasks]


def test_all_dags_are_there(dags):
    names = (
        "bootstrap", "daily", "backfill", "audit", "training", "ablation", "promotion", "rollback", "maintenance",
        "erasure", "read_out", "basis_change", "basis_retirement", "watch",
    )  # fmt: skip
    assert set(dags) == {f"lte_{name}" for name in names}


def test_every_dag_is_owned_and_tagged(dags):
    for dag in dags.values():
        assert {task.owner for task in dag.tasks} == {"personalisation"}, dag.dag_id
        assert "lte" in dag.tags and len(dag.tags) >= 2, dag.dag_id
        assert dag.description, dag.dag_id


def test_every_dag_carries_a_runbook(dags):
    for dag in dags.values():
        assert dag.doc_md and dag.doc_md.startswith(f"# {dag.dag_id}"), dag.dag_id
        assert "fail" in dag.doc_md or "roll back" in dag.doc_md, f"{dag.dag_id}: what if it goes wrong?"


def test_every_task_says_what_to_do_when_it_fails(dags):
    for task in _tasks(dags):
        assert task.doc_md and "When it fails:" in task.doc_md, f"{task.dag_id}.{task.task_id}"


def test_jobs_are_tried_again_and_gates_are_not(dags):
    for task in _tasks(dags, "BashOperator"):
        is_gate = any(word in task.bash_command for word in GATES)
        assert task.retries == (0 if is_gate else 2), f"{task.dag_id}.{task.task_id}"


def test_every_command_has_a_pool_of_one_slot(dags):
    for task in _tasks(dags, "BashOperator"):
        assert task.pool in POOLS, (
            f"{task.dag_id}.{task.task_id} is in pool {task.pool!r}; see infra/airflow/pools.json"
        )
    assert {pool["slots"] for pool in POOLS.values()} == {1}


def test_every_pool_is_used(dags):
    assert set(POOLS) == {task.pool for task in _tasks(dags, "BashOperator")}


def test_a_table_has_one_pool(dags):
    """Two DAGs that write the same table use the same pool, so that they wait for each other."""
    pools = {}
    for task in _tasks(dags, "BashOperator"):
        pools.setdefault(_written(task), set()).add(task.pool)
    assert {written: found for written, found in pools.items() if len(found) > 1} == {}


def _written(task):
    """The table or files that a command names; else its module, which writes one table."""
    words = shlex.split(task.bash_command)
    named = [after for word, after in itertools.pairwise(words) if word in ("--table", "--files")]
    if words[2] == "lte_model.studies.ablation":
        return {"train": "lte_model.training.train", "report": "lte_model.evaluation.report"}.get(
            words[3], ""
        )  # it lists, too
    return named[0] if named else words[2]


def test_the_pool_of_a_table_is_that_of_the_job_that_writes_it(dags):
    module_pool = {task.bash_command.split()[2]: task.pool for task in _tasks(dags, "BashOperator")}
    for task in dags["lte_maintenance"].tasks:
        for module in TABLES[_written(task)].written_by.split(" and "):
            assert task.pool == module_pool[module], task.task_id


def test_every_table_is_maintained_and_every_one_that_names_users_is_erased_from(dags):
    assert [_written(task) for task in dags["lte_maintenance"].tasks] == list(TABLES)
    erasure = dags["lte_erasure"]
    in_order = erasure.topological_sort()
    assert [_written(task) for task in in_order[: len(TABLES_WITH_USERS)]] == list(TABLES_WITH_USERS)
    assert {_written(task) for task in in_order[len(TABLES_WITH_USERS) : -1]} == set(FILES)
    assert in_order[-1].task_id == "list_models"
    command = in_order[0].render_template(in_order[0].bash_command, CONTEXT)
    assert shlex.split(command)[3] == "--users=/lists/of 1 May.txt"
    for path in ("", "/lists/'; rm -r /"):
        with pytest.raises(ParamValidationError, match="Invalid input for param users"):
            filled(erasure, {"users": path})


def test_dates_can_be_run_in_any_order(dags):
    for dag in dags.values():
        assert not dag.catchup, dag.dag_id
        assert not any(task.depends_on_past or task.wait_for_downstream for task in dag.tasks), dag.dag_id
    assert dags["lte_daily"].max_active_runs > 1


def test_gates_stand_between_a_table_and_the_next(dags):
    """A job reads another job's table only after the gate that checks it."""
    daily, training, ablation, online = (dags[f"lte_{name}"] for name in ("daily", "training", "ablation", "read_out"))
    for dag, before, gate, after in (
        (daily, "ingest_items", "check_items", "embed_items"),
        (daily, "ingest_events", "check_events", "embed_items"),
        (daily, "embed_items", "check_item_embeddings", "snapshot_lte"),
        (daily, "snapshot_lte", "check_lte_snapshots", "publish_lte"),
        (daily, "snapshot_lte", "check_lte_snapshots", "push_lte"),
        (training, "encode_items", "check_item_encodings", "snapshot_anchors"),
        (training, "snapshot_anchors", "check_lte_snapshots", "build_training_set"),
        (training, "count_popularity", "check_item_popularity", "build_training_set"),
        (training, "build_training_set", "check_training_set", "train_prefix"),
        (training, "build_training_set", "check_training_set", "train_none"),
        (ablation, "encode_items", "check_item_encodings", "snapshot_anchors"),
        (ablation, "snapshot_anchors", "check_lte_snapshots", "list_trainings"),
        (online, "measure_test", "check_test_measurements", "read_out"),
    ):
        assert gate in dag.get_task(before).downstream_task_ids, f"{dag.dag_id}: {before} → {gate}"
        assert gate in dag.get_task(after).get_flat_relative_ids(upstream=True), f"{dag.dag_id}: {gate} → {after}"
        assert after not in dag.get_task(before).downstream_task_ids, f"{dag.dag_id}: {before} → {after}"


@pytest.mark.parametrize("file", sorted(DAGS.glob("*.py")), ids=lambda file: file.name)
def test_dag_files_import_airflow_alone(file):
    """A scheduler needs none of the pipeline's packages, and parses none of its code."""
    allowed = {"airflow", "kubernetes", "pendulum", "commands", "pods", "runners", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno}: relative import"
            modules = [node.module]
        assert {module.partition(".")[0] for module in modules} <= allowed, f"{file.name}:{node.lineno}: {modules}"


@pytest.mark.parametrize("file", sorted(DAGS.glob("lte_*.py")), ids=lambda file: file.name)
def test_a_dag_parses_within_a_second(file, dags):
    """Airflow is imported already. Takes the best of three, because the machine may be busy."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        bag = BundleDagBag(file, bundle_path=DAGS)
        seconds.append(time.perf_counter() - begin)
        assert list(bag.dags) == [file.stem]
    assert min(seconds) < 1


def test_every_command_line_is_accepted_by_its_module(dags, monkeypatch, tmp_path):
    """Each module's own parser accepts the rendered arguments: it stops only at the missing settings file."""
    _require_accepted(_tasks(dags, "BashOperator"), CONTEXT, monkeypatch, tmp_path / "no-settings.toml")


def _require_accepted(tasks, context, monkeypatch, missing):
    for task in tasks:
        where = f"{task.dag_id}.{task.task_id}"
        command = task.render_template(task.bash_command, context)
        command = string.Template(command).safe_substitute(quoted(task.render_template(task.env or {}, context)))
        python, minus_m, module, *arguments = shlex.split(command)
        assert (python, minus_m) == ("python", "-m"), where
        assert Path(task.cwd) == REPOSITORY, where
        monkeypatch.setattr(sys, "argv", [module, *arguments, "--settings", str(missing)])
        try:
            importlib.import_module(module).main()
        except LTEError as error:
            assert "no settings file" in str(error), where
        except (SystemExit, argparse.ArgumentError) as error:
            pytest.fail(f"{where}: `{command}` is refused by {module}: {error}")
        else:
            pytest.fail(f"{where}: {module} ran without settings")


@pytest.mark.parametrize("words", ["-1%", "-", "--", "--version", "-h", "--reason=x", "- it was slow", "-٣ %"])
def test_words_that_begin_with_a_dash_are_no_option(dags, monkeypatch, tmp_path, words):
    """Whatever a person may type into a form, or Airflow knows of a person, reaches the option that it is for."""
    approved = {"chosen_options": [words], "responded_by_user": {"name": words}, "params_input": {"reason": words}}
    pulled = CONTEXT["ti"].xcom_pull
    xcoms = SimpleNamespace(xcom_pull=lambda task_ids: approved if task_ids == "approve" else pulled(task_ids))
    typed = 0
    for dag in dags.values():
        params = {name: words for name in dag.params if _takes(dag, name, words)}
        typed += len(params)
        context = CONTEXT | {"params": CONTEXT["params"] | params, "ti": xcoms}
        _require_accepted(_tasks({dag.dag_id: dag}, "BashOperator"), context, monkeypatch, tmp_path / "none.toml")
    assert typed >= 4  # a reason, a template, a list of users, a control


def _takes(dag, name, words):
    """Whether the form of the DAG lets a person type the words there."""
    try:
        dag.params.get_param(name).resolve(words)
    except ParamValidationError:
        return False
    return True


def quoted(environment):
    """The variables as a shell would expand them within double quotes."""
    return {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in environment.items()}


def test_what_a_person_typed_reaches_the_command_as_it_is(dags):
    task = dags["lte_rollback"].get_task("rollback")
    reason = task.render_template(task.env, CONTEXT)["REASON"]
    printed = task.bash_command.replace("python -m lte_model.registry.promotion", "printf '%s|'")
    command = task.render_template(printed, CONTEXT)
    shown = subprocess.run(
        ["bash", "-c", command], env={"REASON": reason}, stdout=subprocess.PIPE, text=True, check=True
    )
    assert shown.stdout == f"rollback|--reason={CONTEXT['params']['reason']}|--version=3|"


def test_a_command_gets_the_logical_date_or_the_day_it_was_started_on(dags):
    task = dags["lte_daily"].get_task("snapshot_lte")
    assert task.render_template(task.bash_command, CONTEXT).endswith("--date 2024-05-01")
    by_hand = SimpleNamespace(logical_date=None, run_after=datetime.datetime(2024, 6, 2, 9, 30, tzinfo=datetime.UTC))
    assert task.render_template(task.bash_command, {"dag_run": by_hand}).endswith("--date 2024-06-02")

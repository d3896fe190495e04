"""What every DAG of this repository must have, and what none may do."""

import argparse
import ast
import copy
import datetime
import importlib
import itertools
import json
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
from lte_model.settings import Settings
from lte_model.studies.variants import VARIANTS
from lte_model.warehouse.tables import TABLES
from tests.repository import REPOSITORY

DAGS = REPOSITORY / "dags"
POOLS = json.loads((REPOSITORY / "infra/airflow/pools.json").read_text())
CONTEXT = {
    "dag_run": SimpleNamespace(logical_date=datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)),
    "params": {
        "since": "2023-01-01",
        "from": "2024-01-01",
        "to": "2024-05-01",
        "step": 7,
        "users": "/lists/of 1 May.txt",
        "test": "lte-prefix",
        "control": "no lte",
        "shares": "no lte=0.9,lte=0.1",
        "uplift": 0.0116,
        "rehearse": True,
        "variants": "none,prefix@20",
        "seeds": 2,
        "reason": 'it\'s a "test"; $(false)',
        "version": 3,
        "dimensions": 128,
        "text_template": '{title} "new"; $(false)',
        "basis": "3f2ac41b907d0e55",
    },
    "ti": SimpleNamespace(
        xcom_pull=lambda task_ids: {
            "challenger": [{"VERSION": "3", "TRAINING_DATE": "2024-05-01", "CHAMPION": ""}],
            "approve": {"chosen_options": ["Reject"], "responded_by_user": None, "params_input": {"reason": "why not"}},
            "new_basis": [{"BASIS": "3f2ac41b907d0e55"}],
        }[task_ids]
    ),
}
GATES = (
    "quality.check", "promotion challenger", "promotion gate", "promotion watch", "audit_lte", "monitor_lte",
    "ablation list", "basis_change", "check_freshness",
)  # fmt: skip
"""The commands of tasks that read and decide."""

ENTRY = {"VARIANT": "prefix@20", "SEED": "1"}
"""What a mapped task gets."""


@pytest.fixture(scope="module")
def dags():
    bag = BundleDagBag(DAGS, bundle_path=DAGS)
    assert not bag.import_errors
    return bag.dags


def _tasks(dags, kind=None):
    """The tasks; in the place of one that is mapped, that of an entry."""
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
    """Two DAGs that write the same table wait for each other."""
    pools = {}
    for task in _tasks(dags, "BashOperator"):
        pools.setdefault(_written(task), set()).add(task.pool)
    assert {written: found for written, found in pools.items() if len(found) > 1} == {}


def _written(task):
    """The table or the files that a command names, else its module, which has one table."""
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
    assert shlex.split(command)[3:5] == ["--users", "/lists/of 1 May.txt"]
    for path in ("", "/lists/'; rm -r /"):
        with pytest.raises(ParamValidationError, match="Invalid input for param users"):
            filled(erasure, {"users": path})


def test_dates_can_be_run_in_any_order(dags):
    for dag in dags.values():
        assert not dag.catchup, dag.dag_id
        assert not any(task.depends_on_past or task.wait_for_downstream for task in dag.tasks), dag.dag_id
    assert dags["lte_daily"].max_active_runs > 1


def test_gates_stand_between_a_table_and_the_next(dags):
    """What a job wrote is read by the next job only past the gate that checks it."""
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


def test_what_is_live_is_scored_where_there_is_a_champion(dags):
    daily = dags["lte_daily"]
    assert daily.get_task("publish_lte").downstream_task_ids == {"push_lte", "check_champion"}
    assert daily.get_task("check_champion").downstream_task_ids == {"score_users"}
    assert daily.get_task("score_users").downstream_task_ids == {"check_recommendations"}
    assert daily.get_task("score_users").bash_command.endswith(" --if-champion")


def test_a_new_basis_is_asked_for_by_name_from_its_fitting_on(dags):
    """Nothing but its own rows is made, and nothing goes live past the gates and the measures."""
    change = dags["lte_basis_change"]
    fit, new, *others = change.topological_sort()
    make = ["--date", "2024-05-01", "--dimensions", "128", "--text-template", CONTEXT["params"]["text_template"]]
    for task, words in ((fit, [*make, "--refit"]), (new, make)):
        command = shlex.split(task.render_template(task.bash_command, CONTEXT))
        assert command[command.index("--date") :] == words
    with pytest.raises(ParamValidationError, match="Invalid input for param text_template"):
        filled(change, {"text_template": "{title}'; rm -r /"})
    for task in others:
        words = shlex.split(task.render_template(task.bash_command, CONTEXT))
        named = [after for word, after in itertools.pairwise(words) if word in ("--basis", "--to")]
        assert named == ([CONTEXT["params"]["basis"]] if task.task_id != "status" else []), task.task_id
    before_live = change.get_task("publish_lte").get_flat_relative_ids(upstream=True)
    assert {"check_item_embeddings", "check_item_encodings", "check_lte_snapshots", "monitor_lte"} <= before_live
    assert change.get_task("status").upstream_task_ids == {"push_lte", "map_bases"}


def test_a_basis_is_retired_after_the_check_from_what_is_read_to_what_it_is_made_of(dags):
    retirement = dags["lte_basis_retirement"]
    names = ("lte_live", "online_store", "lte_snapshots", "item_encodings", "item_embeddings")
    assert [task.task_id for task in retirement.topological_sort()] == [
        "check_released", *(f"retire_{name}" for name in names),
    ]  # fmt: skip
    for basis in ("", "A" * 16, "3f2ac41b907d0e55'"):
        with pytest.raises(ParamValidationError, match="Invalid input for param basis"):
            filled(retirement, {"basis": basis})


def test_a_promotion_asks_first_where_a_change_of_basis_stands(dags):
    promotion = dags["lte_promotion"]
    assert promotion.get_task("check_bases").upstream_task_ids == {"challenger"}
    assert "check_bases" in promotion.get_task("gate").get_flat_relative_ids(upstream=True)


def test_a_backfill_is_one_job_and_its_gate_and_leaves_what_is_live_alone(dags):
    backfill = dags["lte_backfill"]
    assert backfill.get_task("snapshot_range").downstream_task_ids == {"check_lte_snapshots"}
    assert [task.pool for task in backfill.tasks] == ["lte_snapshots", "data_docs"]
    for task in backfill.tasks:
        command = task.render_template(task.bash_command, CONTEXT)
        assert command.endswith(" --from 2024-01-01 --to 2024-05-01 --every 7")


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({}, "from"),
        ({"from": "2024-01-01"}, "to"),
        ({"from": "1.1.2024", "to": "2024-02-01"}, "from"),
        ({"from": "2024-01-01", "to": "2024-02-30"}, "to"),
        ({"from": "2024-01-01", "to": "2024-02-01", "step": 0}, "step"),
        ({"from": "2024-01-01", "to": "2024-02-01", "step": 1.5}, "step"),
        ({"from": "2024-01-01", "to": "2024-02-01", "step": "week"}, "step"),
    ],
)
def test_a_backfill_without_a_range_is_refused_before_it_starts(dags, params, named):
    with pytest.raises(ParamValidationError, match=f"Invalid input for param {named}: "):
        filled(dags["lte_backfill"], params)


def test_a_backfill_takes_every_date_unless_told_otherwise(dags):
    asked = {"from": "2024-01-01", "to": "2024-02-01"}
    assert filled(dags["lte_backfill"], asked) == asked | {"step": 1}


def test_an_ablation_trains_what_its_list_names(dags):
    ablation = dags["lte_ablation"]
    listing, train, report = (ablation.get_task(name) for name in ("list_trainings", "train", "report"))
    assert isinstance(train, MappedOperator)
    assert [operator.task_id for operator in train.iter_mapped_dependencies()] == ["list_trainings"]
    assert listing.output_processor('[{"variant": "prefix@20", "seed": 1}]') == [ENTRY]
    assert train.partial_kwargs["append_env"]
    assert train.partial_kwargs["bash_command"].endswith('--variant "$VARIANT" --seed "$SEED"')
    assert report.upstream_task_ids == {"train"}
    for task in (listing, report):
        words = shlex.split(task.render_template(task.bash_command, CONTEXT))
        assert words[4:] == ["--date", "2024-05-01", "--variants", "none,prefix@20", "--seeds", "2"]


def test_an_ablation_makes_every_representation_that_a_variant_reads(dags):
    words = dags["lte_ablation"].get_task("snapshot_anchors").bash_command.split()
    made = {after for word, after in itertools.pairwise(words) if word == "--representation"}
    read = {name for variant in VARIANTS.values() for name in variant.settings(Settings(), 0).model.representations}
    assert made == read


@pytest.mark.parametrize(
    ("params", "named"),
    [({"variants": "none'; rm -r /"}, "variants"), ({"variants": "$(id)"}, "variants"), ({"seeds": 0}, "seeds")],
)
def test_an_ablation_of_something_else_is_refused_before_it_starts(dags, params, named):
    with pytest.raises(ParamValidationError, match=f"Invalid input for param {named}: "):
        filled(dags["lte_ablation"], params)


def test_an_ablation_takes_all_variants_unless_told_otherwise(dags):
    assert filled(dags["lte_ablation"], {}) == {"variants": "", "seeds": 3}


PERIOD = {"test": "t", "from": "2024-01-01", "to": "2024-02-01"}


def test_a_read_out_leaves_to_the_settings_what_is_not_given(dags):
    online = dags["lte_read_out"]
    params = filled(online, PERIOD)
    commands = [task.render_template(task.bash_command, CONTEXT | {"params": params}) for task in online.tasks]
    assert [command.removeprefix("python -m ") for command in commands] == [
        "jobs.measure_test --date 2024-05-01 --test 't' --from 2024-01-01 --to 2024-02-01",
        "jobs.quality.check test_measurements --date 2024-05-01 --test 't'",
        "lte_model.online_test.read_out --date 2024-05-01 --test 't' --control 'control'",
    ]
    full = [task.render_template(task.bash_command, CONTEXT) for task in online.tasks]
    assert full[0].endswith(" --rehearse")
    assert shlex.split(full[2])[-4:] == ["--shares", "no lte=0.9,lte=0.1", "--uplift", "0.0116"]


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"test": "a b"}, "test"),
        ({"test": "'; rm -r /"}, "test"),
        ({"from": "May"}, "from"),
        ({"control": "'; rm -r /"}, "control"),
        ({"shares": "'; rm -r /"}, "shares"),
        ({"uplift": 0}, "uplift"),
        ({"rehearse": "yes"}, "rehearse"),
    ],
)
def test_a_read_out_of_no_test_is_refused_before_it_starts(dags, params, named):
    with pytest.raises(ParamValidationError, match=f"Invalid input for param {named}: "):
        filled(dags["lte_read_out"], PERIOD | params)


def filled(dag, params):
    """The params of a run that somebody starts with `params`."""
    given = copy.deepcopy(dag.params)
    given.update(params)
    return given.validate()


def test_promotion_waits_for_the_challenger_and_for_a_person(dags):
    register = dags["lte_training"].get_task("register")
    promotion = dags["lte_promotion"]
    assert [asset.name for asset in register.outlets] == ["lte_challenger"]
    assert [asset.name for asset in promotion.schedule] == ["lte_challenger"]
    approve = promotion.get_task("approve")
    assert approve.task_type == "HITLOperator"
    assert approve.options == ["Approve", "Reject"] and approve.defaults == ["Reject"]
    assert approve.response_timeout == datetime.timedelta(days=1)
    assert approve.upstream_task_ids == {"gate"} and approve.downstream_task_ids == {"answer"}
    # What was said is written down before anything moves.
    assert promotion.get_task("promote").upstream_task_ids == {"answer"}


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
    """Airflow itself is imported by now. The best of three: a busy machine is not the DAG's fault."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        bag = BundleDagBag(file, bundle_path=DAGS)
        seconds.append(time.perf_counter() - begin)
        assert list(bag.dags) == [file.stem]
    assert min(seconds) < 1


def test_every_command_line_is_accepted_by_its_module(dags, monkeypatch, tmp_path):
    """Each module's own parser takes the rendered arguments: what stops it is the settings file, which isn't there."""
    missing = tmp_path / "no-settings.toml"
    for task in _tasks(dags, "BashOperator"):
        where = f"{task.dag_id}.{task.task_id}"
        command = task.render_template(task.bash_command, CONTEXT)
        command = string.Template(command).safe_substitute(quoted(task.render_template(task.env or {}, CONTEXT)))
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


def quoted(environment):
    """The values as they stand within the double quotes of a command, where a shell takes them as they are."""
    return {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in environment.items()}


def test_what_a_person_typed_reaches_the_command_as_it_is(dags):
    task = dags["lte_rollback"].get_task("rollback")
    reason = task.render_template(task.env, CONTEXT)["REASON"]
    printed = task.bash_command.replace("python -m lte_model.registry.promotion", "printf '%s|'")
    command = task.render_template(printed, CONTEXT)
    shown = subprocess.run(
        ["bash", "-c", command], env={"REASON": reason}, stdout=subprocess.PIPE, text=True, check=True
    )
    assert shown.stdout == f"rollback|--reason|{CONTEXT['params']['reason']}|--version|3|"


def test_a_command_gets_the_logical_date_or_the_day_it_was_started_on(dags):
    task = dags["lte_daily"].get_task("snapshot_lte")
    assert task.render_template(task.bash_command, CONTEXT).endswith("--date 2024-05-01")
    by_hand = SimpleNamespace(logical_date=None, run_after=datetime.datetime(2024, 6, 2, 9, 30, tzinfo=datetime.UTC))
    assert task.render_template(task.bash_command, {"dag_run": by_hand}).endswith("--date 2024-06-02")

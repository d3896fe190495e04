"""Tests specific to one DAG: its order of tasks, its form, and the params that it refuses."""

import datetime
import itertools
import shlex

import pytest
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import ParamValidationError

from lte_model.settings import Settings
from lte_model.studies.variants import VARIANTS
from tests.dags.context import CONTEXT, ENTRY, filled


def test_what_is_live_is_scored_where_there_is_a_champion(dags):
    daily = dags["lte_daily"]
    assert daily.get_task("publish_lte").downstream_task_ids == {"push_lte", "check_champion"}
    assert daily.get_task("check_champion").downstream_task_ids == {"score_users"}
    assert daily.get_task("score_users").downstream_task_ids == {"check_recommendations"}
    assert daily.get_task("score_users").bash_command.endswith(" --if-champion")


def test_a_new_basis_is_asked_for_by_name_from_its_fitting_on(dags):
    """Every later task works on the new basis only, and publishing waits for the gates and the monitoring."""
    change = dags["lte_basis_change"]
    fit, new, *others = change.topological_sort()
    make = ["--date", "2024-05-01", "--dimensions", "128", f"--text-template={CONTEXT['params']['text_template']}"]
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
    assert train.partial_kwargs["bash_command"].endswith('--variant="$VARIANT" --seed="$SEED"')
    assert report.upstream_task_ids == {"train"}
    for task in (listing, report):
        words = shlex.split(task.render_template(task.bash_command, CONTEXT))
        assert words[4:] == ["--date", "2024-05-01", "--variants=none,prefix@20", "--seeds", "2"]


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
        "jobs.measure_test --date 2024-05-01 --test='t' --from 2024-01-01 --to 2024-02-01",
        "jobs.quality.check test_measurements --date 2024-05-01 --test='t'",
        "lte_model.online_test.read_out --date 2024-05-01 --test='t' --control='control'",
    ]
    full = [task.render_template(task.bash_command, CONTEXT) for task in online.tasks]
    assert full[0].endswith(" --rehearse")
    assert shlex.split(full[2])[-3:] == ["--shares=no lte=0.9,lte=0.1", "--uplift", "0.0116"]


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
    # The answer is recorded before an alias moves.
    assert promotion.get_task("promote").upstream_task_ids == {"answer"}

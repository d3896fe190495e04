"""Triggers `lte_ablation` in a real Airflow for two variants of a tiny shop, and follows it to its report.

The jobs of `lte_training` make its tables first; they run one after another without Airflow.
"""

from pathlib import Path

import pytest

from infra.runs.ablation import table_commands
from infra.runs.commands import Commands
from lte_model.studies.results import ablation_path, read_ablation
from lte_model.studies.variants import chosen_variants

pytestmark = [pytest.mark.e2e, pytest.mark.production, pytest.mark.timeout(3600)]

VARIANTS, SEEDS = "none,prefix", 1


def test_the_ablation_trains_each_variant_and_ends_in_its_report(installation):
    settings, date, api = installation.settings, installation.training_date, installation.stack.api
    commands = Commands(Path(settings.home))
    for command in table_commands(date, installation.first_event, chosen_variants(VARIANTS), settings):
        commands.run(command)

    run_id = api.trigger("lte_ablation", date, {"variants": VARIANTS, "seeds": SEEDS})
    installation.progress.follow("lte_ablation", {run_id: "lte_ablation"})

    tasks = api.tasks("lte_ablation", run_id)
    trainings = {task["rendered_map_index"]: task["state"] for task in tasks if task["task_id"] == "train"}
    assert trainings == {"none 0": "success", "prefix 0": "success"}
    assert {task["task_id"]: task["try_number"] for task in tasks if task["try_number"] != 1} == {}
    ablation = read_ablation(settings, date)
    assert {"none", "prefix", "popularity_7d"} <= set(ablation["sides"]) and ablation["seeds"] == SEEDS
    page = ablation_path(settings, date).with_suffix(".html").read_text(encoding="utf-8")
    assert "LTE as a prefix token, over no LTE" in page

"""An ablation's command lines, that each runs once, and its printed results."""

import datetime
import tomllib

import pytest

from infra.runs.ablation import measures_of, options, print_outcome, table_commands
from infra.runs.commands import Commands
from infra.runs.installation import STUDY_TRAINING, FeedDays, settings_text, settle
from lte_model.errors import LTEError
from lte_model.figures import from_json, to_json
from lte_model.settings import Settings
from lte_model.studies.variants import chosen_variants
from tests.lte_model.studies.test_ablation_page import made_up_ablation

pytestmark = pytest.mark.slow

DATE, SINCE = datetime.date(2024, 5, 1), datetime.date(2023, 1, 1)


def modules(commands):
    return [command.split()[0] for command in commands]


def test_tables_are_made_in_the_order_in_which_they_read_each_other():
    commands = table_commands(DATE, SINCE, chosen_variants(""), Settings())
    assert modules(commands) == [
        "jobs.ingest_items", "jobs.ingest_events", "jobs.fit_basis", "jobs.embed_items", "jobs.count_popularity",
        "lte_model.training.autoencoder", "jobs.encode_items", "jobs.snapshot_lte", "jobs.build_training_set",
    ]  # fmt: skip
    assert all("--date 2024-05-01" in command for command in commands)
    assert "jobs.ingest_events --date 2024-05-01 --since 2023-01-01" in commands
    snapshots = commands[modules(commands).index("jobs.snapshot_lte")]
    assert snapshots.split()[3:] == [
        "--anchors", "--representation", "autoencoder", "--representation", "inverse_popularity",
        "--representation", "leaking", "--representation", "recency", "--representation", "uniform",
    ]  # fmt: skip


def test_no_representation_is_made_that_no_variant_reads():
    commands = table_commands(DATE, SINCE, chosen_variants("none,prefix"), Settings())
    assert not {"lte_model.training.autoencoder", "jobs.encode_items"} & set(modules(commands))
    assert "jobs.snapshot_lte --date 2024-05-01 --anchors --representation uniform" in commands


def test_an_installation_trains_until_nothing_gets_better(tmp_path):
    written = tomllib.loads(settings_text(tmp_path, 30, 365, 30, 6, STUDY_TRAINING))
    assert written["training"] == {"patience": 2}
    feed = FeedDays(datetime.date(2010, 12, 1), datetime.date(2011, 12, 9), datetime.date(2011, 11, 20))
    arguments = options(["--data", "feed", "--lag", "20"])
    settings = settle(arguments, tmp_path / "home", tmp_path, feed, datetime.date(2011, 12, 10), STUDY_TRAINING)
    assert settings.window.lag_days == 20
    assert settings.training == Settings().training.model_copy(update={"patience": 2})


def test_a_command_that_succeeded_is_not_run_again(tmp_path, capfd):
    commands = ["lte_model.errors", "lte_model.settings", "lte_model.domain.windows"]
    Commands(tmp_path).run_all(commands, at_once=2)
    assert set((tmp_path / "done.txt").read_text().split()) == set(commands)
    capfd.readouterr()
    Commands(tmp_path).run_all(commands, at_once=2)
    assert capfd.readouterr().out.count("succeeded before, not run again") == 3


def test_a_command_that_fails_is_named_with_its_log(tmp_path, capfd):
    with pytest.raises(LTEError, match=r"lte_model.registry.versions status failed; its log: .*versions_status.log"):
        Commands(tmp_path).run("lte_model.registry.versions status")
    assert "no settings file" in capfd.readouterr().out
    assert not (tmp_path / "done.txt").exists()


def test_the_json_has_one_form(capsys):
    ablation = from_json(to_json(made_up_ablation()))
    rows = measures_of(ablation)
    assert all(list(row) == ["measure", "side", "value", "unit"] for row in rows)
    found = {(row["measure"], row["side"]): (row["value"], row["unit"]) for row in rows}
    for side, of_side in ablation["sides"].items():
        assert found["ndcg@500", side] == (of_side["metrics"]["ndcg@500"].value, "ndcg")
    assert found["ndcg@500", "best"] == found["ndcg@500", "prefix_newest"]
    assert found["attention_ratio", "prefix"] == (2.5, "ratio")
    assert ("over_constant", "prefix") not in found
    assert ("validation_ndcg@500", "popularity_7d") not in found
    print_outcome(ablation)
    text = capsys.readouterr().out
    assert "validation chose prefix_newest of 2 variants" in text and "late fusion over no LTE" in text

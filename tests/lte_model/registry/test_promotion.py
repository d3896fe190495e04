"""The gate, the move of the alias, and the rollback, on a real MLflow with SQLite."""

import concurrent.futures
import dataclasses
import datetime
import json
import sys

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from lte_model.errors import LTEError
from lte_model.evaluation import results
from lte_model.registry import promotion, versions
from lte_model.registry.gate import gate
from lte_model.tracking.lineage import CHALLENGER, CHAMPION
from lte_model.training.training_set import open_training_set
from tests.lte_model.registered import (
    FEBRUARY,
    JANUARY,
    KIND,
    aliases,
    promoted,
    publish,
    registered_of_shop,
    settings_file,
    trained,
)
from tests.lte_model.small_shop import TRAINING_DATE


def register(settings, date=JANUARY, **options):
    """Registers a new version and returns its number; each `seed` gives another model."""
    trained(settings, date, **options)
    return str(versions.register(settings, date).version)


def rule(gate, name):
    (check,) = (check for check in gate.checks if check.rule == name)
    return check


def tags(settings, number):
    return versions.version_of(settings, number).tags


# The gate.


def test_gate_passes_a_good_challenger(installation):
    number = register(installation)
    publish(installation, dataclasses.replace(KIND, basis_id="older"))
    publish(installation, KIND)
    found = gate(installation, number)
    found.require()
    assert all(str(check).startswith("ok") for check in found.checks)
    assert "\n" not in found.summary
    for words in ("version 1**", "0.1500 [0.1300, 0.1700]", "**+20.0 % [+10.0 %, +30.0 %]**", "no champion yet"):
        assert words in found.summary
    assert found.summary.endswith(f"report: `{results.report_path(installation, JANUARY)}`")
    assert promotion.challenger(installation) == {"version": "1", "training_date": "2026-01-01", "champion": ""}


@pytest.mark.parametrize(
    ("figures", "broken"),
    [
        ({"over_none": -0.2}, r"not below the model without LTE: NDCG@500 −20.0 % \[−30.0 %, −10.0 %\]"),
        ({"over_popularity": -0.11}, r"not below the popularity of 30 days: NDCG@500 −11.0 % \[−21.0 %, −1.0 %\]"),
        ({"with_lte": 104}, "enough users have an LTE: 10.0 % of the test users, at least 10.0 %"),
        ({"kind": dataclasses.replace(KIND, basis_id="0ld")}, "reads the live LTEs: .* basis_id 3f2ac41b907d, not 0ld"),
        ({"kind": dataclasses.replace(KIND, lag_days=14)}, "reads the live LTEs: .* lag_days 30, not 14"),
    ],
    ids=["none", "popularity", "coverage", "basis", "lag"],
)
def test_gate_names_the_broken_rule(installation, figures, broken):
    number = register(installation, **figures)
    publish(installation, KIND)
    with pytest.raises(LTEError, match=f"version 1 must not be promoted: {broken}"):
        gate(installation, number).require()
    assert tags(installation, number)["gate"].startswith("failed: ")
    with pytest.raises(LTEError, match=r"the gate of .* version 1 says: failed: "):
        promotion.promote(installation, number, None)
    assert aliases(installation) == {"challenger": 1}


def test_gate_lets_an_undecided_challenger_pass(installation):
    gate(installation, register(installation, over_none=-0.05)).require()


def test_gate_fails_a_model_whose_files_are_gone(installation, tmp_path):
    number = register(installation)
    (weights,) = (tmp_path / "artifacts").rglob("model.safetensors")
    weights.unlink()
    with pytest.raises(LTEError, match="loads from the registry: LTEError: there is no trained model"):
        gate(installation, number).require()


def test_a_model_of_two_representations_needs_both_live(installation):
    kind = dataclasses.replace(KIND, representation="uniform+recency")
    number = register(installation, kind=kind, representations=2)
    publish(installation, KIND)
    with pytest.raises(LTEError, match=r"reads the live LTEs: .*representation uniform, not recency"):
        gate(installation, number).require()
    publish(installation, dataclasses.replace(KIND, representation="recency"))
    gate(installation, number).require()


def test_a_representation_without_a_newer_row_is_live_all_the_same(installation):
    """A row that a later publication leaves unchanged keeps its date."""
    kind = dataclasses.replace(KIND, representation="uniform+recency")
    number = register(installation, kind=kind, representations=2)
    publish(installation, KIND)
    publish(installation, kind.of("recency"), FEBRUARY + datetime.timedelta(days=1))
    gate(installation, number).require()


def test_a_challenger_is_measured_against_the_champion_on_the_same_users(trainable_shop):
    """A model that ranks by popularity replaces one that ranks against it, and never the other way round."""
    worse, better = registered_of_shop(trainable_shop, -1), registered_of_shop(trainable_shop, 1)
    assert rule(gate(trainable_shop, worse), "not below the champion").found == "there is no champion yet"
    promotion.promote(trainable_shop, worse, None)
    over = rule(gate(trainable_shop, better), "not below the champion")
    cases = open_training_set(trainable_shop, TRAINING_DATE).cases("test")
    assert over.holds and over.found.startswith("+") and over.found.endswith(f"over version 1, {len(cases)} users")
    assert "would replace version 1" in gate(trainable_shop, better).summary
    promotion.promote(trainable_shop, better, worse)
    below = rule(gate(trainable_shop, worse), "not below the champion")
    assert not below.holds and below.found.startswith("−")
    assert rule(gate(trainable_shop, better), "not below the champion").found == "it is the champion"


def test_a_champion_that_reads_other_things_is_compared_all_the_same(trainable_shop):
    """The champion has another representation, sequence policy and catalogue; each model reads users its own way."""
    kind = open_training_set(trainable_shop, TRAINING_DATE).kind
    old = registered_of_shop(
        trainable_shop, 1, kind=dataclasses.replace(kind, representation="recency"), sequence="newest"
    )
    promoted(trainable_shop, old)
    found = gate(trainable_shop, registered_of_shop(trainable_shop, 1, seed=1))
    assert "over version 1" in rule(found, "not below the champion").found


def test_a_champion_that_cannot_read_the_test_users_is_named(trainable_shop):
    kind = open_training_set(trainable_shop, TRAINING_DATE).kind
    promoted(trainable_shop, registered_of_shop(trainable_shop, 1, kind=dataclasses.replace(kind, lag_days=14)))
    found = gate(trainable_shop, registered_of_shop(trainable_shop, 1, seed=1))
    assert not rule(found, "not below the champion").holds
    assert "version 1 can't rank its test users: the model was trained on lag_days 14" in found.broken[0]


# The alias.


def test_promotion_moves_the_aliases(trainable_shop):
    first = registered_of_shop(trainable_shop, 1)
    assert promoted(trainable_shop, first).tags["promoted_from"] == "no champion"
    second = registered_of_shop(trainable_shop, 1, seed=1)
    assert aliases(trainable_shop) == {"champion": 1, "challenger": 2}
    found = promoted(trainable_shop, second, over=first)
    assert found.tags["promoted_from"] == "version 1"
    assert datetime.datetime.fromisoformat(found.tags["promoted_at"]).tzinfo is not None
    assert promotion.promote(trainable_shop, second, first).tags == found.tags
    assert aliases(trainable_shop) == {"champion": 2, "challenger": 2, "previous": 1}
    assert [line.rpartition("; ")[2] for line in versions.status(trainable_shop)] == [
        "previous",
        "challenger, champion",
    ]


def test_promotion_that_was_killed_is_done_by_the_next(trainable_shop, monkeypatch):
    first, second = (registered_of_shop(trainable_shop, 1, seed=seed) for seed in range(2))
    promoted(trainable_shop, first)
    gate(trainable_shop, second)
    for step in ("set_model_version_tag", "set_registered_model_alias", "set_registered_model_tag"):
        with monkeypatch.context() as killed:
            killed.setattr(MlflowClient, step, lambda *_: sys.exit(1))
            with pytest.raises(SystemExit):
                promotion.promote(trainable_shop, second, first)
    promotion.promote(trainable_shop, second, first)
    assert aliases(trainable_shop) == {"champion": 2, "challenger": 2, "previous": 1}
    assert promotion.watch(trainable_shop).endswith("version 2 is champion, as on record")


def test_of_two_promotions_at_once_one_wins_and_the_other_says_why_it_lost(trainable_shop):
    numbers = [registered_of_shop(trainable_shop, 1, seed=seed) for seed in range(2)]
    for number in numbers:
        gate(trainable_shop, number)
    with concurrent.futures.ThreadPoolExecutor() as both:
        calls = [both.submit(promotion.promote, trainable_shop, number, None) for number in numbers]
    (error,) = (call.exception() for call in calls if call.exception())
    (won,) = (call.result() for call in calls if not call.exception())
    (lost,) = set(numbers) - {str(won.version)}
    assert aliases(trainable_shop)["champion"] == int(won.version)
    assert f"version {lost} is not promoted. It lost: version {won.version} became champion meanwhile" in str(error)
    assert tags(trainable_shop, lost)["promotion"].startswith(f"lost: version {won.version} became champion")


def test_a_version_that_the_gate_never_saw_is_not_promoted(installation):
    with pytest.raises(LTEError, match=r"the gate of .* version 1 says: not asked; run lte_promotion"):
        promotion.promote(installation, register(installation), None)
    assert aliases(installation) == {"challenger": 1}


def test_what_a_person_said_stays_on_the_version(installation):
    number = register(installation)
    promotion.answer(installation, number, "Reject", "anna", "the report's cohort of new users looks odd")
    said = tags(installation, number)["approval"]
    assert said.startswith("Reject by anna at 20") and said.endswith(": the report's cohort of new users looks odd")
    assert promotion.answer(installation, number, "Reject", "", "").startswith(
        "Reject, for nobody answered in time at 20"
    )
    assert aliases(installation) == {"challenger": 1}


# The rollback.


def test_a_rollback_restores_the_scores_bit_for_bit(trainable_shop):
    first, second = (registered_of_shop(trainable_shop, 1, seed=seed) for seed in range(2))
    users = pd.concat([versions.load(trainable_shop, CHALLENGER).input_example] * 3, ignore_index=True)

    def scores():
        return versions.load(trainable_shop, CHAMPION).predict(users, params={"k": 80})

    promoted(trainable_shop, first)
    before = scores()
    promoted(trainable_shop, second, over=first)
    assert not scores().equals(before)
    assert promotion.rollback(trainable_shop, "clicks fell by 3 %").version == int(first)
    pd.testing.assert_frame_equal(scores(), before, check_exact=True)
    assert aliases(trainable_shop) == {"champion": 1, "challenger": 2, "previous": 2}
    assert tags(trainable_shop, second)["rolled_back_because"] == "clicks fell by 3 %"
    assert tags(trainable_shop, first)["restored_because"] == "clicks fell by 3 %"
    assert promotion.watch(trainable_shop).endswith("version 1 is champion, as on record")
    # A second rollback returns to the version that the first one left.
    assert promotion.rollback(trainable_shop, "it was the season").version == int(second)


def test_a_rollback_needs_a_reason_and_somewhere_to_go(trainable_shop):
    first = registered_of_shop(trainable_shop, 1)
    promoted(trainable_shop, first)
    for reason, number, problem in (
        (" ", None, "needs a reason"),
        ("why", None, "has no previous"),
        ("why", first, "version 1 is the champion already"),
        ("why", "7", "has no version 7"),
    ):
        with pytest.raises(LTEError, match=problem):
            promotion.rollback(trainable_shop, reason, number)
    assert aliases(trainable_shop) == {"champion": 1, "challenger": 1}


def test_no_rollback_to_a_model_that_cannot_read_what_is_live(installation):
    old = register(installation, kind=dataclasses.replace(KIND, basis_id="older"))
    promoted(installation, old)
    new = register(installation, FEBRUARY, seed=1)
    MlflowClient().set_registered_model_alias(installation.mlflow.model_name, CHAMPION, new)
    publish(installation, KIND)
    with pytest.raises(
        LTEError, match=r"version 1 can't be champion again: reads the live LTEs: .* not older. The champion"
    ):
        promotion.rollback(installation, "why", old)
    assert aliases(installation)["champion"] == int(new)


# A champion that was set by hand.


def by_hand(settings, number):
    MlflowClient().set_registered_model_alias(settings.mlflow.model_name, CHAMPION, number)


def test_a_champion_by_hand_goes_through_the_gate(trainable_shop):
    assert promotion.watch(trainable_shop).endswith("no champion yet, as on record")
    first, worse, better = (registered_of_shop(trainable_shop, scale) for scale in (0.9, -1, 1))
    promoted(trainable_shop, first)
    by_hand(trainable_shop, worse)
    for _ in range(2):  # it reports it each day
        with pytest.raises(
            LTEError, match="version 2 was made champion by hand, in the place of version 1, and does not"
        ):
            promotion.watch(trainable_shop)
    assert tags(trainable_shop, worse)["gate"].startswith("failed: not below the champion")
    assert tags(trainable_shop, worse)["moved_by_hand"].startswith("found champion in the place of version 1 at 20")
    assert aliases(trainable_shop)["champion"] == int(worse)
    by_hand(trainable_shop, better)
    assert "version 3 was made champion by hand, in the place of version 1; it passes" in promotion.watch(
        trainable_shop
    )
    assert promotion.watch(trainable_shop).endswith("version 3 is champion, as on record")
    assert promotion.rollback(trainable_shop, "by hand").version == int(first)


def test_a_champion_that_was_taken_away_is_missed(installation):
    promoted(installation, register(installation))
    MlflowClient().delete_registered_model_alias(installation.mlflow.model_name, CHAMPION)
    with pytest.raises(LTEError, match="has no champion: its alias was removed by hand, it was version 1; run"):
        promotion.watch(installation)
    promotion.rollback(installation, "put back", "1")
    assert promotion.watch(installation).endswith("version 1 is champion, as on record")


def test_command_lines(installation, tmp_path, monkeypatch, capsys):
    register(installation)
    file = settings_file(installation, tmp_path)
    name = installation.mlflow.model_name

    def lines(*command):
        monkeypatch.setattr(sys, "argv", ["promotion", *command, "--settings", str(file)])
        promotion.main()
        return capsys.readouterr().out.splitlines()

    (listed,) = lines("challenger")
    assert json.loads(listed) == [{"version": "1", "training_date": "2026-01-01", "champion": ""}]
    checks = lines("gate", "--version", "1")
    assert len(checks) == 9 and checks[-1].startswith(f"**{name} version 1**")
    with pytest.raises(SystemExit) as skipped:
        lines("promote", "--version", "1", "--over", "", "--answer", "Reject")
    assert skipped.value.code == 99 and aliases(installation) == {"challenger": 1}
    assert "the answer was Reject" in capsys.readouterr().out
    assert lines("promote", "--version", "1", "--over", "") == [f"{name} version 1 is champion"]
    assert lines("answer", "--version", "1", "--answer", "Approve", "--by", "anna")[0].startswith("Approve by anna at ")
    assert lines("watch") == [f"{name}: version 1 is champion, as on record"]

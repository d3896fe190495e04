"""Promotes a challenger to champion, and rolls back. Readers follow the alias `champion`, which moves in one step.

    python -m lte_model.registry.promotion challenger            what a person is asked to approve, as JSON
    python -m lte_model.registry.promotion gate --version V      exits with 2 where it must not be promoted
    python -m lte_model.registry.promotion answer --version V --answer A --by NAME --reason R
                                                                 records what a person answered
    python -m lte_model.registry.promotion promote --version V --over C
                                                                 V replaces the champion C ("" for none)
    python -m lte_model.registry.promotion rollback --reason R [--version V]
                                                                 the previous champion, or V, is champion again
    python -m lte_model.registry.promotion watch                 checks a champion that was set by hand

A challenger passes the gate when each of these holds:

1. it loads from the registry and ranks its own input example;
2. its NDCG isn't significantly below that of the same model without LTE: the 95 % interval of the difference, paired
   by user, doesn't lie entirely below 0;
3. its NDCG isn't significantly below that of the popularity of the last 30 days;
4. its NDCG isn't significantly below the champion's, which ranks the targets of the same test users;
5. enough of the test users have an LTE: `gates.min_lte_coverage`;
6. it reads the LTEs that are live: those of the newest date in `publications` have its basis, representation, lag and
   window;
7. its basis and the champion's are in force, so that both stay published: a rollback needs the champion's;
8. if the two bases differ, enough users with a live LTE in the champion's basis have one in its own:
   `gates.min_basis_coverage`. In rule 4, each model then reads the LTEs of its own basis. basis_change.py describes a
   change of basis.

The answers of the gate and of the person stay on the version as tags. The model's tag `champion_on_record` repeats the
alias, so that `watch` notices an alias that a person moved in MLflow's pages.
"""

import datetime
import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from lte_model.command_line import CommandParser, run
from lte_model.errors import LTEError
from lte_model.files import one_at_a_time
from lte_model.registry import versions
from lte_model.registry.gate import GATE_PASSED, GATE_TAG, bases_stay_in_force, gate, loads, reads_live_ltes, run_gate
from lte_model.registry.in_force import out_of_force
from lte_model.registry.version_tags import full_name, is_ours, own_tags
from lte_model.registry.versions import champion_number, or_none, own_version
from lte_model.settings import Settings
from lte_model.tracking.lineage import CHALLENGER, CHAMPION, ON_RECORD, PREVIOUS, registered_model

APPROVAL_TAG = "approval"
"""The version tag that holds a person's answer."""

APPROVE = "Approve"
NOTHING_TO_DO = 99
"""The exit code that marks an Airflow task as skipped."""


def challenger(settings: Settings) -> dict[str, str]:
    """The current challenger, the date of its training, and the champion it would replace ("" for none).

    Later steps name this version, because another training may register a challenger meanwhile.
    Raises `LTEError` where there is no challenger, and where it isn't ours.
    """
    version = versions.required_version(settings, CHALLENGER)
    return {
        "version": str(version.version),
        "training_date": own_tags(version)["training_date"],
        "champion": champion_number(settings) or "",
    }


def promote(settings: Settings, number: str, over: str | None) -> ModelVersion:
    """Makes version `number` champion in place of version `over` (None: there was none), which becomes `previous`.

    Idempotent. Raises `LTEError` where the version didn't pass the gate, where another version than `over`, with which
    the gate compared it, is champion now, and where the LTEs that it reads are no longer live or in force.
    """
    with _alone(settings):
        version = own_version(settings, number)
        answer = version.tags.get(GATE_TAG, "not asked")
        if answer != GATE_PASSED:
            raise LTEError(f"the gate of {full_name(version)} says: {answer}; run lte_promotion for it")
        champion = champion_number(settings)
        if champion not in (over, number):
            reason = f"lost: version {champion} became champion meanwhile, and it was compared with {or_none(over)}"
            MlflowClient().set_model_version_tag(version.name, number, "promotion", reason)
            raise LTEError(f"{full_name(version)} is not promoted. It {reason}; run lte_promotion for it again")
        if champion != number:
            for check in (reads_live_ltes(settings, version), bases_stay_in_force(settings, version, champion)):
                if not check.holds:
                    raise LTEError(
                        f"{full_name(version)} is not promoted: since the gate {check.rule} no more: {check.found}"
                    )
            _tag(version, promoted_at=_now(), promoted_from=or_none(champion), promotion="won")
        _move(version, champion)
        return versions.version_of(settings, number)


def answer(settings: Settings, number: str, given: str, by: str, reason: str) -> str:
    """Records a person's answer on the version. `by` is empty where nobody answered before the deadline."""
    version = versions.version_of(settings, number)
    said = f"{given} by {by}" if by else f"{given}, for nobody answered in time"
    said += f" at {_now()}" + (f": {reason}" if reason else "")
    _tag(version, **{APPROVAL_TAG: said})
    return said


def rollback(settings: Settings, reason: str, number: str | None = None) -> ModelVersion:
    """Makes the previous champion, or version `number`, champion again; the current one becomes `previous`.

    Both are tagged with the reason. Raises `LTEError` without a reason or a version to go back to, and for a version
    that isn't ours, doesn't load or can't read the live LTEs: then the LTEs must be rolled back first.
    """
    if not reason.strip():
        raise LTEError("a rollback needs a reason, for those who ask later; give it with --reason")
    with _alone(settings):
        version = versions.version_of(settings, number) if number else versions.required_version(settings, PREVIOUS)
        own_tags(version)
        champion = champion_number(settings)
        if champion == str(version.version):
            raise LTEError(f"{full_name(version)} is the champion already; give --version to go back to another")
        checks = (
            loads(settings, version),
            reads_live_ltes(settings, version),
            bases_stay_in_force(settings, version, None),
        )
        broken = [check for check in checks if not check.holds]
        if broken:
            raise LTEError(
                f"{full_name(version)} can't be champion again: {broken[0].rule}: {broken[0].found}. The champion "
                "stays; give --version to go back to another, or publish what this one reads"
            )
        if champion is not None:
            left = versions.version_of(settings, champion)
            _tag(left, rolled_back_at=_now(), rolled_back_because=reason)
            if not is_ours(left):
                champion = None  # nobody can go back to it, so that `previous` stays as it is
        _tag(version, restored_at=_now(), restored_because=reason)
        _move(version, champion)
        return versions.version_of(settings, str(version.version))


def watch(settings: Settings) -> str:
    """Says which version is champion; runs the gate on a champion whose alias was moved by hand.

    A version that passes becomes the champion on record. Raises `LTEError` where it fails, on every call until somebody
    rolls back, where the alias was removed, and where the champion isn't ours or reads a basis that isn't in force.
    """
    with _alone(settings):
        if problem := out_of_force(settings, CHAMPION).get(CHAMPION):
            raise LTEError(problem)
        name, champion = settings.mlflow.model_name, champion_number(settings)
        model = registered_model(MlflowClient(), name)
        on_record = model.tags.get(ON_RECORD) if model else None
        if champion == on_record:
            return (
                f"{name}: {'no champion yet' if champion is None else f'version {champion} is champion'}, as on record"
            )
        if champion is None:
            raise LTEError(
                f"{name} has no champion: its alias was removed by hand, it was version {on_record}; "
                f"run python -m lte_model.registry.promotion rollback --version {on_record} --reason R"
            )
        version = versions.version_of(settings, champion)
        _tag(version, moved_by_hand=f"found champion in the place of {or_none(on_record)} at {_now()}")
        found = run_gate(settings, version, on_record)
        moved = f"{full_name(version)} was made champion by hand, in the place of {or_none(on_record)}"
        if found.broken:
            raise LTEError(
                f"{moved}, and does not pass the gate: {'; '.join(found.broken)}. "
                + (
                    f"Run python -m lte_model.registry.promotion rollback --version {on_record} --reason R"
                    if on_record
                    else "Remove the alias in MLflow, or promote another"
                )
            )
        _move(version, on_record)
        return f"{moved}; it passes the gate, and is on record now"


def _move(version: ModelVersion, champion: str | None) -> None:
    """Points the alias `champion` at the version, and `previous` at the old `champion`. Idempotent.

    `previous` moves first, then `champion`, each in one step: after a kill, the next call completes the move.
    """
    client, name, number = MlflowClient(), version.name, str(version.version)
    if champion not in (None, number):
        client.set_registered_model_alias(name, PREVIOUS, champion)
    client.set_registered_model_alias(name, CHAMPION, number)
    client.set_registered_model_tag(name, ON_RECORD, number)


def _alone(settings: Settings) -> AbstractContextManager[None]:
    """Locks out other promotions on this machine; Airflow's pool `model_registry` does so across machines."""
    Path(settings.home).mkdir(parents=True, exist_ok=True)
    return one_at_a_time(Path(settings.home, "promotion.lock"))


def _tag(version: ModelVersion, **tags: str) -> None:
    for key, value in tags.items():
        MlflowClient().set_model_version_tag(version.name, version.version, key, value)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser("Checks, promotes and rolls back versions of the ranker.")
    made = {}
    for name, description in (
        ("challenger", "prints the challenger, its training date and the champion, as JSON"),
        ("gate", "checks whether a version may be promoted"),
        ("promote", "makes a version the champion"),
        ("answer", "keeps what a person said of a version"),
        ("rollback", "makes the previous champion, or a version, champion again"),
        ("watch", "checks a champion that was put there by hand"),
    ):
        made[name] = parser.add_command(name, description)
    for name in ("gate", "promote", "answer"):
        made[name].add_argument("--version", required=True, help="its number")
    made["promote"].add_argument("--over", required=True, help="the champion it was compared with; empty for none")
    made["promote"].add_argument("--answer", default=APPROVE, help="what a person said; only Approve promotes")
    made["answer"].add_argument("--answer", required=True, help="what the person chose")
    made["answer"].add_argument("--by", required=True, help="who; empty where nobody answered")
    made["answer"].add_argument("--reason", default="", help="in the person's words")
    made["rollback"].add_argument("--reason", required=True, help="why, for those who ask later")
    made["rollback"].add_argument("--version", help="the version to go back to (default: the previous champion)")
    arguments, settings = parser.read_settings()
    match arguments.command:
        case "challenger":
            print(json.dumps([challenger(settings)]))
        case "gate":
            found = gate(settings, arguments.version)
            for check in found.checks:
                print(check)
            found.require()
            print(found.summary)
        case "promote":
            if arguments.answer != APPROVE:
                print(f"version {arguments.version} is not promoted: the answer was {arguments.answer}")
                sys.exit(NOTHING_TO_DO)
            print(f"{full_name(promote(settings, arguments.version, arguments.over or None))} is {CHAMPION}")
        case "answer":
            print(answer(settings, arguments.version, arguments.answer, arguments.by, arguments.reason))
        case "rollback":
            print(f"{full_name(rollback(settings, arguments.reason, arguments.version))} is {CHAMPION} again")
        case "watch":
            print(watch(settings))


if __name__ == "__main__":
    run(main)

"""From challenger to champion, and back. A reader follows the alias `champion`, and finds one version or the other.

    python -m lte_model.promotion challenger                 what is put before a person, as JSON
    python -m lte_model.promotion gate --version V           checks it; exits with 2 where it must not be promoted
    python -m lte_model.promotion answer --version V --answer A --by NAME --reason R   keeps what a person said
    python -m lte_model.promotion promote --version V --over C   champion in the place of version C ("" for none)
    python -m lte_model.promotion rollback --reason R [--version V]   the previous champion, or V, is champion again
    python -m lte_model.promotion watch                      checks a champion that was put there by hand

The gate lets a challenger pass when each of these holds:

1. it loads from the registry and ranks its own input example;
2. its NDCG isn't significantly below that of the same model without LTE: the 95 % interval of the difference, paired
   by user, doesn't lie below 0 as a whole;
3. the same against the popularity of the last 30 days;
4. the same against the champion, which ranks the targets of the same test users;
5. enough of the test users have an LTE: `gates.min_lte_coverage`;
6. it reads the LTEs that are live: those of the newest date in `publications` have its basis, representation, lag and
   window;
7. its basis and the champion's are in force, so that both go on being published: a rollback needs the other one;
8. where they differ, enough of the users with a live LTE of the champion's basis have one in its own:
   `gates.min_basis_coverage`. By 4 each then ranks by the LTEs of its own basis. The way from one basis to another is in
   basis_change.py.

What the gate and the person said stays on the version, as tags. Which version is champion is written down beside the
alias (tag `champion_on_record` of the model), so that an alias that a person moved in MLflow's own pages is noticed.
"""

import argparse
import contextlib
import datetime
import fcntl
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from lte_model import registry, tracking, verdict
from lte_model.basis_change import DAYS_BEHIND, named, out_of_force, publications
from lte_model.errors import LTEError, run
from lte_model.lineage import CHAMPION, numbers_by_alias, registered_model
from lte_model.registry import CHALLENGER, KIND, PREVIOUS, SIDE
from lte_model.settings import Settings, load_settings
from lte_model.verdict import OVER_NONE, OVER_POPULARITY, Outcome

GATE_TAG, GATE_PASSED = "gate", "passed"
"""The tag of a version with what the gate said of it."""

APPROVAL_TAG = "approval"
"""The tag of a version with what a person said of it."""

APPROVE = "Approve"
NOTHING_TO_DO = 99
"""The exit code by which Airflow takes a task for skipped."""

ON_RECORD = "champion_on_record"
"""The tag of the model with the version that was promoted last by the commands of this file."""


@dataclass(frozen=True)
class Check:
    """One rule of the gate, whether it holds, and the figures that say so."""

    rule: str
    holds: bool
    found: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.holds else 'FAILED'}  {self.rule}: {self.found}"


@dataclass(frozen=True)
class Gate:
    """What the gate found about a version; `summary` is one line of Markdown for the person who approves."""

    version: ModelVersion
    checks: tuple[Check, ...]
    summary: str

    @property
    def broken(self) -> list[str]:
        """Every broken rule with its figures."""
        return [f"{check.rule}: {check.found}" for check in self.checks if not check.holds]

    def require(self) -> None:
        """Raises `LTEError` where a rule is broken."""
        if self.broken:
            raise LTEError(
                f"{_name(self.version)} must not be promoted: {'; '.join(self.broken)}. "
                f"The champion stays; look at the report of {self.version.tags['training_date']}"
            )


def challenger(settings: Settings) -> dict[str, str]:
    """The version that is challenger now, the date of its training, and the champion it would replace ("" for none).

    What follows names the version: another training may register a challenger while a person looks at this one.
    Raises `LTEError` where there is no challenger.
    """
    version = registry.version_with(settings, CHALLENGER)
    return {
        "version": str(version.version),
        "training_date": version.tags["training_date"],
        "champion": _champion(settings) or "",
    }


def gate(settings: Settings, number: str) -> Gate:
    """Checks version `number` by the rules above, against the champion of this moment, and leaves the answer on the
    version, where `promote` asks for it. Raises `LTEError` where there is no such version."""
    version = registry.version_of(settings, number)
    return _gate(settings, version, _champion(settings))


def _gate(settings: Settings, version: ModelVersion, champion: str | None) -> Gate:
    checks = (
        _loads(settings, version),
        _not_below(version, OVER_NONE, "not below the model without LTE"),
        _not_below(version, OVER_POPULARITY, "not below the popularity of 30 days"),
        _not_below_champion(settings, version, champion),
        _covers(settings, version),
        _reads_live_ltes(settings, version),
        _bases_stay_in_force(settings, version, champion),
        _has_the_champions_users(settings, version, champion),
    )
    found = Gate(version, checks, _summary(settings, version, champion))
    answer = f"failed: {'; '.join(found.broken)}" if found.broken else GATE_PASSED
    MlflowClient().set_model_version_tag(version.name, version.version, GATE_TAG, answer)
    return found


def promote(settings: Settings, number: str, over: str | None) -> ModelVersion:
    """Makes version `number` champion in the place of version `over` (None: there was none), which becomes `previous`.

    A second call changes nothing. Raises `LTEError` where the gate didn't let the version pass, and where after that
    another version became champion, for it was compared with one that is gone, or the LTEs that it reads went.
    """
    with _one_at_a_time(settings):
        version = registry.version_of(settings, number)
        answer = version.tags.get(GATE_TAG, "not asked")
        if answer != GATE_PASSED:
            raise LTEError(f"the gate of {_name(version)} says: {answer}; run lte_promotion for it")
        champion = _champion(settings)
        if champion not in (over, number):
            reason = f"lost: version {champion} became champion meanwhile, and it was compared with {_or_none(over)}"
            MlflowClient().set_model_version_tag(version.name, number, "promotion", reason)
            raise LTEError(f"{_name(version)} is not promoted. It {reason}; run lte_promotion for it again")
        if champion != number:
            for check in (_reads_live_ltes(settings, version), _bases_stay_in_force(settings, version, champion)):
                if not check.holds:
                    raise LTEError(
                        f"{_name(version)} is not promoted: since the gate {check.rule} no more: {check.found}"
                    )
            _tag(version, promoted_at=_now(), promoted_from=_or_none(champion), promotion="won")
        _move(version, champion)
        return registry.version_of(settings, number)


def answer(settings: Settings, number: str, given: str, by: str, reason: str) -> str:
    """Keeps on the version what a person said of it. `by` is empty where nobody did before the deadline."""
    version = registry.version_of(settings, number)
    said = f"{given} by {by}" if by else f"{given}, for nobody answered in time"
    said += f" at {_now()}" + (f": {reason}" if reason else "")
    _tag(version, **{APPROVAL_TAG: said})
    return said


def rollback(settings: Settings, reason: str, number: str | None = None) -> ModelVersion:
    """Makes the previous champion, or version `number`, champion again; the one that is now becomes `previous`.

    The reason stays on both. Raises `LTEError` without a reason or a version to go back to, and for a version that
    doesn't load or can't read the LTEs that are live: then the LTEs must go back first.
    """
    if not reason.strip():
        raise LTEError("a rollback needs a reason, for those who ask later; give it with --reason")
    with _one_at_a_time(settings):
        version = registry.version_of(settings, number) if number else registry.version_with(settings, PREVIOUS)
        champion = _champion(settings)
        if champion == str(version.version):
            raise LTEError(f"{_name(version)} is the champion already; give --version to go back to another")
        checks = (
            _loads(settings, version),
            _reads_live_ltes(settings, version),
            _bases_stay_in_force(settings, version, None),
        )
        broken = [check for check in checks if not check.holds]
        if broken:
            raise LTEError(
                f"{_name(version)} can't be champion again: {broken[0].rule}: {broken[0].found}. The champion stays; "
                "give --version to go back to another, or publish what this one reads"
            )
        if champion is not None:
            _tag(registry.version_of(settings, champion), rolled_back_at=_now(), rolled_back_because=reason)
        _tag(version, restored_at=_now(), restored_because=reason)
        _move(version, champion)
        return registry.version_of(settings, str(version.version))


def watch(settings: Settings) -> str:
    """Says who is champion; where a person moved the alias by hand, the same gate runs on what was promoted.

    Passes the gate what is there now, it is on record from then on. Raises `LTEError` where it doesn't, each time
    until somebody rolls back, where the alias was taken away, and where the champion reads a basis that isn't in force.
    """
    with _one_at_a_time(settings):
        if problem := out_of_force(settings).get(CHAMPION):
            raise LTEError(problem)
        name, champion = settings.mlflow.model_name, _champion(settings)
        model = registered_model(MlflowClient(), name)
        on_record = model.tags.get(ON_RECORD) if model else None
        if champion == on_record:
            return (
                f"{name}: {'no champion yet' if champion is None else f'version {champion} is champion'}, as on record"
            )
        if champion is None:
            raise LTEError(
                f"{name} has no champion: its alias was removed by hand, it was version {on_record}; "
                f"run python -m lte_model.promotion rollback --version {on_record} --reason R"
            )
        version = registry.version_of(settings, champion)
        _tag(version, moved_by_hand=f"found champion in the place of {_or_none(on_record)} at {_now()}")
        found = _gate(settings, version, on_record)
        moved = f"{_name(version)} was made champion by hand, in the place of {_or_none(on_record)}"
        if found.broken:
            raise LTEError(
                f"{moved}, and does not pass the gate: {'; '.join(found.broken)}. "
                + (
                    f"Run python -m lte_model.promotion rollback --version {on_record} --reason R"
                    if on_record
                    else "Remove the alias in MLflow, or promote another"
                )
            )
        _move(version, on_record)
        return f"{moved}; it passes the gate, and is on record now"


# The rules.


def _loads(settings: Settings, version: ModelVersion) -> Check:
    rule = "loads from the registry"
    try:
        model = registry.load_version(settings, version)
        ranked = model.predict(model.input_example)
    except Exception as error:  # noqa: BLE001 - whatever fails here would fail where it is served
        return Check(rule, False, " ".join(f"{type(error).__name__}: {error}".split()))
    finite = all(math.isfinite(score) for scores in ranked["scores"] for score in scores)
    items = sum(map(len, ranked["item_ids"]))
    return Check(rule, finite and items > 0, f"{items} items ranked for {len(ranked)} example users"
                 + ("" if finite else ", but a score is not a number"))  # fmt: skip


def _not_below(version: ModelVersion, comparison: str, rule: str) -> Check:
    uplift = registry.figure(version, comparison)
    found = f"{verdict.metric_label(version.tags['headline_metric'])} {registry.uplift(version, comparison)}"
    return Check(rule, verdict.is_defined(uplift) and verdict.outcome(uplift) is not Outcome.WORSE, found)


def _not_below_champion(settings: Settings, version: ModelVersion, champion: str | None) -> Check:
    rule = "not below the champion"
    if champion is None:
        return Check(rule, True, "there is no champion yet")
    if champion == str(version.version):
        return Check(rule, True, "it is the champion")
    from lte_model.evaluation import over_champion  # torch is for those who rank
    from lte_model.model import load_ranker

    training_date = datetime.date.fromisoformat(version.tags["training_date"])
    try:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = (
                load_ranker(registry.fetch(settings, of, Path(folder, str(of.version))))
                for of in (version, registry.version_of(settings, champion))
            )
        uplift, users = over_champion(settings, training_date, ours, theirs)
    except LTEError as error:
        return Check(rule, False, f"version {champion} can't rank its test users: {error}")
    found = (
        f"{verdict.percent(uplift['value'])} {verdict.percent_interval(uplift)} over version {champion}, {users} users"
    )
    return Check(rule, verdict.outcome(uplift) is not Outcome.WORSE, found)


def _covers(settings: Settings, version: ModelVersion) -> Check:
    share = int(version.tags["test_users_with_lte"]) / int(version.tags["test_users"])
    least = settings.gates.min_lte_coverage
    found = f"{verdict.percent(share, signed=False)} of the test users, at least {verdict.percent(least, signed=False)}"
    return Check("enough users have an LTE", share >= least, found)


def _reads_live_ltes(settings: Settings, version: ModelVersion) -> Check:
    rule, published = "reads the live LTEs", publications(settings)
    if not published:
        return Check(rule, True, "nothing is published yet")
    tags = version.tags
    # A model of several representations, joined by +, reads each of them.
    wanted = [
        {field: tags[field] for field in KIND} | {"representation": name} for name in registry.representations_of(tags)
    ]
    newest = {row["representation"]: row["snapshot_date"] for row in sorted(published, key=_date_of)}
    live = {
        tuple(str(row[field]) for field in KIND): row["snapshot_date"]
        for row in published
        if (newest[row["representation"]] - row["snapshot_date"]).days <= DAYS_BEHIND
    }
    date = max(newest.values())
    missing = [kind for kind in wanted if tuple(kind.values()) not in live]
    if not missing:
        return Check(rule, True, f"those of {date} have its basis {tags['basis_id']}")
    stopped = [row for row in published if all(str(row[field]) == missing[0][field] for field in KIND)]
    if stopped:
        last = f"those of {date} are live, and of its basis {tags['basis_id']} only those of {_date_of(stopped[0])}"
        return Check(rule, False, f"{last}: put it into basis.beside and run lte_daily for {date}")
    differences = [
        ", ".join(
            f"{field} {found}, not {missing[0][field]}"
            for field, found in zip(KIND, kind, strict=True)
            if found != missing[0][field]
        )
        for kind in live
    ]
    return Check(rule, False, f"those of {date} have {'; or '.join(differences)}")


def _date_of(publication: dict) -> datetime.date:
    return publication["snapshot_date"]


def _bases_stay_in_force(settings: Settings, version: ModelVersion, champion: str | None) -> Check:
    """The basis of the version, and that of the champion, which a rollback would read."""
    rule, names = "its basis, and the champion's, are in force", named(settings)
    if not names:
        return Check(rule, True, "the settings leave it to the only one that is registered")
    numbers = [number for number in (str(version.version), champion) if number is not None]
    read = {number: registry.version_of(settings, number).tags["basis_id"] for number in numbers}
    missing = [f"version {number} reads basis {basis}" for number, basis in read.items() if basis not in names]
    if missing:
        wrong = f"{', '.join(missing)}, and in force is {', '.join(names)}"
        return Check(rule, False, f"{wrong}: add it to basis.beside, so that its LTEs go on being made")
    return Check(rule, True, ", ".join(dict.fromkeys(read.values())))


def _has_the_champions_users(settings: Settings, version: ModelVersion, champion: str | None) -> Check:
    """Where the basis changes: whoever has an LTE that the champion reads has one that the version reads."""
    rule = "its basis has the LTEs of the champion's users"
    if champion is None:
        return Check(rule, True, "there is no champion yet")
    theirs = registry.version_of(settings, champion).tags
    if theirs["basis_id"] == version.tags["basis_id"]:
        return Check(rule, True, "it is the champion's basis")
    if not publications(settings):
        return Check(rule, False, "nothing is published yet; run lte_daily with both bases in force")
    live = pl.scan_delta(settings.table_path("lte_live"))

    def users(tags: Mapping[str, str], name: str) -> pl.LazyFrame:
        return live.filter(basis_id=tags["basis_id"], representation=name).select("user_id").unique()

    of_champion = pl.concat([users(theirs, name) for name in registry.representations_of(theirs)]).unique()
    shares = [
        of_champion.join(users(version.tags, name).with_columns(has_one=True), "user_id", "left")
        .select(pl.col("has_one").fill_null(False).mean())
        .collect()
        .item()
        for name in registry.representations_of(version.tags)
    ]
    share = min(1.0 if found is None else found for found in shares)
    least = settings.gates.min_basis_coverage
    found = (
        f"{verdict.percent(share, signed=False)} of those of basis {theirs['basis_id']} have one in basis "
        f"{version.tags['basis_id']}, at least {verdict.percent(least, signed=False)}"
    )
    return Check(rule, share >= least, found)


def _summary(settings: Settings, version: ModelVersion, champion: str | None) -> str:
    """One line of Markdown with what a person needs to approve or refuse."""
    tags = version.tags
    if champion is None:
        place = "there is no champion yet"
    elif champion == str(version.version):
        place = "it is the champion already"
    else:
        old = registry.version_of(settings, champion)
        place = (
            f"would replace version {champion} (training of {old.tags['training_date']}, "
            f"{registry.with_interval(old, SIDE, old.tags['headline_metric'])} on its own test days"
            + (f", of basis `{old.tags['basis_id']}`)" if old.tags["basis_id"] != tags["basis_id"] else ")")
        )
    return (
        f"**{_name(version)}**, training of {tags['training_date']}, "
        f"basis `{tags['basis_id']}`: {registry.with_interval(version, SIDE, tags['headline_metric'])}, "
        f"without LTE {registry.measured(version, 'none')}, "
        f"popularity of 30 days {registry.measured(version, 'popularity_30d')}; "
        f"LTE over none **{registry.uplift(version, OVER_NONE)}**, {tags['test_users']} test users; {place}; "
        f"report: `{verdict.report_path(settings, datetime.date.fromisoformat(tags['training_date']))}`"
    )


# The alias and its record.


def _champion(settings: Settings) -> str | None:
    """The number of the champion's version."""
    tracking.configure(settings)
    return numbers_by_alias(MlflowClient(), settings.mlflow.model_name).get(CHAMPION)


def _move(version: ModelVersion, champion: str | None) -> None:
    """Points `champion` at the version, and `previous` at the `champion` before it. The same again changes nothing.

    The alias `champion` moves in one step, and after `previous`: whatever a kill leaves, the next call does the rest.
    """
    client, name, number = MlflowClient(), version.name, str(version.version)
    if champion not in (None, number):
        client.set_registered_model_alias(name, PREVIOUS, champion)
    client.set_registered_model_alias(name, CHAMPION, number)
    client.set_registered_model_tag(name, ON_RECORD, number)


@contextlib.contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    """Two promotions on one machine follow each other; between machines, Airflow's pool `model_registry` sees to it."""
    Path(settings.home).mkdir(parents=True, exist_ok=True)
    with open(Path(settings.home, "promotion.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the file, or with the process
        yield


def _tag(version: ModelVersion, **tags: str) -> None:
    for key, value in tags.items():
        MlflowClient().set_model_version_tag(version.name, version.version, key, value)


def _name(version: ModelVersion) -> str:
    return f"{version.name} version {version.version}"


def _or_none(number: str | None) -> str:
    return "no champion" if number is None else f"version {number}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lte_model.promotion", description="Checks, promotes and rolls back versions of the ranker."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    made = {}
    for name, description in (
        ("challenger", "prints the challenger, its training date and the champion, as JSON"),
        ("gate", "checks whether a version may be promoted"),
        ("promote", "makes a version the champion"),
        ("answer", "keeps what a person said of a version"),
        ("rollback", "makes the previous champion, or a version, champion again"),
        ("watch", "checks a champion that was put there by hand"),
    ):
        made[name] = commands.add_parser(name, help=description, description=description)
        made[name].add_argument("--settings", help="settings file (default: the one that LTE_SETTINGS names)")
    for name in ("gate", "promote", "answer"):
        made[name].add_argument("--version", required=True, help="its number")
    made["promote"].add_argument("--over", required=True, help="the champion it was compared with; empty for none")
    made["promote"].add_argument("--answer", default=APPROVE, help="what a person said; only Approve promotes")
    made["answer"].add_argument("--answer", required=True, help="what the person chose")
    made["answer"].add_argument("--by", required=True, help="who; empty where nobody answered")
    made["answer"].add_argument("--reason", default="", help="in the person's words")
    made["rollback"].add_argument("--reason", required=True, help="why, for those who ask later")
    made["rollback"].add_argument("--version", help="the version to go back to (default: the previous champion)")
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings)
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
            print(f"{_name(promote(settings, arguments.version, arguments.over or None))} is {CHAMPION}")
        case "answer":
            print(answer(settings, arguments.version, arguments.answer, arguments.by, arguments.reason))
        case "rollback":
            print(f"{_name(rollback(settings, arguments.reason, arguments.version))} is {CHAMPION} again")
        case "watch":
            print(watch(settings))


if __name__ == "__main__":
    run(main)

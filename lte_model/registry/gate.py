"""The gate: the rules that a challenger must meet to become champion; promotion.py lists them."""

import datetime
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from lte_model import figures
from lte_model.domain.kind import KIND_FIELDS
from lte_model.domain.representations import split_names
from lte_model.errors import LTEError
from lte_model.evaluation import results
from lte_model.evaluation.results import OVER_NONE, OVER_POPULARITY
from lte_model.figures import Figure, Outcome
from lte_model.registry import version_tags, versions
from lte_model.registry.in_force import DAYS_BEHIND, named_bases, publications
from lte_model.registry.version_tags import full_name, own_tags, read_tag
from lte_model.registry.versions import SIDE, champion_number, own_version
from lte_model.settings import Settings
from lte_model.warehouse.reading import scan

if TYPE_CHECKING:
    import pandas as pd

GATE_TAG, GATE_PASSED = "gate", "passed"
"""The version tag that holds the gate's answer, and that answer for a version that passed."""


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
                f"{full_name(self.version)} must not be promoted: {'; '.join(self.broken)}. "
                f"The champion stays; look at the report of {self.version.tags['training_date']}"
            )


def gate(settings: Settings, number: str) -> Gate:
    """Checks version `number` against the rules and the current champion.

    The answer becomes a tag of the version, which `promote` reads. Raises `LTEError` where there is no such version,
    and where it or the champion isn't ours.
    """
    return run_gate(settings, versions.version_of(settings, number), champion_number(settings))


def run_gate(settings: Settings, version: ModelVersion, champion: str | None) -> Gate:
    """Runs every check of the version and tags it; `champion` is a version number, or None where there is none.

    Raises `LTEError` where one of the two isn't ours.
    """
    own_tags(version)
    if champion is not None:
        own_version(settings, champion)
    checks = (
        loads(settings, version),
        _not_below(version, OVER_NONE, "not below the model without LTE"),
        _not_below(version, OVER_POPULARITY, "not below the popularity of 30 days"),
        _not_below_champion(settings, version, champion),
        _covers(settings, version),
        reads_live_ltes(settings, version),
        bases_stay_in_force(settings, version, champion),
        _has_the_champions_users(settings, version, champion),
    )
    found = Gate(version, checks, _summary(settings, version, champion))
    answer = f"failed: {'; '.join(found.broken)}" if found.broken else GATE_PASSED
    MlflowClient().set_model_version_tag(version.name, version.version, GATE_TAG, answer)
    return found


# The rules.


def loads(settings: Settings, version: ModelVersion) -> Check:
    """Whether the version loads from the registry and ranks its own input example."""
    rule = "loads from the registry"
    try:
        model = versions.load_version(settings, version)
        ranked: pd.DataFrame = model.predict(model.input_example)
    except Exception as error:  # any failure here would occur in serving, too
        return Check(rule, False, " ".join(f"{type(error).__name__}: {error}".split()))
    finite = all(math.isfinite(score) for scores in ranked["scores"] for score in scores)
    items = sum(map(len, ranked["item_ids"]))
    return Check(rule, finite and items > 0, f"{items} items ranked for {len(ranked)} example users"
                 + ("" if finite else ", but a score is not a number"))  # fmt: skip


def _not_below(version: ModelVersion, comparison: str, rule: str) -> Check:
    uplift = version_tags.figure(version, comparison)
    return Check(rule, _is_not_worse(uplift), f"{version_tags.headline(version)} {_in_figures(uplift)}")


def _in_figures(uplift: Figure) -> str:
    if not uplift.is_defined:
        return "not measured, for what it is compared with ranks no target among the first"
    return f"{uplift.percent()} {uplift.percent_interval()}"


def _is_not_worse(uplift: Figure) -> bool:
    """Whether the difference was measured, and doesn't lie below 0 as a whole."""
    return uplift.is_defined and uplift.outcome is not Outcome.WORSE


def _not_below_champion(settings: Settings, version: ModelVersion, champion: str | None) -> Check:
    rule = "not below the champion"
    if champion is None:
        return Check(rule, True, "there is no champion yet")
    if champion == str(version.version):
        return Check(rule, True, "it is the champion")
    from lte_model.evaluation.ranked import over_champion  # lazy: ranking imports torch
    from lte_model.ranker.saved import load_ranker

    training_date = version_tags.training_date(version)
    try:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = (
                load_ranker(versions.fetch(settings, of, Path(folder, str(of.version))))
                for of in (version, versions.version_of(settings, champion))
            )
        uplift, users = over_champion(settings, training_date, ours, theirs)
    except LTEError as error:
        return Check(rule, False, f"version {champion} can't rank its test users: {error}")
    if not users:
        return Check(rule, False, f"it and version {champion} share no test user; train again, and compare that")
    return Check(rule, _is_not_worse(uplift), f"{_in_figures(uplift)} over version {champion}, {users} users")


def _covers(settings: Settings, version: ModelVersion) -> Check:
    rule, least = "enough users have an LTE", settings.gates.min_lte_coverage
    with_lte, users = (read_tag(version, name, int) for name in ("test_users_with_lte", "test_users"))
    if users < 1:
        return Check(rule, False, "its test has no user")
    share = with_lte / users
    found = f"{figures.percent(share, signed=False)} of the test users, at least {figures.percent(least, signed=False)}"
    return Check(rule, share >= least, found)


def reads_live_ltes(settings: Settings, version: ModelVersion) -> Check:
    """Whether the live LTEs have the kind that the version reads."""
    rule, published = "reads the live LTEs", publications(settings)
    if not published:
        return Check(rule, True, "nothing is published yet")
    tags = own_tags(version)
    # A model of several representations, joined by +, reads each of them.
    wanted = [
        {field: tags[field] for field in KIND_FIELDS} | {"representation": name}
        for name in split_names(tags["representation"])
    ]
    newest = {row["representation"]: row["snapshot_date"] for row in sorted(published, key=_date_of)}
    live = {
        tuple(str(row[field]) for field in KIND_FIELDS): row["snapshot_date"]
        for row in published
        if (newest[row["representation"]] - row["snapshot_date"]).days <= DAYS_BEHIND
    }
    date = max(newest.values())
    missing = [kind for kind in wanted if tuple(kind.values()) not in live]
    if not missing:
        return Check(rule, True, f"those of {date} have its basis {tags['basis_id']}")
    stopped = [row for row in published if all(str(row[field]) == missing[0][field] for field in KIND_FIELDS)]
    if stopped:
        last = f"those of {date} are live, and of its basis {tags['basis_id']} only those of {_date_of(stopped[0])}"
        return Check(rule, False, f"{last}: put it into basis.beside and run lte_daily for {date}")
    differences = [
        ", ".join(
            f"{field} {found}, not {missing[0][field]}"
            for field, found in zip(KIND_FIELDS, kind, strict=True)
            if found != missing[0][field]
        )
        for kind in live
    ]
    return Check(rule, False, f"those of {date} have {'; or '.join(differences)}")


def _date_of(publication: dict) -> datetime.date:
    return publication["snapshot_date"]


def bases_stay_in_force(settings: Settings, version: ModelVersion, champion: str | None) -> Check:
    """Whether the version's basis is in force, and the champion's, which a rollback would need."""
    rule, names = "its basis, and the champion's, are in force", named_bases(settings)
    if not names:
        return Check(rule, True, "the settings leave it to the only one that is registered")
    numbers = [number for number in (str(version.version), champion) if number is not None]
    read = {number: own_version(settings, number).tags["basis_id"] for number in numbers}
    missing = [f"version {number} reads basis {basis}" for number, basis in read.items() if basis not in names]
    if missing:
        wrong = f"{', '.join(missing)}, and in force is {', '.join(names)}"
        return Check(rule, False, f"{wrong}: add it to basis.beside, so that its LTEs go on being made")
    return Check(rule, True, ", ".join(dict.fromkeys(read.values())))


def _has_the_champions_users(settings: Settings, version: ModelVersion, champion: str | None) -> Check:
    """On a change of basis: whether enough users with an LTE for the champion have one for the version."""
    rule = "its basis has the LTEs of the champion's users"
    if champion is None:
        return Check(rule, True, "there is no champion yet")
    theirs = own_version(settings, champion).tags
    if theirs["basis_id"] == version.tags["basis_id"]:
        return Check(rule, True, "it is the champion's basis")
    if not publications(settings):
        return Check(rule, False, "nothing is published yet; run lte_daily with both bases in force")
    live = scan(settings, "lte_live")

    def users(tags: Mapping[str, str], name: str) -> pl.LazyFrame:
        return live.filter(basis_id=tags["basis_id"], representation=name).select("user_id").unique()

    of_champion = pl.concat([users(theirs, name) for name in split_names(theirs["representation"])]).unique()
    shares = [
        of_champion.join(users(version.tags, name).with_columns(has_one=True), "user_id", "left")
        .select(pl.col("has_one").fill_null(False).mean())
        .collect()
        .item()
        for name in split_names(version.tags["representation"])
    ]
    share = min(1.0 if found is None else found for found in shares)
    least = settings.gates.min_basis_coverage
    found = (
        f"{figures.percent(share, signed=False)} of those of basis {theirs['basis_id']} have one in basis "
        f"{version.tags['basis_id']}, at least {figures.percent(least, signed=False)}"
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
        old = versions.version_of(settings, champion)
        place = (
            f"would replace version {champion} (training of {old.tags['training_date']}, "
            f"{version_tags.with_interval(old, SIDE)} on its own test days"
            + (f", of basis `{old.tags['basis_id']}`)" if old.tags["basis_id"] != tags["basis_id"] else ")")
        )
    return (
        f"**{full_name(version)}**, training of {tags['training_date']}, "
        f"basis `{tags['basis_id']}`: {version_tags.with_interval(version, SIDE)}, "
        f"without LTE {version_tags.measured(version, 'none')}, "
        f"popularity of 30 days {version_tags.measured(version, 'popularity_30d')}; "
        f"LTE over none **{version_tags.uplift(version, OVER_NONE)}**, {tags['test_users']} test users; {place}; "
        f"report: `{results.report_path(settings, version_tags.training_date(version))}`"
    )

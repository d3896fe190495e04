"""The life of a model after its training: registered as challenger, checked at the gate, promoted to champion.

    python -m lte_model.registry register --date D   registers the prefix model of the training of D as challenger
    python -m lte_model.registry gate                checks the challenger; exits with 2 where it must not be promoted
    python -m lte_model.registry promote             makes the challenger the champion
    python -m lte_model.registry status              one line for each version: figures and aliases

The gate lets a challenger pass when each of these holds:

1. it loads from the registry and ranks its own input example;
2. its NDCG isn't significantly below that of the same model without LTE: the 95 % interval of the difference, paired
   by user, doesn't lie below 0 as a whole;
3. the same against the popularity of the last 30 days;
4. it reads the LTEs that are live: those of the newest date in `lte_live` have its basis, representation, lag, window.

The champion's figures are shown beside, and decide nothing: they come from other test days and other users.
A version carries all that its approval rests on as tags, so that the gate needs no file of the machine that trained it.
"""

import argparse
import datetime
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import mlflow
import polars as pl
from deltalake import DeltaTable
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from mlflow.tracking import MlflowClient

from lte_model import lineage, tracking, verdict
from lte_model.errors import LTEError, run
from lte_model.representations import REPRESENTATIONS
from lte_model.settings import Settings, load_settings
from lte_model.verdict import OVER_NONE, OVER_POPULARITY, Evaluation, Figure, Outcome
from lte_model.windows import parse_run_date

SIDE = "prefix"
"""The side of a training that is registered."""

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"

GATE_TAG, GATE_PASSED = "gate", "passed"
"""The tag of a version with what the gate said of it."""

KIND = ("basis_id", "representation", "lag_days", "window_days")
"""What an LTE and a model must share; tags of a version, and columns of `lte_live`."""

_PACKAGE = Path(__file__).parent
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pyarrow", "safetensors", "scikit-learn", "scipy", "torch")
"""What the code that a logged model carries imports, directly or not."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lte_model.registry", description="Registers, checks and promotes the ranker."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, description in (
        ("register", "registers the prefix model of a training as challenger"),
        ("gate", "checks whether the challenger may be promoted"),
        ("promote", "makes the challenger the champion"),
        ("status", "lists the versions and their aliases"),
    ):
        command = commands.add_parser(name, help=description, description=description)
        if name == "register":
            command.add_argument("--date", type=parse_run_date, required=True, help="the date of the training")
        command.add_argument("--settings", help="settings file (default: the one that LTE_SETTINGS names)")
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings)
    match arguments.command:
        case "register":
            version = register(settings, arguments.date)
            print(f"{version.name} version {version.version} is {CHALLENGER} (training of {arguments.date})")
        case "gate":
            passed = gate(settings)
            for check in passed.checks:
                print(check)
            passed.require()
            print(passed.summary)
        case "promote":
            version = promote(settings)
            print(f"{version.name} version {version.version} is {CHAMPION}")
        case "status":
            for line in status(settings):
                print(line)


def register(settings: Settings, training_date: datetime.date) -> ModelVersion:
    """Registers the prefix model of the training of `training_date` and gives it the alias `challenger`.

    The same model of the same run is registered once: a second call refreshes its tags and alias. Raises `LTEError`
    without an evaluation, without a trained model, where the training began anew after the evaluation, and for a model
    that reads a representation which is never published.
    """
    from lte_model.training import MODEL_DIRECTORY, side_directory  # torch is for those who read a model

    evaluation = verdict.read_evaluation(settings, training_date)
    _require_publishable(evaluation)
    run_id = tracking.find_or_create_run(settings, training_date, SIDE)
    evaluated = evaluation["sides"][SIDE]["run_id"]
    if run_id != evaluated:
        raise LTEError(
            f"the evaluation of {training_date} is of MLflow run {evaluated}, the newest training is run {run_id}; "
            f"run python -m lte_model.evaluation --date {training_date} again"
        )
    directory = side_directory(settings, training_date, SIDE) / MODEL_DIRECTORY
    tags = _tags(evaluation) | {"model_sha256": _sha256(directory)}
    client, name = MlflowClient(), settings.mlflow.model_name
    version = _registered(client, name, run_id, tags)
    if version is None:
        uri = _log_model(directory, run_id)
        version = mlflow.register_model(uri, name, tags=tags)
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    client.update_model_version(name, version.version, description=_description(settings, tags))
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    return client.get_model_version(name, version.version)


def find(settings: Settings, alias: str) -> ModelVersion | None:
    """The version that has the alias; None where none has, also where MLflow was never used: it creates nothing.

    Raises `LTEError` where MLflow doesn't answer.
    """
    client, name = lineage.open_mlflow(settings), settings.mlflow.model_name
    if client is None:
        return None
    try:
        number = _aliases(client, name).get(alias)
        return None if number is None else client.get_model_version(name, number)
    except MlflowException as error:
        uri = settings.mlflow.tracking_uri
        raise LTEError(f"MLflow at {uri} doesn't say which model is {alias}: {error.message}; is it up?") from None


def fetch(settings: Settings, version: ModelVersion, folder: Path) -> Path:
    """Copies a version into `folder`; returns the directory in it that `load_ranker` reads. None of its code is run.

    Raises `LTEError` where its files can't be had.
    """
    from lte_model.pyfunc import ARTIFACT  # torch is for those who read a model

    uri = settings.mlflow.tracking_uri
    try:
        copy = mlflow.artifacts.download_artifacts(
            f"models:/{version.name}/{version.version}", dst_path=str(folder), tracking_uri=uri, registry_uri=uri
        )
        artifacts = Model.load(copy).flavors[mlflow.pyfunc.FLAVOR_NAME]["artifacts"]
    except (MlflowException, OSError) as error:
        named = f"{version.name} version {version.version}"
        raise LTEError(f"the files of {named} can't be had from MLflow at {uri}: {error}; are they there?") from None
    return Path(copy, artifacts[ARTIFACT]["path"])


def load(settings: Settings, alias: str) -> PyFuncModel:
    """The registered model with that alias, ready to rank; its input is described in lte_model/pyfunc.py."""
    version = _version(settings, alias)
    return mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")


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

    def require(self) -> None:
        """Raises `LTEError` with every broken rule and its figures."""
        broken = [f"{check.rule}: {check.found}" for check in self.checks if not check.holds]
        if broken:
            raise LTEError(
                f"{self.version.name} version {self.version.version} must not be promoted: {'; '.join(broken)}. "
                f"The champion stays; look at the report of {self.version.tags['training_date']}"
            )


def gate(settings: Settings) -> Gate:
    """Checks the challenger by the four rules above, and leaves the answer on its version, where `promote` asks for it.

    Raises `LTEError` where there is no challenger.
    """
    version = _version(settings, CHALLENGER)
    checks = (
        _loads(settings, version),
        _not_below(version, OVER_NONE, "not below the model without LTE"),
        _not_below(version, OVER_POPULARITY, "not below the popularity of 30 days"),
        _reads_live_ltes(settings, version),
    )
    broken = [check.rule for check in checks if not check.holds]
    answer = f"failed: {'; '.join(broken)}" if broken else GATE_PASSED
    MlflowClient().set_model_version_tag(version.name, version.version, GATE_TAG, answer)
    return Gate(version, checks, _summary(settings, version))


def promote(settings: Settings) -> ModelVersion:
    """Moves the alias `champion` to the challenger's version; the champion before it becomes `previous`.

    `champion` moves in one step: a reader finds the old version or the new one. A second call changes nothing.
    Raises `LTEError` where there is no challenger, or one that hasn't passed the gate: another training may have
    registered it after a person looked at the one before.
    """
    version = _version(settings, CHALLENGER)
    answer = version.tags.get(GATE_TAG, "not asked")
    if answer != GATE_PASSED:
        raise LTEError(
            f"{version.name} version {version.version} is challenger, but its gate says: {answer}; "
            "run lte_promotion for it"
        )
    client, name = MlflowClient(), version.name
    before = _aliases(client, name).get(CHAMPION)
    if before == str(version.version):
        return version
    # The champion moves last: after a kill before that, the next call still finds the old one and does all again.
    if before is not None:
        client.set_registered_model_alias(name, PREVIOUS, before)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    client.set_model_version_tag(name, version.version, "promoted_at", now)
    client.set_model_version_tag(
        name, version.version, "promoted_from", "no champion" if before is None else f"version {before}"
    )
    client.set_registered_model_alias(name, CHAMPION, version.version)
    return client.get_model_version(name, version.version)


def status(settings: Settings) -> list[str]:
    """A line for each version, oldest first: training date, figure, uplift, aliases."""
    tracking.configure(settings)
    client, name = MlflowClient(), settings.mlflow.model_name
    aliases = _aliases(client, name)
    versions = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))
    if not versions:
        return [f"{name}: no version yet; run python -m lte_model.registry register --date D"]
    lines = []
    for version in versions:
        metric = version.tags["headline_metric"]
        named = sorted(alias for alias, number in aliases.items() if number == str(version.version))
        lines.append(
            f"{name} version {version.version}: training of {version.tags['training_date']}, "
            f"{_with_interval(version, SIDE, metric)}, {_uplift(version, OVER_NONE)} over none; "
            f"{', '.join(named) or 'no alias'}"
        )
    return lines


def _tags(evaluation: Evaluation) -> dict[str, str]:
    """What a version is and what was measured of it, as tags; figures are JSON."""
    metric = verdict.headline_metric(evaluation)
    tags = {
        "training_date": evaluation["training_date"],
        **{field: str(evaluation[field]) for field in KIND},
        "test_users": str(evaluation["test_users"]),
        "headline_metric": metric,
    }
    for side, measured in evaluation["sides"].items():
        for name, figure in measured["metrics"].items():
            if side == SIDE or name == metric:
                tags[_figure_tag(side, name)] = json.dumps(figure)
    for comparison in (OVER_NONE, OVER_POPULARITY):
        tags[_figure_tag(comparison, metric)] = json.dumps(evaluation["uplift"][comparison][metric])
    for table, state in evaluation["tables"].items():
        tags[f"delta_version.{table}"] = str(state["version"])
    return tags


def _figure_tag(side: str, metric: str) -> str:
    """The name of a figure's tag. MLflow refuses the @ of `ndcg@500` in names."""
    return f"{side}.{metric.replace('@', '_at_')}"


def _figure(version: ModelVersion, side: str) -> Figure:
    return json.loads(version.tags[_figure_tag(side, version.tags["headline_metric"])])


def _sha256(directory: Path) -> str:
    """The hash of the model's files. Raises `LTEError` where there is no trained model."""
    files = sorted(path for path in directory.glob("*") if path.is_file())
    if not files:
        raise LTEError(f"there is no trained model in {directory}; run lte_model.training for its date and side {SIDE}")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _registered(client: MlflowClient, name: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """The version that already holds this very model of this run, if any."""
    identity = ("training_date", "model_sha256")
    for version in client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'"):
        if all(version.tags.get(key) == tags[key] for key in identity):
            return version
    return None


def _log_model(directory: Path, run_id: str) -> str:
    """Logs the model into its training's run and returns its URI."""
    from lte_model import pyfunc
    from lte_model.model import load_ranker

    ranker = load_ranker(directory)
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name=SIDE,
            python_model=str(_PACKAGE / "pyfunc.py"),
            artifacts={pyfunc.ARTIFACT: str(directory)},
            # The package as it is now goes with the model: a version can be served after the code has moved on.
            code_paths=[str(_PACKAGE)],
            signature=pyfunc.signature(ranker),
            input_example=pyfunc.input_example(ranker),
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in _REQUIREMENTS],
        )
    return logged.model_uri


def _loads(settings: Settings, version: ModelVersion) -> Check:
    rule = "loads from the registry"
    try:
        model = load(settings, CHALLENGER)
        ranked = model.predict(model.input_example)
    except Exception as error:  # noqa: BLE001 - whatever fails here would fail where it is served
        return Check(rule, False, " ".join(f"{type(error).__name__}: {error}".split()))
    finite = all(math.isfinite(score) for scores in ranked["scores"] for score in scores)
    items = sum(map(len, ranked["item_ids"]))
    return Check(rule, finite and items > 0, f"{items} items ranked for {len(ranked)} example users"
                 + ("" if finite else ", but a score is not a number"))  # fmt: skip


def _not_below(version: ModelVersion, comparison: str, rule: str) -> Check:
    uplift = _figure(version, comparison)
    found = f"{verdict.metric_label(version.tags['headline_metric'])} {_uplift(version, comparison)}"
    return Check(rule, verdict.is_defined(uplift) and verdict.outcome(uplift) is not Outcome.WORSE, found)


def _reads_live_ltes(settings: Settings, version: ModelVersion) -> Check:
    rule, path = "reads the live LTEs", settings.table_path("lte_live")
    if not DeltaTable.is_deltatable(path):
        return Check(rule, True, "table lte_live does not exist yet")
    # Each representation for itself: a row that didn't change keeps its date, so that one may have a newer row.
    newest = pl.col("snapshot_date") == pl.col("snapshot_date").max().over("representation")
    kinds = pl.scan_delta(path).filter(newest).select(*KIND, "snapshot_date").unique().sort(KIND).collect().to_dicts()
    if not kinds:
        return Check(rule, True, "table lte_live is empty")
    tags = version.tags
    # A model of several representations, joined by +, reads each of them.
    wanted = [{field: tags[field] for field in KIND} | {"representation": name} for name in _representations(tags)]
    live_kinds = [{field: str(kind[field]) for field in KIND} for kind in kinds]
    date = max(kind["snapshot_date"] for kind in kinds)
    missing = [kind for kind in wanted if kind not in live_kinds]
    if not missing:
        return Check(rule, True, f"those of {date} have its basis {tags['basis_id']}")
    differences = [
        ", ".join(
            f"{field} {kind[field]}, not {missing[0][field]}" for field in KIND if kind[field] != missing[0][field]
        )
        for kind in live_kinds
    ]
    return Check(rule, False, f"those of {date} have {'; or '.join(differences)}")


def _representations(tags: Mapping[str, str]) -> list[str]:
    return tags["representation"].split("+")


def _require_publishable(evaluation: Evaluation) -> None:
    for name in _representations(evaluation):
        kind = REPRESENTATIONS.get(name)
        if kind and not kind.publishable:
            raise LTEError(
                f"the model of {evaluation['training_date']} reads representation {name}, which is never published: "
                f"{kind.description}; train one without it, and register that"
            )


def _summary(settings: Settings, version: ModelVersion) -> str:
    """One line of Markdown with what a person needs to approve or refuse."""
    metric = version.tags["headline_metric"]
    champion = _aliases(MlflowClient(), version.name).get(CHAMPION)
    if champion is None:
        place = "there is no champion yet"
    elif champion == str(version.version):
        place = "it is the champion already"
    else:
        old = MlflowClient().get_model_version(version.name, champion)
        place = (
            f"would replace version {champion} (training of {old.tags['training_date']}, "
            f"{_with_interval(old, SIDE, old.tags['headline_metric'])} on its own test days)"
        )
    return (
        f"**{version.name} version {version.version}**, training of {version.tags['training_date']}, "
        f"basis `{version.tags['basis_id']}`: {_with_interval(version, SIDE, metric)}, "
        f"without LTE {_measured(version, 'none')}, popularity of 30 days {_measured(version, 'popularity_30d')}; "
        f"LTE over none **{_uplift(version, OVER_NONE)}**, {version.tags['test_users']} test users; {place}; "
        f"report: `{verdict.report_path(settings, datetime.date.fromisoformat(version.tags['training_date']))}`"
    )


def _named(tags: Mapping[str, str]) -> str:
    count = len(_representations(tags))
    return "long-term embedding" if count == 1 else f"{count} long-term embeddings"


def _description(settings: Settings, tags: Mapping[str, str]) -> str:
    """What MLflow's page says of a version."""
    return (
        f"SASRec-style ranker with the {_named(tags)} as prefix, training of {tags['training_date']}. "
        f"LTE: basis {tags['basis_id']}, {tags['representation']}, lag {tags['lag_days']} days, window "
        f"{tags['window_days']} days. Report: "
        f"{verdict.report_path(settings, datetime.date.fromisoformat(tags['training_date']))}"
    )


def _with_interval(version: ModelVersion, side: str, metric: str) -> str:
    return f"{verdict.metric_label(metric)} {_measured(version, side)}"


def _measured(version: ModelVersion, side: str) -> str:
    figure = _figure(version, side)
    return f"{verdict.number(figure['value'])} {verdict.interval(figure)}".strip()


def _uplift(version: ModelVersion, comparison: str) -> str:
    uplift = _figure(version, comparison)
    return f"{verdict.percent(uplift['value'])} {verdict.percent_interval(uplift)}".strip()


def _version(settings: Settings, alias: str) -> ModelVersion:
    """The version that has the alias. Raises `LTEError` where none has."""
    tracking.configure(settings)
    version = find(settings, alias)
    if version is None:
        raise LTEError(
            f"model {settings.mlflow.model_name} has no {alias} in {settings.mlflow.tracking_uri}; "
            f"run python -m lte_model.registry {'register --date D' if alias == CHALLENGER else 'promote'} first"
        )
    return version


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Alias → version number; empty for a model that isn't registered."""
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {alias: str(number) for alias, number in model.aliases.items()}


if __name__ == "__main__":
    run(main)

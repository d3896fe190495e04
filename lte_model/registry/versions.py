"""Registers trained rankers as versions in MLflow's registry, and describes them.

    python -m lte_model.registry.versions register --date D   registers the prefix model of D's training as challenger
    python -m lte_model.registry.versions status              one line for each version: figures and aliases

promotion.py promotes a challenger to champion, and rolls back. A version's tags hold everything that its approval is
based on, so that nobody needs files of the machine that trained it.
"""

import datetime
import hashlib
import json
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import mlflow
import polars as pl
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from mlflow.tracking import MlflowClient

from lte_model.command_line import CommandParser, run
from lte_model.domain.kind import KIND_FIELDS
from lte_model.domain.representations import AUTOENCODER, REPRESENTATIONS, split_names
from lte_model.errors import LTEError
from lte_model.evaluation import results
from lte_model.evaluation.results import OVER_NONE, OVER_POPULARITY, Evaluation
from lte_model.figures import to_json
from lte_model.files import PACKAGE
from lte_model.registry.version_tags import HEADLINE, figure_tag, full_name, own_tags, uplift, with_interval
from lte_model.settings import Settings
from lte_model.tracking import runs
from lte_model.tracking.code_version import code_version
from lte_model.tracking.lineage import CHALLENGER, CHAMPION, TABLE_TAG, numbers_by_alias, version_with
from lte_model.warehouse.reading import scan

SIDE = "prefix"
"""The side of a training that is registered."""

_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}
"""The suffixes of files that may run code when they are loaded."""

_REQUIREMENTS = (
    "deltalake", "mlflow", "numpy", "pandas", "polars", "pyarrow", "pydantic", "safetensors", "scikit-learn", "scipy",
    "torch",
)  # fmt: skip
"""The packages that the code in a logged model imports, directly or not."""


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser("Registers the ranker, and lists its versions.")
    parser.add_command(
        "register", "registers the prefix model of a training as challenger", "the day the training ran on"
    )
    parser.add_command("status", "lists the versions and their aliases")
    arguments, settings = parser.read_settings()
    match arguments.command:
        case "register":
            version = register(settings, arguments.date)
            print(f"{version.name} version {version.version} is {CHALLENGER} (training of {arguments.date})")
        case "status":
            for line in status(settings):
                print(line)


def register(settings: Settings, training_date: datetime.date) -> ModelVersion:
    """Registers the prefix model of the training of `training_date` and gives it the alias `challenger`.

    Idempotent: a second call for the same model and run refreshes its tags and alias. Raises `LTEError` without an
    evaluation, without a trained model, where the training was restarted after the evaluation, and for a model that
    reads a representation which is never published.
    """
    from lte_model.training.checkpoints import MODEL_DIRECTORY, side_directory  # lazy: it imports torch

    evaluation = results.read_evaluation(settings, training_date)
    _require_publishable(evaluation)
    run_id = runs.find_or_create_run(settings, training_date, SIDE)
    evaluated = evaluation["sides"][SIDE]["run_id"]
    if run_id != evaluated:
        raise LTEError(
            f"the evaluation of {training_date} is of MLflow run {evaluated}, the newest training is run {run_id}; "
            f"run python -m lte_model.evaluation.evaluate --date {training_date} again"
        )
    directory = side_directory(settings, training_date, SIDE) / MODEL_DIRECTORY
    tags = _tags(evaluation) | {"model_sha256": _sha256(directory)} | _encoders(settings, evaluation)
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


def fetch(settings: Settings, version: ModelVersion, folder: Path) -> Path:
    """Downloads a version to `folder`, without running its code; returns the directory for `load_ranker`.

    Raises `LTEError` where the download fails, and for a version that `register` didn't make: one with a pickle, or
    without the files of a ranker.
    """
    from lte_model.serving.pyfunc import ARTIFACT  # lazy: it imports torch

    uri, named = settings.mlflow.tracking_uri, f"{version.name} version {version.version}"
    try:
        # MLflow resolves `models:/name/version` on the server that the process is set to, not on the one it is given.
        files = MlflowClient(uri, uri).get_model_version_download_uri(version.name, str(version.version))
        copy = mlflow.artifacts.download_artifacts(files, dst_path=str(folder), tracking_uri=uri, registry_uri=uri)
        flavor = Model.load(copy).flavors.get(mlflow.pyfunc.FLAVOR_NAME, {})
    except (MlflowException, OSError) as error:
        place = settings.mlflow.place
        raise LTEError(f"the files of {named} can't be had from MLflow at {place}: {error}; are they there?") from None
    wrong = f"{named} is not what lte_model.registry.versions registers"
    pickles = sorted(file.name for file in Path(copy).rglob("*") if file.suffix in _PICKLES)
    if pickles:
        raise LTEError(f"{wrong}: it holds {pickles[0]}, and no pickle is ever loaded; delete the version")
    directory = Path(copy, (flavor.get("artifacts") or {}).get(ARTIFACT, {}).get("path", "")).resolve()
    if directory == Path(copy).resolve() or not directory.is_relative_to(Path(copy).resolve()):
        raise LTEError(f"{wrong}: it names no directory {ARTIFACT} of its own; delete the version")
    return directory


def load(settings: Settings, alias: str) -> PyFuncModel:
    """The registered model with that alias, ready to rank; its input is described in lte_model/serving/pyfunc.py."""
    return load_version(settings, required_version(settings, alias))


def load_version(settings: Settings, version: ModelVersion) -> PyFuncModel:
    """A registered version, ready to rank. Raises as `fetch` does.

    Weights and catalogue come from the registry, the code from this installation: write access to the registry must
    not allow running code where a model is read.
    """
    from lte_model.ranker.saved import load_ranker
    from lte_model.serving.pyfunc import served

    with tempfile.TemporaryDirectory() as folder:
        return served(load_ranker(fetch(settings, version, Path(folder))))


def status(settings: Settings) -> list[str]:
    """A line for each version, oldest first: training date, figure, uplift, aliases; or why it isn't one of ours."""
    runs.configure(settings)
    client, name = MlflowClient(), settings.mlflow.model_name
    aliases = numbers_by_alias(client, name)
    versions = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))
    if not versions:
        return [f"{name}: no version yet; run python -m lte_model.registry.versions register --date D"]
    lines = []
    for version in versions:
        named = sorted(alias for alias, number in aliases.items() if number == str(version.version))
        try:
            described = (
                f"{full_name(version)}: training of {own_tags(version)['training_date']}, "
                f"{with_interval(version, SIDE)}, {uplift(version, OVER_NONE)} over none"
            )
        except LTEError as error:
            described = str(error)
        lines.append(f"{described}; {', '.join(named) or 'no alias'}")
    return lines


def _tags(evaluation: Evaluation) -> dict[str, str]:
    """The version's description and measures as tags; figures are JSON."""
    metric = results.headline_metric(evaluation)
    tags = {
        "training_date": evaluation["training_date"],
        **{field: str(evaluation[field]) for field in KIND_FIELDS},
        **{name: json.dumps(evaluation[name]) for name in ("anchors", "validation", "test")},
        "test_users": str(evaluation["test_users"]),
        "test_users_with_lte": str(evaluation["test_users_with_lte"]),
        HEADLINE: metric,
        "code_version": code_version(),
    }
    for side, measured in evaluation["sides"].items():
        for name, figure in measured["metrics"].items():
            if side == SIDE or name == metric:
                tags[figure_tag(side, name)] = to_json(figure, indent=None)
    for comparison in (OVER_NONE, OVER_POPULARITY):
        tags[figure_tag(comparison, metric)] = to_json(evaluation["uplift"][comparison][metric], indent=None)
    for table, state in evaluation["tables"].items():
        tags[f"{TABLE_TAG}{table}"] = str(state["version"])
    return tags


def _encoders(settings: Settings, evaluation: Evaluation) -> dict[str, str]:
    """For a learned representation, the tag `encoders`: {snapshot date: encoder_id} as JSON; else no tag."""
    if AUTOENCODER not in split_names(evaluation["representation"]):
        return {}
    accounts = scan(settings, "snapshot_accounts").filter(
        pl.col("basis_id") == evaluation["basis_id"],
        pl.col("representation") == AUTOENCODER,
        pl.col("snapshot_date").cast(pl.String).is_in(_dates_of(evaluation)),
    )
    found = accounts.select(pl.col("snapshot_date").cast(pl.String), "encoder_id").sort(pl.all()).collect()
    return {"encoders": json.dumps(dict(found.rows()))}


def _dates_of(evaluation: Evaluation) -> list[str]:
    """The snapshot dates whose LTEs a model was trained, validated and tested with."""
    return [*evaluation["anchors"], evaluation["validation"][0], evaluation["test"][0]]


def _sha256(directory: Path) -> str:
    """The hash of the model's files. Raises `LTEError` where there is no trained model."""
    files = sorted(path for path in directory.glob("*") if path.is_file())
    if not files:
        raise LTEError(
            f"there is no trained model in {directory}; run lte_model.training.train for its date and side {SIDE}"
        )
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
    from lte_model.ranker.saved import load_ranker
    from lte_model.serving import pyfunc

    ranker = load_ranker(directory)
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name=SIDE,
            python_model=str(PACKAGE / "serving" / "pyfunc.py"),
            artifacts={pyfunc.ARTIFACT: str(directory)},
            # The current package is stored with the model: a version can be served after the code has changed.
            code_paths=[str(PACKAGE)],
            signature=pyfunc.signature(ranker),
            input_example=pyfunc.input_example(ranker),
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in _REQUIREMENTS],
        )
    return logged.model_uri


def _require_publishable(evaluation: Evaluation) -> None:
    for name in split_names(evaluation["representation"]):
        kind = REPRESENTATIONS.get(name)
        if kind and not kind.publishable:
            raise LTEError(
                f"the model of {evaluation['training_date']} reads representation {name}, which is never published: "
                f"{kind.description}; train one without it, and register that"
            )


def lte_in_words(tags: Mapping[str, str]) -> str:
    """What a version reads, in a sentence: "long-term embedding", or how many."""
    count = len(split_names(tags["representation"]))
    return "long-term embedding" if count == 1 else f"{count} long-term embeddings"


def _description(settings: Settings, tags: Mapping[str, str]) -> str:
    """The description of a version on MLflow's page."""
    return (
        f"SASRec-style ranker with the {lte_in_words(tags)} as prefix, training of {tags['training_date']}. "
        f"LTE: basis {tags['basis_id']}, {tags['representation']}, lag {tags['lag_days']} days, window "
        f"{tags['window_days']} days. Report: "
        f"{results.report_path(settings, datetime.date.fromisoformat(tags['training_date']))}"
    )


def required_version(settings: Settings, alias: str) -> ModelVersion:
    """The version that has the alias. Raises `LTEError` where none has."""
    runs.configure(settings)
    version = version_with(settings, alias)
    if version is None:
        first = "lte_model.registry.versions register --date D" if alias == CHALLENGER else "lte_promotion"
        raise LTEError(
            f"model {settings.mlflow.model_name} has no {alias} in {settings.mlflow.place}; run {first} first"
        )
    return version


def version_of(settings: Settings, number: str) -> ModelVersion:
    """The version of that number. Raises `LTEError` where there is none."""
    runs.configure(settings)
    try:
        return MlflowClient().get_model_version(settings.mlflow.model_name, number)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise LTEError(
            f"model {settings.mlflow.model_name} has no version {number}; "
            "python -m lte_model.registry.versions status lists those that there are"
        ) from None


# The alias and its record.


def own_version(settings: Settings, number: str) -> ModelVersion:
    """The version of that number, which `register` made. Raises `LTEError` for any other."""
    version = version_of(settings, number)
    own_tags(version)
    return version


def champion_number(settings: Settings) -> str | None:
    """The number of the champion's version; None where there is none."""
    runs.configure(settings)
    champion = version_with(settings, CHAMPION)
    return None if champion is None else str(champion.version)


def or_none(number: str | None) -> str:
    """A champion's number in words; `no champion` for None."""
    return "no champion" if number is None else f"version {number}"


if __name__ == "__main__":
    run(main)

"""Which models are registered, and which versions of the Delta tables each of them names.

A model version names the tables of its evaluation in its tags (`delta_version.<table>`), and those of its training as
dataset inputs of the MLflow run that trained it. Maintenance keeps the named versions readable. An erasure doesn't, and
tags the model version with what it did. Reading creates nothing: if MLflow was never used, the answers are empty.
"""

import datetime
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lte_model.errors import LTEError
from lte_model.settings import Settings

TABLE_TAG = "delta_version."
"""The prefix of the tags that name the tables of a version; `lte_model.registry.versions` sets them."""

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
"""The aliases of the version in use, of the newest trained version, and of the champion before."""

ALIASES = (CHAMPION, PREVIOUS, CHALLENGER)
"""The aliases whose models may still be read."""

ON_RECORD = "champion_on_record"
"""The model's tag with the version that lte_model.registry.promotion made champion last."""

ERASED_TAG = "trained_on_users_erased_on"
"""A version's tag with the first day on which a user of its training was erased."""

UNREADABLE_TAG = "unreadable."
"""The prefix of the tags for tables whose version, named by the model, can no longer be read."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of the registered model. `tables` has, for each table, the versions that it names, ascending."""

    name: str
    version: int
    training_date: datetime.date | None
    tables: Mapping[str, tuple[int, ...]]
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"

    @property
    def dated(self) -> str:
        """The training date as text, also of a version that doesn't name one."""
        return str(self.training_date or "a date that it doesn't name")


def open_mlflow(settings: Settings) -> MlflowClient | None:
    """A client of the settings' MLflow; None if that is a file or folder that is missing, which is not created."""
    uri = settings.mlflow.tracking_uri
    place = uri.removeprefix("sqlite:///").removeprefix("file://")
    if "://" not in place and not (Path(place).is_dir() or (Path(place).is_file() and Path(place).stat().st_size)):
        return None
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def registered_versions(settings: Settings) -> list[RegisteredVersion]:
    """Every version of the settings' registered model, oldest first.

    Raises `LTEError` if MLflow doesn't answer: that must not pass for a registry without models.
    """
    client = open_mlflow(settings)
    if client is None:
        return []
    try:
        versions = [_described(client, version) for version in _all_versions(client, settings.mlflow.model_name)]
    except MlflowException as error:
        raise LTEError(
            f"MLflow at {settings.mlflow.place} doesn't say which models are registered: {error.message}; is it up?"
        ) from None
    return sorted(versions, key=lambda version: version.version)


def versions_with(settings: Settings, *aliases: str) -> dict[str, ModelVersion]:
    """{alias: its version}, all as of one moment, without the aliases that no version has.

    Empty if MLflow was never used; creates nothing there. Raises `LTEError` if MLflow doesn't answer.
    """
    client, name = open_mlflow(settings), settings.mlflow.model_name
    if client is None:
        return {}
    try:
        numbers = numbers_by_alias(client, name)
        return {alias: client.get_model_version(name, numbers[alias]) for alias in aliases if alias in numbers}
    except MlflowException as error:
        raise LTEError(
            f"MLflow at {settings.mlflow.place} doesn't say which model is {' or '.join(aliases)}: {error.message}; is "
            "it up?"
        ) from None


def version_with(settings: Settings, alias: str) -> ModelVersion | None:
    """The version with the alias, or None. Raises `LTEError` like `versions_with`."""
    return versions_with(settings, alias).get(alias)


def numbers_by_alias(client: MlflowClient, name: str) -> dict[str, str]:
    """Alias → version number; empty for a model that isn't registered."""
    model = registered_model(client, name)
    return {} if model is None else {alias: str(number) for alias, number in model.aliases.items()}


def registered_model(client: MlflowClient, name: str) -> RegisteredModel | None:
    """The model with its aliases and tags; None if it has no registered version."""
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def model_on(settings: Settings, date: datetime.date) -> RegisteredVersion | None:
    """The champion if it was trained by `date`, else the newest version that was, else None."""
    versions = [
        version
        for version in registered_versions(settings)
        if version.training_date is not None and version.training_date <= date
    ]
    if not versions:
        return None
    champion = version_with(settings, CHAMPION)
    number = None if champion is None else int(champion.version)
    return next((version for version in versions if version.version == number), versions[-1])


def tables_in_use(versions: list[RegisteredVersion]) -> dict[str, dict[int, list[RegisteredVersion]]]:
    """{table: {its version: the registered versions that name it}}."""
    in_use: dict[str, dict[int, list[RegisteredVersion]]] = defaultdict(lambda: defaultdict(list))
    for version in versions:
        for table, numbers in version.tables.items():
            for number in numbers:
                in_use[table][number].append(version)
    return {table: dict(by_number) for table, by_number in in_use.items()}


def leave_tag(settings: Settings, version: RegisteredVersion, tag: str, value: str) -> None:
    """Sets a tag of a version, unless it has that value already."""
    client = open_mlflow(settings)
    if client is not None and version.tags.get(tag) != value:
        client.set_model_version_tag(version.name, str(version.version), tag, value)


def erasures(versions: list[RegisteredVersion]) -> list[str]:
    """A line for each version that was trained on a user erased since, or names a table version unreadable by now."""
    lines = []
    for version in versions:
        found = []
        if day := version.tags.get(ERASED_TAG):
            found.append(f"trained on users erased on {day} or later")
        unreadable = {
            tag.removeprefix(UNREADABLE_TAG): value
            for tag, value in version.tags.items()
            if tag.startswith(UNREADABLE_TAG)
        }
        if unreadable:
            named = ", ".join(f"{table} {numbers}" for table, numbers in sorted(unreadable.items()))
            found.append(f"can't be trained again from the tables it names: {named}")
        if found:
            lines.append(f"{version}, training of {version.dated}: {'; '.join(found)}")
    return lines


def _all_versions(client: MlflowClient, name: str) -> Iterator[ModelVersion]:
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _described(client: MlflowClient, version: ModelVersion) -> RegisteredVersion:
    tables: dict[str, set[int]] = defaultdict(set)
    for tag in version.tags:
        if tag.startswith(TABLE_TAG):
            tables[tag.removeprefix(TABLE_TAG)].add(_table_version(version, tag))
    for table, number in _trained_on(client, version.run_id):
        tables[table].add(number)
    return RegisteredVersion(
        version.name,
        int(version.version),
        _training_date(version),
        {table: tuple(sorted(numbers)) for table, numbers in sorted(tables.items())},
        dict(version.tags),
    )


def _training_date(version: ModelVersion) -> datetime.date | None:
    """The training date of a version; None for one that a person registered without, or with something else there."""
    try:
        return datetime.date.fromisoformat(version.tags.get("training_date", ""))
    except ValueError:
        return None


def _table_version(version: ModelVersion, tag: str) -> int:
    """The version of a table that a tag names. Raises `LTEError` where none can be read: what it keeps is unknown."""
    try:
        return int(version.tags[tag])
    except ValueError:
        raise LTEError(
            f"{version.name} version {version.version} has a tag {tag} that says {version.tags[tag]!r}: nobody can "
            "tell what it names; correct the tag in MLflow, or delete it if the version isn't ours"
        ) from None


def _trained_on(client: MlflowClient, run_id: str | None) -> Iterator[tuple[str, int]]:
    """(table, version) of each dataset that the run read. A permanently deleted run has none."""
    if not run_id:
        return
    try:
        inputs = client.get_run(run_id).inputs
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return
        raise
    for entry in inputs.dataset_inputs if inputs else ():
        # `lte_model.tracking.runs.log_dataset` writes this format.
        if entry.dataset.digest.startswith("v") and entry.dataset.digest[1:].isdigit():
            yield entry.dataset.name, int(entry.dataset.digest[1:])

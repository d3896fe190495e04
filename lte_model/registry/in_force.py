"""Which bases are in force, and which registered models read each."""

import polars as pl
from deltalake import DeltaTable
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lte_model.errors import LTEError
from lte_model.registry.versions import CHALLENGER, KIND, PREVIOUS, representations_of
from lte_model.settings import Settings
from lte_model.tracking import lineage
from lte_model.tracking.lineage import CHAMPION, numbers_by_alias

ALIASES = (CHAMPION, PREVIOUS, CHALLENGER)
"""The aliases whose model somebody may read tomorrow."""

DAYS_BEHIND = 1
"""While `publish_lte` goes from basis to basis, one has the new date and the other not yet."""


def readers(settings: Settings) -> dict[str, tuple[str, str]]:
    """{alias: (version, basis_id)} of the registered model. Raises `LTEError` where MLflow doesn't answer."""
    return {alias: (str(version.version), version.tags["basis_id"]) for alias, version in _aliased(settings).items()}


def representations_read(settings: Settings, basis_id: str) -> tuple[str, ...]:
    """Those that the versions of an alias read in a basis, each once; none where none reads it. Raises as `readers`."""
    of_basis = [version.tags for version in _aliased(settings).values() if version.tags["basis_id"] == basis_id]
    return tuple(dict.fromkeys(name for tags in of_basis for name in representations_of(tags)))


def _aliased(settings: Settings) -> dict[str, ModelVersion]:
    client, name = lineage.open_mlflow(settings), settings.mlflow.model_name
    if client is None:
        return {}
    try:
        numbers = numbers_by_alias(client, name)
        return {alias: client.get_model_version(name, numbers[alias]) for alias in ALIASES if alias in numbers}
    except MlflowException as error:
        place = settings.mlflow.place
        raise LTEError(
            f"MLflow at {place} doesn't say which basis the models read: {error.message}; is it up?"
        ) from None


def publications(settings: Settings) -> list[dict]:
    """The newest publication of each representation of each basis: KIND, snapshot_date, users."""
    path = settings.table_path("publications")
    if not DeltaTable.is_deltatable(path):
        return []
    newest = pl.col("snapshot_date") == pl.col("snapshot_date").max().over("basis_id", "representation")
    rows = pl.scan_delta(path).filter(newest).select(*KIND, "snapshot_date", "users")
    return rows.sort(KIND).collect().to_dicts()


def named_bases(settings: Settings) -> tuple[str, ...]:
    """The bases that the settings name; none where they leave it to the only one that is registered."""
    return tuple(filter(None, settings.basis.in_force))


def out_of_force(settings: Settings) -> dict[str, str]:
    """{alias: what is wrong and what to do} of every alias whose version reads a basis that the settings don't name."""
    names = named_bases(settings)
    return {
        alias: f"version {number}, {alias}, reads basis {basis_id}, which isn't in force ({', '.join(names)} is): no LTE "
        f"of it is made any more; add it to basis.beside, and run lte_daily, which makes again what was retired"
        for alias, (number, basis_id) in readers(settings).items()
        if names and basis_id not in names
    }

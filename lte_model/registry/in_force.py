"""Which bases are in force, and which registered models read each."""

import polars as pl

from lte_model.domain.kind import KIND_FIELDS
from lte_model.domain.representations import split_names
from lte_model.registry.version_tags import own_tags
from lte_model.settings import Settings
from lte_model.tracking.lineage import ALIASES, versions_with
from lte_model.warehouse.reading import exists, scan

DAYS_BEHIND = 1
"""The most days that a basis may lag behind another: `publish_lte` publishes one after the other."""


def readers(settings: Settings, *aliases: str) -> dict[str, tuple[str, str]]:
    """{alias: (version, basis_id)} of the registered model; without `aliases`, of all that somebody may read tomorrow.

    Raises `LTEError` where MLflow doesn't answer, and where such a version isn't ours: nobody knows what it reads.
    """
    found = versions_with(settings, *(aliases or ALIASES))
    return {alias: (str(version.version), own_tags(version)["basis_id"]) for alias, version in found.items()}


def representations_read(settings: Settings, basis_id: str) -> tuple[str, ...]:
    """The representations that the aliases' versions read in a basis, each once. Raises as `readers`."""
    found = versions_with(settings, *ALIASES)
    of_basis = [tags for tags in map(own_tags, found.values()) if tags["basis_id"] == basis_id]
    return tuple(dict.fromkeys(name for tags in of_basis for name in split_names(tags["representation"])))


def publications(settings: Settings) -> list[dict]:
    """The newest publication of each basis and representation: its `LTEKind` fields, snapshot_date and users."""
    if not exists(settings, "publications"):
        return []
    newest = pl.col("snapshot_date") == pl.col("snapshot_date").max().over("basis_id", "representation")
    rows = scan(settings, "publications").filter(newest).select(*KIND_FIELDS, "snapshot_date", "users")
    return rows.sort(KIND_FIELDS).collect().to_dicts()


def named_bases(settings: Settings) -> tuple[str, ...]:
    """The bases that the settings name; empty where they leave the choice to the only registered one."""
    return tuple(filter(None, settings.basis.in_force))


def out_of_force(settings: Settings, *aliases: str) -> dict[str, str]:
    """{alias: what is wrong and what to do} of every alias whose version reads a basis that the settings don't name.

    Raises as `readers`, and asks for as many.
    """
    names = named_bases(settings)
    return {
        alias: f"version {number}, {alias}, reads basis {basis_id}, which isn't in force ({', '.join(names)} is): no "
        f"LTE of it is made any more; add it to basis.beside, and run lte_daily, which makes again what was retired"
        for alias, (number, basis_id) in readers(settings, *aliases).items()
        if names and basis_id not in names
    }

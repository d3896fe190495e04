"""Fits the semantic basis on the items known before `--date` and registers it in `semantic_bases`, once.

If a basis with the same encoder, dimensions and text template is registered, the job does nothing: a basis is frozen,
and with another one every item embedding and LTE must be computed again. `--refit` registers another one beside it.
`--dimensions` and `--text-template` override the settings. To see how a new basis replaces an old one, run
`python -m lte_model.registry.basis_change status`.
"""

import datetime

from delta.tables import DeltaTable
from pyspark.sql import functions as F

from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse
from lte_model.command_line import CommandParser, run
from lte_model.domain.basis import CONTENT_COLUMNS, SemanticBasis
from lte_model.errors import LTEError
from lte_model.settings import with_make
from lte_model.warehouse.tables import ITEMS, SEMANTIC_BASES


def require_choice(warehouse: Warehouse) -> None:
    """Raises `LTEError` if a basis is registered but the settings name none: a second one would be ambiguous."""
    if warehouse.settings.basis.basis_id:
        return
    registered = [row.basis_id for row in warehouse.read(SEMANTIC_BASES).select("basis_id").collect()]
    if registered:
        raise LTEError(
            f"basis {registered[0]} is registered, and the settings name none: with a second one no job would know "
            "which "
            f"to use. Set basis.basis_id to {registered[0]} first"
        )


def registered_twin(warehouse: Warehouse) -> str | None:
    """The id of the first registered basis that matches the settings, if there is one."""
    wanted = warehouse.settings.basis
    twin = (
        warehouse.read(SEMANTIC_BASES)
        .where(
            (F.col("encoder") == wanted.encoder)
            & (F.col("dimensions") == wanted.dimensions)
            & (F.col("text_template") == wanted.text_template)
        )
        .orderBy("fitted_on", "basis_id")
        .first()
    )
    return twin.basis_id if twin else None


def fit_basis(warehouse: Warehouse, date: datetime.date) -> tuple[SemanticBasis, int]:
    """The basis fitted on the items known before `date`, and the number of these items."""
    items = [
        row.asDict()
        for row in warehouse.read(ITEMS).where(F.col("known_date") < date).select(*CONTENT_COLUMNS).collect()
    ]
    wanted = warehouse.settings.basis
    return SemanticBasis.fit(items, wanted.text_template, wanted.dimensions), len(items)


def require_new(warehouse: Warehouse, basis: SemanticBasis, date: datetime.date) -> None:
    """Raises `LTEError` if the fitted basis is already in force, so that there is nothing to change to."""
    if basis.basis_id in warehouse.settings.basis.in_force:
        raise LTEError(
            f"the items known before {date} give basis {basis.basis_id} again, which is in force already; take a later "
            "date, or other --dimensions or another --text-template"
        )


def register(warehouse: Warehouse, basis: SemanticBasis, date: datetime.date, fitted_items: int) -> None:
    """Adds the basis to `semantic_bases`; a registered basis is left unchanged."""
    row = {
        "basis_id": basis.basis_id,
        "encoder": basis.encoder,
        "dimensions": basis.dimensions,
        "text_template": basis.text_template,
        "fitted_on": date,
        "fitted_items": fitted_items,
        "state": bytearray(basis.to_bytes()),
    }
    target = DeltaTable.forPath(warehouse.spark, warehouse.path(SEMANTIC_BASES))
    frame = warehouse.spark.createDataFrame([row], target.toDF().schema)
    target.alias("ours").merge(frame.alias("new"), "ours.basis_id = new.basis_id").whenNotMatchedInsertAll().execute()


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "fit on the items known before this day")
    parser.add_argument("--refit", action="store_true", help="register a new basis beside one of the same settings")
    parser.add_argument("--dimensions", type=int, help="of the basis (default: basis.dimensions of the settings)")
    parser.add_argument("--text-template", help="of the basis (default: basis.text_template of the settings)")
    arguments, settings, date = parser.read()
    settings = with_make(settings, arguments.dimensions, arguments.text_template)
    with spark_session(settings, "fit_basis", date) as spark:
        warehouse = Warehouse(spark, settings)
        warehouse.create(SEMANTIC_BASES)
        twin = registered_twin(warehouse)
        if twin and not arguments.refit:
            print(f"basis {twin} is registered and answers the settings; nothing to fit")
            return
        require_choice(warehouse)
        basis, fitted_items = fit_basis(warehouse, date)
        require_new(warehouse, basis, date)
        register(warehouse, basis, date, fitted_items)
    print(f"basis {basis.basis_id}: {basis.encoder}, {basis.dimensions} dimensions, fitted on {fitted_items:,} items")


if __name__ == "__main__":
    run(main)

"""Removes all data of a basis that nobody reads any more: its LTEs, live and past, and its item vectors.

    python -m jobs.retire_basis --basis ID                       everything, in the order of TABLES_OF_BASES
    python -m jobs.retire_basis --basis ID --table lte_live      one table, and its publications or accounts
    python -m jobs.retire_basis --basis ID --files online_store  the online store

The job refuses while an alias of the registry reads the basis or the settings name it
(lte_model/registry/basis_change.py).

Derived tables are removed before the tables they are made from, so that a run after a kill finds the rest. The row of
`semantic_bases` stays: a basis is frozen, and gives the same vectors when [basis] of the settings names it again.
History stays too: `lte_monitoring`, `lte_audits`, `training_set`, `recommendations`. `jobs.maintain_tables` deletes
the files later, except those of a version that a registered model names.
"""

from delta.tables import DeltaTable

from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse, sql_text
from lte_model.command_line import CommandParser, run
from lte_model.registry.basis_change import require_released
from lte_model.serving.online_store import retire_from_online_store
from lte_model.warehouse.tables import (
    ITEM_EMBEDDINGS,
    ITEM_ENCODINGS,
    LTE_LIVE,
    LTE_SNAPSHOTS,
    PUBLICATIONS,
    SNAPSHOT_ACCOUNTS,
    Table,
)

# Publications and accounts go before their rows: they must never describe rows that are gone.
TABLES_OF_BASES = {
    "lte_live": (PUBLICATIONS, LTE_LIVE),
    "lte_snapshots": (SNAPSHOT_ACCOUNTS, LTE_SNAPSHOTS),
    "item_encodings": (ITEM_ENCODINGS,),
    "item_embeddings": (ITEM_EMBEDDINGS,),
}
FILES = ("online_store",)


def retire_from_table(warehouse: Warehouse, table: Table, basis_id: str) -> int:
    """Removes the basis's rows in one commit; returns their number."""
    if not warehouse.exists(table):
        return 0
    of_basis = f"basis_id = {sql_text(basis_id)}"
    rows = warehouse.read(table).where(of_basis).count()
    if rows:
        DeltaTable.forPath(warehouse.spark, warehouse.path(table)).delete(of_basis)
    return rows


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__)
    parser.add_argument("--basis", required=True, metavar="ID", help="the basis to retire")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--table", choices=list(TABLES_OF_BASES), help="remove from this table alone")
    part.add_argument("--files", choices=FILES, help="remove from the online store alone")
    arguments, settings = parser.read_settings()
    require_released(settings, arguments.basis)
    if not arguments.files:
        with spark_session(settings, "retire_basis") as spark:
            for name in [arguments.table] if arguments.table else TABLES_OF_BASES:
                for table in TABLES_OF_BASES[name]:
                    rows = retire_from_table(Warehouse(spark, settings), table, arguments.basis)
                    print(f"{table.name}: {rows:,} rows of basis {arguments.basis} removed", flush=True)
    if not arguments.table:
        views = retire_from_online_store(settings, arguments.basis)
        print(f"online store: {', '.join(views) or 'nothing'} removed")


if __name__ == "__main__":
    run(main)

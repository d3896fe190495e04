"""The Delta tables as Polars reads them, without a JVM, each at one fixed version."""

import deltalake
import polars as pl

from lte_model.errors import LTEError
from lte_model.settings import Settings

WRITTEN_BY = {
    "events": "jobs.ingest_events",
    "items": "jobs.ingest_items",
    "semantic_bases": "jobs.fit_basis",
    "item_embeddings": "jobs.embed_items",
    "item_popularity": "jobs.count_popularity",
    "lte_snapshots": "jobs.snapshot_lte",
    "training_set": "jobs.build_training_set",
}
"""The tables that are read here and in the evaluation, and what to run where one is missing."""


class Tables:
    """The Delta tables of the warehouse, each at the version that it had when it was first looked at."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.versions: dict[str, int] = {}

    def scan(self, table: str) -> pl.LazyFrame:
        """The rows of `table`, unread. Raises `LTEError` where there is no such table."""
        path = self.settings.table_path(table)
        if table not in self.versions:
            if not deltalake.DeltaTable.is_deltatable(path):
                raise LTEError(f"table {table} does not exist at {path}; run {WRITTEN_BY[table]} first")
            self.versions[table] = deltalake.DeltaTable(path).version()
        return pl.scan_delta(path, version=self.versions[table])

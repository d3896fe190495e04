"""Reads Delta tables with Polars, without a JVM, and names the job to run if a table is missing."""

import polars as pl
from deltalake import DeltaTable

from lte_model.errors import LTEError
from lte_model.settings import Settings
from lte_model.warehouse.tables import TABLES, Table


def missing(table: Table, path: str, options: str = "") -> LTEError:
    """The error for a table missing at `path`. `options` complete the command of the job that writes it."""
    job = f"{table.written_by} {options}".strip()
    return LTEError(f"table {table.name} does not exist at {path}; run {job} first")


def exists(settings: Settings, table: str) -> bool:
    """Whether the table exists; it may have no rows."""
    return DeltaTable.is_deltatable(settings.table_path(table))


def place_of(settings: Settings, table: str, options: str = "") -> str:
    """The path or URL of `table`. Raises `LTEError` if the table is missing; `options` are as in `missing`."""
    if not exists(settings, table):
        raise missing(TABLES[table], settings.table_path(table), options)
    return settings.table_path(table)


def scan(settings: Settings, table: str, options: str = "") -> pl.LazyFrame:
    """A lazy frame of the current rows of `table`. Raises `LTEError` like `place_of`."""
    return pl.scan_delta(place_of(settings, table, options))


class Tables:
    """The Delta tables of the warehouse, each pinned to its version at the first read."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.versions: dict[str, int] = {}

    def scan(self, table: str) -> pl.LazyFrame:
        """A lazy frame of the rows of `table`. Raises `LTEError` if the table is missing."""
        if table not in self.versions:
            self.versions[table] = DeltaTable(place_of(self.settings, table)).version()
        return pl.scan_delta(self.settings.table_path(table), version=self.versions[table])

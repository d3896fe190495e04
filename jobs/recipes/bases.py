"""Finds the basis in force, and loads a registered basis and its items' vectors."""

import numpy as np
import polars as pl
import pyarrow as pa
from pyspark.sql import functions as F

from jobs.engine.items import ItemIndex, ItemVectors
from jobs.spark.warehouse import Warehouse
from lte_model.domain.basis import SemanticBasis, chosen_basis, to_grid
from lte_model.errors import LTEError
from lte_model.warehouse.tables import ITEM_EMBEDDINGS, ITEMS, SEMANTIC_BASES

ITEMS_AT_ONCE = 2**16
"""The number of items whose vectors are converted to grid units at a time."""


def basis_in_force(warehouse: Warehouse, wanted: str = "") -> str:
    """The basis id `wanted`, else the `basis_id` of the settings, else that of the only registered basis.

    Raises `LTEError` if the basis isn't registered, or if several are registered and the settings name none.
    """
    registered = [
        row.basis_id for row in warehouse.read(SEMANTIC_BASES).select("basis_id").orderBy("basis_id").collect()
    ]
    return chosen_basis(registered, wanted or warehouse.settings.basis.basis_id, warehouse.path(SEMANTIC_BASES))


def load_basis(warehouse: Warehouse, basis_id: str) -> SemanticBasis:
    """The registered basis.

    Raises `LTEError` if there is none, if its state doesn't hash to its id, or if that holds NaN.
    """
    row = warehouse.read(SEMANTIC_BASES).where(F.col("basis_id") == basis_id).first()
    if row is None:
        raise LTEError(f"basis {basis_id} is not registered in {warehouse.path(SEMANTIC_BASES)}; run jobs.fit_basis")
    basis = SemanticBasis.from_bytes(row.state, row.text_template)
    if basis.basis_id != basis_id:
        raise LTEError(
            f"the state of basis {basis_id} hashes to {basis.basis_id}: table semantic_bases is damaged; restore it"
        )
    if broken := basis.broken:
        raise LTEError(
            f"basis {basis_id} has {broken}: no item has a vector in it; let [basis] of the settings name "
            "another, which jobs.fit_basis --refit fits"
        )
    return basis


def load_index(warehouse: Warehouse, basis_id: str) -> ItemIndex:
    """Every item with a vector in the basis, ordered by id. Raises `LTEError` if there is none."""
    rows = _embedded_items(warehouse, basis_id).select("item_id", "known_day").sort("item_id").collect()
    return _index(rows, basis_id)


def load_vectors(warehouse: Warehouse, basis_id: str) -> ItemVectors:
    """The items of `load_index` with their vectors."""
    rows = _embedded_items(warehouse, basis_id).sort("item_id").collect()
    index = _index(rows, basis_id)
    dimensions = len(rows["vector"][0])
    units = np.empty((len(rows), dimensions), dtype=np.int32)
    for start in range(0, len(rows), ITEMS_AT_ONCE):
        vectors = rows["vector"][start : start + ITEMS_AT_ONCE].explode().to_numpy()
        units[start : start + ITEMS_AT_ONCE] = to_grid(vectors.reshape(-1, dimensions))
    return ItemVectors(basis_id, index, units)


def _embedded_items(warehouse: Warehouse, basis_id: str) -> pl.LazyFrame:
    warehouse.require(ITEM_EMBEDDINGS, ITEMS)
    known = pl.scan_delta(warehouse.path(ITEMS)).select("item_id", known_day=pl.col("known_date").to_physical())
    embeddings = pl.scan_delta(warehouse.path(ITEM_EMBEDDINGS)).filter(pl.col("basis_id") == basis_id)
    return embeddings.select("item_id", "vector").join(known, "item_id")


def _index(rows: pl.DataFrame, basis_id: str) -> ItemIndex:
    if rows.is_empty():
        raise LTEError(f"table item_embeddings holds no item of basis {basis_id}; run jobs.embed_items")
    return ItemIndex(rows["item_id"].to_arrow().cast(pa.string()), rows["known_day"].to_numpy())

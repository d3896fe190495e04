"""The registered bases, as a job meets them: which are in force, and the vectors of its items."""

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
"""Items whose vectors are brought to the grid at a time."""


def basis_in_force(warehouse: Warehouse, wanted: str = "") -> str:
    """The basis `wanted`, else the `basis_id` of the settings, or of the one basis that is registered.

    Raises `LTEError` for a basis that isn't registered, and where the settings leave a choice open.
    """
    registered = [
        row.basis_id for row in warehouse.read(SEMANTIC_BASES).select("basis_id").orderBy("basis_id").collect()
    ]
    return chosen_basis(registered, wanted or warehouse.settings.basis.basis_id, warehouse.path(SEMANTIC_BASES))


def load_basis(warehouse: Warehouse, basis_id: str) -> SemanticBasis:
    """The registered basis.

    Raises `LTEError` where there is none, and where its state isn't the one that was registered.
    """
    row = warehouse.read(SEMANTIC_BASES).where(F.col("basis_id") == basis_id).first()
    if row is None:
        raise LTEError(f"basis {basis_id} is not registered in {warehouse.path(SEMANTIC_BASES)}; run jobs.fit_basis")
    basis = SemanticBasis.from_bytes(row.state, row.text_template)
    if basis.basis_id != basis_id:
        raise LTEError(
            f"the state of basis {basis_id} hashes to {basis.basis_id}: table semantic_bases is damaged; restore it"
        )
    return basis


def load_index(warehouse: Warehouse, basis_id: str) -> ItemIndex:
    """Every item with a vector in the basis, ordered by id. Raises `LTEError` where there is none."""
    rows = _embedded_items(warehouse, basis_id).select("item_id", "known_day").sort("item_id").collect()
    return _index(rows, basis_id)


def load_vectors(warehouse: Warehouse, basis_id: str) -> ItemVectors:
    """The same items with their vectors."""
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

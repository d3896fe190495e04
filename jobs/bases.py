"""The registered bases, as a job meets them: which one is in force, and the vectors of its items."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.tables import ITEM_EMBEDDINGS, SEMANTIC_BASES, Warehouse, sql_text
from lte_model.basis import SemanticBasis, to_grid
from lte_model.errors import LTEError


def basis_in_force(warehouse: Warehouse) -> str:
    """The `basis_id` of the settings, or of the one basis that is registered.

    Raises `LTEError` where the settings name a basis that isn't registered, or leave a choice open.
    """
    registered = [
        row.basis_id for row in warehouse.read(SEMANTIC_BASES).select("basis_id").orderBy("basis_id").collect()
    ]
    wanted = warehouse.settings.basis.basis_id
    if wanted and wanted not in registered:
        raise LTEError(
            f"basis {wanted} is not registered in {warehouse.path(SEMANTIC_BASES)} (it holds {', '.join(registered)}); "
            "run jobs.fit_basis or correct basis.basis_id"
        )
    if not wanted and len(registered) != 1:
        raise LTEError(f"{len(registered)} bases are registered ({', '.join(registered)}); set basis.basis_id to one")
    return wanted or registered[0]


def load_basis(warehouse: Warehouse, basis_id: str) -> SemanticBasis:
    """The registered basis. Raises `LTEError` where its state isn't the one that was registered."""
    row = warehouse.read(SEMANTIC_BASES).where(F.col("basis_id") == basis_id).first()
    basis = SemanticBasis.from_bytes(row.state, row.text_template)
    if basis.basis_id != basis_id:
        raise LTEError(
            f"the state of basis {basis_id} hashes to {basis.basis_id}: table semantic_bases is damaged; restore it"
        )
    return basis


@dataclass(frozen=True)
class ItemVectors:
    """The vectors of one basis: `units` (items, dimensions) int32 in grid units, row i for `item_ids[i]`."""

    basis_id: str
    item_ids: pa.Array
    units: np.ndarray

    @property
    def dimensions(self) -> int:
        return self.units.shape[1]


def load_vectors(warehouse: Warehouse, basis_id: str) -> ItemVectors:
    """Every vector of the basis, ordered by item. Raises `LTEError` where there is none."""
    embeddings = warehouse.read(ITEM_EMBEDDINGS).where(f"basis_id = {sql_text(basis_id)}")
    table = embeddings.select("item_id", "vector").toArrow().sort_by("item_id").combine_chunks()
    if not table.num_rows:
        raise LTEError(f"table item_embeddings holds no item of basis {basis_id}; run jobs.embed_items")
    vectors = table["vector"].combine_chunks()
    flat = vectors.flatten().to_numpy(zero_copy_only=False)
    return ItemVectors(basis_id, table["item_id"].combine_chunks(), to_grid(flat.reshape(table.num_rows, -1)))


def embedded_items(warehouse: Warehouse, vectors: ItemVectors, items: DataFrame) -> DataFrame:
    """(item_id, item_index, item_known_date) of the items that have a vector; `item_index` is its row."""
    index = warehouse.spark.createDataFrame(
        pa.table({"item_id": vectors.item_ids, "item_index": pa.array(range(len(vectors.item_ids)), pa.int32())})
    )
    return index.join(items.select("item_id", F.col("known_date").alias("item_known_date")), "item_id")

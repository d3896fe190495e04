"""The items that can be ranked, with their content vectors, ordered by item id."""

import datetime
from dataclasses import dataclass

import numpy as np
import polars as pl

from lte_model.domain.basis import chosen_basis
from lte_model.errors import LTEError
from lte_model.warehouse.reading import Tables


@dataclass(frozen=True)
class Catalogue:
    """The items that can be ranked: row i is the item `item_ids[i]`, whose vector is `vectors[i]` (float32)."""

    item_ids: pl.Series
    titles: pl.Series
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def rows(self) -> pl.Enum:
        """A Polars enum of the item ids: an id's physical value is its row, and an unknown id casts to null."""
        return pl.Enum(self.item_ids)

    def titles_of(self, rows: np.ndarray) -> list[str]:
        """The titles of the items at `rows`."""
        return self.titles.gather(rows).to_list()


def basis_in_force(tables: Tables, wanted: str = "") -> str:
    """The basis `wanted`, else `basis_id` of the settings, else the only registered one; jobs choose the same way."""
    registered = tables.scan("semantic_bases").select("basis_id").sort("basis_id").collect()["basis_id"].to_list()
    settings = tables.settings
    return chosen_basis(registered, wanted or settings.basis.basis_id, settings.table_path("semantic_bases"))


def read_catalogue(tables: Tables, basis_id: str, known_before: datetime.date) -> Catalogue:
    """The items with a vector in `basis_id` and known before `known_before`. Raises `LTEError` if there are none."""
    frame = (
        tables.scan("item_embeddings")
        .filter(pl.col("basis_id") == basis_id)
        .select("item_id", "vector")
        .join(
            tables.scan("items").filter(pl.col("known_date") < known_before).select("item_id", "title"),
            on="item_id",
        )
        .sort("item_id")
        .collect()
    )
    if frame.is_empty():
        raise LTEError(
            f"item_embeddings of basis {basis_id} holds no item that was known before {known_before}; "
            "run jobs.ingest_items and jobs.embed_items"
        )
    dimensions = len(frame["vector"][0])
    return Catalogue(
        item_ids=frame["item_id"],
        titles=frame.select(pl.coalesce("title", "item_id"))["title"],
        vectors=as_matrix(frame["vector"], dimensions, f"item_embeddings of basis {basis_id}").astype(np.float32),
    )


def as_matrix(lists: pl.Series, dimensions: int, table: str) -> np.ndarray:
    """A column of lists as a matrix (rows, dimensions). Raises `LTEError` for a list of another length."""
    other = lists.filter(lists.list.len() != dimensions)
    if len(other):
        raise LTEError(
            f"{table} holds a vector of {len(other[0])} dimensions among those of {dimensions}; write the table again"
        )
    return lists.explode(empty_as_null=False).to_numpy().reshape(-1, dimensions)

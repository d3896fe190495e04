"""Finds the item encoder of a snapshot date, and loads its vectors.

An encoder gives an item a vector learned from behaviour, in the coordinates of a basis and on its grid. A snapshot date
D uses the newest encoder fitted on D or before. An item newer than the encoder keeps the vector of its content. An
existing snapshot keeps its encoder when it is made again, even if a newer one for its date was fitted since. So it has
the same bits.
"""

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from jobs.engine.items import ItemVectors
from jobs.spark.warehouse import Warehouse
from lte_model.domain.basis import to_grid
from lte_model.domain.representations import AUTOENCODER
from lte_model.errors import LTEError
from lte_model.warehouse.tables import ITEM_ENCODINGS, SNAPSHOT_ACCOUNTS


@dataclass(frozen=True)
class EncoderRecord:
    """An encoder in table `item_encodings`; it was fitted on the past of day `fitted_on`."""

    encoder_id: str
    fitted_on: datetime.date


def encoders_there(warehouse: Warehouse, basis_id: str) -> list[EncoderRecord]:
    """The encoders of a basis, oldest first."""
    if not warehouse.exists(ITEM_ENCODINGS):
        return []
    rows = pl.scan_delta(warehouse.path(ITEM_ENCODINGS)).filter(pl.col("basis_id") == basis_id)
    found = rows.select("encoder_id", "fitted_on").unique().sort("fitted_on", "encoder_id").collect()
    return [EncoderRecord(*row) for row in found.iter_rows()]


def made_with(warehouse: Warehouse, basis_id: str) -> dict[datetime.date, str]:
    """The existing autoencoder snapshots: date → id of the encoder that made it."""
    if not warehouse.exists(SNAPSHOT_ACCOUNTS):
        return {}
    accounts = pl.scan_delta(warehouse.path(SNAPSHOT_ACCOUNTS)).filter(basis_id=basis_id, representation=AUTOENCODER)
    if "encoder_id" not in accounts.collect_schema():  # an earlier release made the table, without encoders
        return {}
    return dict(accounts.select("snapshot_date", "encoder_id").collect().iter_rows())


def encoder_of(encoders: Sequence[EncoderRecord], date: datetime.date) -> EncoderRecord | None:
    """The encoder that the snapshot of `date` uses; None if all were fitted later."""
    return max((encoder for encoder in encoders if encoder.fitted_on <= date), key=_fitted_on, default=None)


def require_encoder(encoders: Sequence[EncoderRecord], date: datetime.date, basis_id: str) -> EncoderRecord:
    """The encoder that the snapshot of `date` uses. Raises `LTEError` if there is none."""
    encoder = encoder_of(encoders, date)
    if encoder is None:
        raise LTEError(
            f"table item_encodings holds no encoder of basis {basis_id} fitted on {date} or before, which the "
            f"autoencoder LTE of {date} needs; run python -m lte_model.training.autoencoder --date {date} "
            f"--basis {basis_id}, then "
            f"python -m jobs.encode_items --date {date} --basis {basis_id}"
        )
    return encoder


def encoded_items(warehouse: Warehouse, basis_id: str, fitted_on: datetime.date) -> pl.DataFrame:
    """(encoder_id, item_id, vector) of the encoder fitted on a date, ordered by item id."""
    of_date = (pl.col("basis_id") == basis_id) & (pl.col("fitted_on") == fitted_on)
    rows = pl.scan_delta(warehouse.path(ITEM_ENCODINGS)).filter(of_date)
    return rows.select("encoder_id", "item_id", "vector").sort("item_id").collect()


def with_encoder(warehouse: Warehouse, vectors: ItemVectors, encoder: EncoderRecord) -> ItemVectors:
    """The items with the encoder's vectors; items that it doesn't know keep theirs."""
    rows = encoded_items(warehouse, vectors.basis_id, encoder.fitted_on)
    numbered = pl.DataFrame({"item_id": vectors.index.item_ids}).with_row_index("number")
    found = rows.join(numbered, "item_id")
    units = vectors.units.copy()
    if len(found):
        encodings = found["vector"].explode().to_numpy().reshape(len(found), -1)
        units[found["number"].to_numpy()] = to_grid(np.asarray(encodings))
    return dataclasses.replace(vectors, units=units)


def _fitted_on(encoder: EncoderRecord) -> datetime.date:
    return encoder.fitted_on

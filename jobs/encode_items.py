"""Writes the item vectors of the encoder that was fitted on `--date` into `item_encodings`. An encoder is written once.

It reads what `python -m lte_model.training.autoencoder` wrote under `<checkpoints>/encoder/<basis>/<date>`:
`encoder.safetensors`, a tensor `vectors` (items, dimensions) float32 on the grid of the basis, and `encoder.json`,
which names the basis and the items. `--anchors` writes the encoder of every date that the training of `--date` reads.

The job is idempotent. It refuses a different encoder of the same date, because snapshots were made with the first.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from pyspark.sql import functions as F
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jobs.engine.items import ItemVectors
from jobs.recipes.bases import basis_in_force, load_vectors
from jobs.recipes.encoders import encoded_items
from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse, sql_date, sql_text
from lte_model.command_line import CommandParser, run
from lte_model.domain.basis import GRID, to_grid
from lte_model.domain.representations import AUTOENCODER
from lte_model.errors import LTEError
from lte_model.settings import Settings
from lte_model.training.encoder_files import DESCRIPTION_FILE, VECTORS_FILE, encoder_directory
from lte_model.warehouse.tables import ITEM_ENCODINGS


@dataclass(frozen=True)
class EncoderFile:
    """An encoder read from its files.

    `units` is (items, dimensions) int32 in grid units; row i belongs to `item_ids[i]`, in ascending order of id.
    """

    encoder_id: str
    basis_id: str
    fitted_on: datetime.date
    item_ids: tuple[str, ...]
    units: np.ndarray


def read_encoder(settings: Settings, basis_id: str, fitted_on: datetime.date) -> EncoderFile:
    """The encoder of a date in a basis.

    Raises `LTEError` if a file is missing, damaged or of another date, or has vectors off the grid.
    """
    directory = encoder_directory(settings, basis_id, fitted_on)
    again = f"run python -m lte_model.training.autoencoder --date {fitted_on} --basis {basis_id}"
    missing = [name for name in (VECTORS_FILE, DESCRIPTION_FILE) if not (directory / name).is_file()]
    if missing:
        raise LTEError(f"there is no encoder of {fitted_on}: {directory / missing[0]} does not exist; {again}")
    try:
        described = json.loads((directory / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        item_ids = [str(item) for item in described["item_ids"]]
        encoder_id, basis_id = str(described["encoder_id"]), str(described["basis_id"])
        dated = datetime.date.fromisoformat(described["fitted_on"])
        vectors = load_file(directory / VECTORS_FILE)["vectors"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise LTEError(f"the encoder of {fitted_on} in {directory} can't be read: {error!r}; {again}") from None
    if dated != fitted_on:
        raise LTEError(f"the encoder in {directory} was fitted on {dated}, not on {fitted_on}; {again}")
    if vectors.ndim != 2 or len(vectors) != len(item_ids) or len(set(item_ids)) != len(item_ids):
        raise LTEError(
            f"the encoder of {fitted_on} in {directory} names {len(set(item_ids)):,} items in {len(item_ids):,} rows, "
            f"and its tensor `vectors` has the shape {vectors.shape}; {again}"
        )
    try:
        units = to_grid(vectors)
    except LTEError:
        raise LTEError(
            f"the vectors of the encoder of {fitted_on} in {directory} are not multiples of 2^-14 in [-1, 1]; {again}"
        ) from None
    order = sorted(range(len(item_ids)), key=item_ids.__getitem__)
    return EncoderFile(encoder_id, basis_id, dated, tuple(item_ids[row] for row in order), units[order])


def require_of_basis(encoder: EncoderFile, vectors: ItemVectors) -> None:
    """Raises `LTEError` if the encoder's basis or dimensions differ, or the basis lacks one of its items."""
    again = f"run python -m lte_model.training.autoencoder --date {encoder.fitted_on} --basis {vectors.basis_id} again"
    if encoder.basis_id != vectors.basis_id:
        raise LTEError(
            f"the encoder of {encoder.fitted_on} was fitted in basis {encoder.basis_id}, and {vectors.basis_id} is in "
            f"force; correct basis.basis_id, or {again}"
        )
    if encoder.units.shape[1] != vectors.dimensions:
        raise LTEError(
            f"the encoder of {encoder.fitted_on} has {encoder.units.shape[1]} dimensions, basis {vectors.basis_id} has "
            f"{vectors.dimensions}; {again}"
        )
    unknown = sorted(set(encoder.item_ids) - set(vectors.index.item_ids.to_pylist()))
    if unknown:
        raise LTEError(
            f"the encoder of {encoder.fitted_on} names {len(unknown):,} items that table item_embeddings doesn't hold "
            f"in basis {vectors.basis_id}, first {unknown[0]!r}; run jobs.embed_items, or {again}"
        )


def encode_items(
    warehouse: Warehouse, dates: Sequence[datetime.date], basis_id: str = ""
) -> list[tuple[EncoderFile, bool]]:
    """Runs the job for one basis ("": that of the settings).

    Returns each date's encoder, and whether this run wrote it. Raises `LTEError` for an encoder that can't be used, or
    that differs from the table's encoder of the same date. All encoders are checked before the first is written.
    """
    vectors = load_vectors(warehouse, basis_in_force(warehouse, basis_id))
    encoders = [read_encoder(warehouse.settings, vectors.basis_id, date) for date in dates]
    warehouse.create(ITEM_ENCODINGS)
    there = []
    for encoder in encoders:
        require_of_basis(encoder, vectors)
        there.append(_is_there(warehouse, encoder))
    for encoder, written in zip(encoders, there, strict=True):
        if not written:
            _write(warehouse, encoder)
    return [(encoder, not written) for encoder, written in zip(encoders, there, strict=True)]


def _is_there(warehouse: Warehouse, encoder: EncoderFile) -> bool:
    """Whether the table holds the encoder. Raises `LTEError` if it holds a different one of the same date."""
    rows = encoded_items(warehouse, encoder.basis_id, encoder.fitted_on)
    if rows.is_empty():
        return False
    held = rows["encoder_id"][0]
    units = to_grid(rows["vector"].explode().to_numpy()).reshape(len(rows), -1)
    if (
        held != encoder.encoder_id
        or tuple(rows["item_id"]) != encoder.item_ids
        or not np.array_equal(units, encoder.units)
    ):
        raise LTEError(
            f"table item_encodings holds encoder {held} of {encoder.fitted_on}, and the files have "
            f"{encoder.encoder_id} with other vectors: snapshots may have been made with the first, so that it is "
            "never replaced. Fit an encoder of a later date"
        )
    return True


def _write(warehouse: Warehouse, encoder: EncoderFile) -> None:
    vectors = pl.Series((encoder.units / np.float32(GRID)).astype(np.float32)).to_arrow()
    frame = warehouse.spark.createDataFrame(
        pa.table({"item_id": pa.array(encoder.item_ids, pa.string()), "vector": vectors.cast(pa.list_(pa.float32()))})
    ).withColumns(
        {
            "basis_id": F.lit(encoder.basis_id),
            "encoder_id": F.lit(encoder.encoder_id),
            "fitted_on": F.lit(encoder.fitted_on),
        }
    )
    of_date = f"basis_id = {sql_text(encoder.basis_id)} AND fitted_on = {sql_date(encoder.fitted_on)}"
    warehouse.replace(ITEM_ENCODINGS, frame, of_date)


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "the day that the encoder was fitted on")
    parser.add_argument("--anchors", action="store_true", help="every date that the training of --date reads instead")
    parser.add_argument("--if-read", action="store_true", help="only where model.representations has autoencoder")
    parser.add_argument("--basis", metavar="ID", default="", help="of this basis (default: basis.basis_id)")
    arguments, settings, date = parser.read()
    if arguments.if_read and AUTOENCODER not in settings.model.representations:
        print(f"nothing to encode: {AUTOENCODER} is not among model.representations of the settings")
        return
    dates = settings.training_set.dates(date).snapshot_dates if arguments.anchors else (date,)
    with spark_session(settings, "encode_items", *dates) as spark:
        encoders = encode_items(Warehouse(spark, settings), dates, arguments.basis)
    for encoder, written in encoders:
        done = "written" if written else "there already"
        print(f"encoder {encoder.encoder_id} of {encoder.fitted_on}: {len(encoder.item_ids):,} items, {done}")


if __name__ == "__main__":
    run(main)

"""The drill's encoders, one per version and space, and the training sets with their LTEs."""

import dataclasses
import datetime
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse
import scipy.stats
import torch
from safetensors.numpy import load_file
from safetensors.numpy import save as save_tensors

from lte_model.domain.basis import to_grid, to_vector
from lte_model.domain.windows import lte_window
from lte_model.errors import LTEError
from lte_model.files import write_atomically
from lte_model.settings import Settings
from lte_model.studies.spaces import Space
from lte_model.studies.variants import VARIANTS
from lte_model.tracking import runs
from lte_model.training.autoencoder import Encoder, EncoderFit, fingerprint_of, on_grid
from lte_model.training.checkpoints import side_directory
from lte_model.training.encoder_cases import encoder_cases, read_events
from lte_model.training.encoder_files import DESCRIPTION_FILE, VECTORS_FILE
from lte_model.training.training_set import TrainingSet, open_training_set
from lte_model.warehouse.catalogue import Catalogue, basis_in_force, read_catalogue
from lte_model.warehouse.reading import Tables

VARIANT = VARIANTS["prefix_autoencoder"]


def settings_of(settings: Settings, seed: int) -> Settings:
    """The settings that train one encoder and its ranker."""
    autoencoder = settings.autoencoder.model_copy(update={"seed": seed})
    return VARIANT.settings(settings, seed).model_copy(update={"autoencoder": autoencoder})


def side_of(space: Space, seed: int) -> str:
    """The side under which a training of the drill is kept, below the training date of its version."""
    return f"{runs.DRILL_SIDE}/{space.name}/seed-{seed}"


def training_command(settings: Settings, training_date: datetime.date, space: Space) -> str:
    """The command line that trains the encoder and the ranker of one version in one space."""
    seed = settings.training.seed
    return f"python -m lte_model.studies.drill train --date {training_date} --space {space.name} --seed {seed}"


@dataclass(frozen=True)
class Encoding:
    """A fitted encoder of one version in one space; `space_id` names the decoder.

    Item `item_ids[i]` adds `vectors[i]` (float32, on the grid) to an LTE. An item that the encoder doesn't know adds
    its content vector times `coordinates` (dimensions, dimensions).
    """

    space_id: str
    item_ids: tuple[str, ...]
    vectors: np.ndarray
    coordinates: np.ndarray
    described: dict[str, Any]

    def units_of(self, catalogue: Catalogue) -> np.ndarray:
        """What each item of the catalogue adds to an LTE, (items, dimensions) int32 in grid units."""
        vectors = on_grid(torch.from_numpy(catalogue.vectors @ self.coordinates))
        rows = pl.Series(self.item_ids).cast(catalogue.rows, strict=False).to_physical()
        vectors[rows.drop_nulls().to_numpy()] = self.vectors[rows.is_not_null().to_numpy()]
        return to_grid(vectors)


def fit_encoding(settings: Settings, training_date: datetime.date, space: Space) -> Encoding:
    """The encoder of the version of `training_date`, fitted unless one of the same rows and settings exists.

    Raises `LTEError` as `fit_encoder` does.
    """
    tables, seed = Tables(settings), settings.training.seed
    date = settings.training_set.dates(training_date).anchors[0]
    basis_id = basis_in_force(tables)
    catalogue = read_catalogue(tables, basis_id, date)
    cases = encoder_cases(read_events(tables, catalogue, date), len(catalogue), date, settings)
    fingerprint = fingerprint_of(cases, catalogue, settings.autoencoder)
    directory = side_directory(settings, training_date, side_of(space, seed))
    if (directory / DESCRIPTION_FILE).is_file():
        there = read_encoding(settings, training_date, space)
        if there.described["fingerprint"] == fingerprint:
            return there
    print(f"encoder of {date}, {space.name}: {len(cases):,} cases, {len(catalogue):,} items", flush=True)
    coordinates = np.eye(catalogue.vectors.shape[1], dtype=np.float32)
    if space.own_coordinates:
        random = np.random.default_rng((seed, training_date.toordinal()))
        coordinates = scipy.stats.ortho_group.rvs(len(coordinates), random_state=random).astype(np.float32)
    torch.manual_seed(settings.autoencoder.seed)
    encoder = Encoder(
        torch.from_numpy(catalogue.vectors @ coordinates), torch.from_numpy(cases.popularity), space.learned_decoder
    )
    fit = EncoderFit(settings.autoencoder, encoder, cases)
    before, curve = fit.measure(), fit.run()
    decoder = encoder.decoder.detach().numpy().tobytes()
    described = {
        "space_id": hashlib.sha256(decoder).hexdigest()[:16] if space.learned_decoder else basis_id,
        "fitted_on": str(date),
        "fingerprint": fingerprint,
        "cases": len(cases),
        "anchors": len(cases.popularity),
        "before": before,
        "after": curve[-1],
        "item_ids": catalogue.item_ids.to_list(),
    }
    write_atomically(directory / VECTORS_FILE, save_tensors({"vectors": encoder.frozen(), "coordinates": coordinates}))
    write_atomically(directory / DESCRIPTION_FILE, json.dumps(described, indent=1).encode())
    return read_encoding(settings, training_date, space)


def read_encoding(settings: Settings, training_date: datetime.date, space: Space) -> Encoding:
    """What `fit_encoding` left. Raises `LTEError` where it has not run."""
    side = side_of(space, settings.training.seed)
    directory = side_directory(settings, training_date, side)
    if not (directory / DESCRIPTION_FILE).is_file():
        raise LTEError(f"there is no encoder in {directory}; run {training_command(settings, training_date, space)}")
    described = json.loads((directory / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    tensors = load_file(directory / VECTORS_FILE)
    return Encoding(
        described["space_id"],
        tuple(described.pop("item_ids")),
        tensors["vectors"],
        tensors["coordinates"],
        described,
    )


@dataclass(frozen=True)
class EncodedSet(TrainingSet):
    """The training set of a date with LTEs of one encoding: item i of the catalogue adds `units[i]` to them."""

    units: np.ndarray

    def ltes(self, cases: pl.DataFrame, needed: list[datetime.date]) -> tuple[np.ndarray, np.ndarray]:
        """The LTEs (N, 1, dimensions) of `cases` (snapshot_date, user_id), and the number of events in each (N, 1).

        They are made from the events themselves; no snapshot is needed.
        """
        numbered = cases.with_row_index("case")
        sums = np.zeros((len(cases), self.units.shape[1]), dtype=np.int64)
        event_counts = np.zeros((len(cases), 1), dtype=np.int64)
        for (date,), of_date in numbered.partition_by("snapshot_date", as_dict=True).items():
            window = lte_window(date, self.kind.lag_days, self.kind.window_days)
            events = self.tables.scan("events").filter(
                pl.col("known_date") < date, pl.col("event_date") >= window.start, pl.col("event_date") < window.end
            )
            known = self.tables.scan("items").filter(pl.col("known_date") < date).select("item_id")
            found = (
                events.join(known, on="item_id", how="semi")
                .join(of_date.lazy().select("user_id", "case"), on="user_id")
                .select("case", item=pl.col("item_id").cast(self.catalogue.rows, strict=False).to_physical())
                .drop_nulls("item")
                .collect()
            )
            places = (found["case"].to_numpy(), found["item"].to_numpy())
            counts = scipy.sparse.csr_array(
                (np.ones(len(found), dtype=np.int64), places), shape=(len(cases), len(self.units))
            )
            sums += counts @ self.units
            event_counts[:, 0] += counts.sum(axis=1)
        return to_vector(sums, event_counts[:, 0])[:, None], event_counts


def encoded_set(settings: Settings, training_date: datetime.date, encoding: Encoding) -> EncodedSet:
    """The training set of `training_date` with LTEs of `encoding`; its kind names the encoding's space."""
    opened = open_training_set(settings, training_date)
    kind = dataclasses.replace(opened.kind, basis_id=encoding.space_id)
    return EncodedSet(**vars(opened) | {"kind": kind}, units=encoding.units_of(opened.catalogue))

"""The drill: what happens when ranker and LTE are of different versions?

    python -m lte_model.studies.drill train --date D --space S --seed N        encoder and ranker of the version of D
    python -m lte_model.studies.drill report --date D --earlier C [--seeds 3]  both versions against each other

Version 1 is trained on day C, version 2 on day D. Between the two the shop went on: the encoder of version 2 has seen
newer days, and the catalogue has new items. Each ranker is then served either version of the LTE:

                    LTE v1                       LTE v2
    ranker v1       as trained                   the LTE was deployed first
    ranker v2       the LTE was rolled back      as trained

1. Three spaces (spaces.py) differ in what the encoder's decoder is: `fixed`, the frozen basis; `free`, learned, in
   coordinates of its own; `drifting`, learned from the basis on. Encoder, cases, loss, optimizer and epochs are those of
   autoencoder.py for all. `free` begins at the basis turned by a random rotation, another for each version and seed: at
   first it says the same as `fixed`, in other coordinates, so that a bad start can't be what it loses by.
2. A version has *one* encoder, for all of its LTEs: with one for each anchor, the anchors of a free space could not be
   read by one ranker. It is fitted as of the oldest anchor of its training, by nothing later, so that no LTE of the
   version has seen a target. (The project itself fits one for each date, which the fixed basis allows.)
3. The ranker is that of the ablation's variant `prefix_autoencoder`. Its LTEs are averages of encoded items over
   [A−L−W, A−L), in integers as the engine makes them; an item that the encoder doesn't know has the vector of its
   content, in the coordinates of the space.
4. All cells rank the targets of the same test users, those of D, in the catalogue of D; ranker v1 gets the items that
   it doesn't know by `Ranker.over`. Within a row of the matrix nothing but the LTE's version differs. Beside it
   stands the ranker without any LTE.
5. Intervals are those of a bootstrap over users, the same draws for all cells; a user's measure is the mean over seeds.

A ranker refuses LTEs of another space by name. The drill serves them all the same, and says what the refusal spares.

The result is `<reports>/<D>/drill.json`, and beside it a page (drill_report.py). Neither names a user.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import polars as pl
import scipy.sparse
import scipy.stats
import torch
from safetensors.numpy import load_file
from safetensors.numpy import save as save_tensors

from lte_model.command_line import run
from lte_model.domain.basis import to_grid, to_vector
from lte_model.domain.windows import lte_window, parse_run_date
from lte_model.errors import LTEError
from lte_model.evaluation.comparison import Comparison
from lte_model.evaluation.evaluate import tested_on
from lte_model.files import write_atomically
from lte_model.metrics import measures, relative_difference
from lte_model.ranker.cases import Cases
from lte_model.ranker.model import Ranker
from lte_model.ranker.ranks import target_ranks
from lte_model.ranker.saved import load_ranker
from lte_model.settings import Settings, load_settings
from lte_model.studies.drill_page import write_page
from lte_model.studies.results import Drill, drill_path
from lte_model.studies.spaces import CELLS, CHANGES, NO_LTE, SPACES, VERSIONS, Space, space_called
from lte_model.studies.variants import VARIANTS
from lte_model.tracking import runs
from lte_model.training.autoencoder import Encoder, EncoderFit, encoder_cases, fingerprint_of, on_grid, read_events
from lte_model.training.checkpoints import MODEL_DIRECTORY, read_result, side_directory
from lte_model.training.device import choose_device
from lte_model.training.encoder_files import DESCRIPTION_FILE, VECTORS_FILE
from lte_model.training.train import ranker_config, train
from lte_model.training.training_set import TrainingSet, open_training_set
from lte_model.warehouse.catalogue import Catalogue, basis_in_force, read_catalogue
from lte_model.warehouse.reading import Tables

SEEDS = 3
VARIANT = VARIANTS["prefix_autoencoder"]


def settings_of(settings: Settings, seed: int) -> Settings:
    """The settings of one training, of the encoder and of the ranker."""
    autoencoder = settings.autoencoder.model_copy(update={"seed": seed})
    return VARIANT.settings(settings, seed).model_copy(update={"autoencoder": autoencoder})


def side_of(space: Space, seed: int) -> str:
    """The side under which a training of the drill is kept, below the training date of its version."""
    return f"{runs.DRILL_SIDE}/{space.name}/seed-{seed}"


@dataclass(frozen=True)
class Encoding:
    """A fitted encoder: item `item_ids[i]` adds `vectors[i]` (float32, on the grid) to an LTE, and an item of which it
    knows nothing its content vector times `coordinates` (dimensions, dimensions). `space_id` names the decoder."""

    space_id: str
    item_ids: tuple[str, ...]
    vectors: np.ndarray
    coordinates: np.ndarray
    described: dict[str, Any]

    def units_of(self, catalogue: Catalogue) -> np.ndarray:
        """What each item of the catalogue adds, (items, dimensions) int32 in grid units."""
        vectors = on_grid(torch.from_numpy(catalogue.vectors @ self.coordinates))
        rows = pl.Series(self.item_ids).cast(catalogue.rows, strict=False).to_physical()
        vectors[rows.drop_nulls().to_numpy()] = self.vectors[rows.is_not_null().to_numpy()]
        return to_grid(vectors)


def fit_encoding(settings: Settings, training_date: datetime.date, space: Space) -> Encoding:
    """The encoder of the version of `training_date`: fitted, or found where it was fitted to the same rows and settings.

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
        raise LTEError(f"there is no encoder in {directory}; run {_again(settings, training_date, space)}")
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
        """The LTEs (N, 1, dimensions) of `cases` (snapshot_date, user_id) and the events in each, from the events
        themselves; no snapshot is needed."""
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
    """The training set of `training_date` with LTEs of `encoding`, whose kind names the encoding's space."""
    opened = open_training_set(settings, training_date)
    kind = dataclasses.replace(opened.kind, basis_id=encoding.space_id)
    return EncodedSet(**vars(opened) | {"kind": kind}, units=encoding.units_of(opened.catalogue))


def train_version(settings: Settings, training_date: datetime.date, space: Space, seed: int) -> Path:
    """Fits the encoder, trains the ranker on its LTEs, or finds both done; returns the ranker's directory."""
    own = settings_of(settings, seed)
    if own.training.threads:
        torch.set_num_threads(own.training.threads)
    training_set = encoded_set(own, training_date, fit_encoding(own, training_date, space))
    return train(own, training_date, own.model.integration, side_of(space, seed), training_set=training_set)


def with_catalogue(ranker: Ranker, catalogue: Catalogue) -> Ranker:
    """The ranker over the catalogue, with the items that it doesn't know yet.

    Raises `LTEError` where it ranks an item that the catalogue lacks.
    """
    known = set(ranker.item_ids)
    if not known <= set(catalogue.item_ids):
        raise LTEError(
            f"the model ranks {len(known):,} items, of which the catalogue of {len(catalogue):,} lacks some: table items "
            "or item_embeddings changed after the training; train the drill again"
        )
    return ranker.over(catalogue.item_ids.to_list(), torch.from_numpy(catalogue.vectors))


def without_lte(cases: Cases) -> Cases:
    """The cases of users of whom there is no LTE."""
    return dataclasses.replace(
        cases, has_lte=np.zeros_like(cases.has_lte), event_counts=np.zeros_like(cases.event_counts)
    )


@dataclass(frozen=True)
class Drilled:
    """What one seed of one space showed: ranks (N,) by cell, and how the LTEs of the versions differ."""

    ranks: dict[str, np.ndarray]
    cosine: float
    """Of a test user's LTE v1 with the LTE v2, the mean."""
    accepted: bool
    """Whether each ranker takes the other version's LTE for its own kind."""
    encoders: dict[str, dict[str, Any]]
    new_items: int


def drill_space(settings: Settings, dates: dict[str, datetime.date], space: Space, seed: int) -> Drilled:
    """Ranks the test users of version 2 by every cell of a space.

    `dates` are the training dates of the versions. Raises `LTEError` where a training isn't finished or is of other
    settings than those of today.
    """
    own = settings_of(settings, seed)
    device = choose_device(own.training.device)
    encodings = {version: read_encoding(own, date, space) for version, date in dates.items()}
    sets = {version: encoded_set(own, dates["v2"], encoding) for version, encoding in encodings.items()}
    served = {version: encoded.cases("test") for version, encoded in sets.items()}
    served[NO_LTE] = without_lte(served["v2"])
    ranks, accepted, new_items = {}, True, 0
    for version, date in dates.items():
        again, side = _again(own, date, space), side_of(space, seed)
        read_result(own, date, side, again)
        ranker = load_ranker(side_directory(own, date, side) / MODEL_DIRECTORY, device)
        if ranker.config != ranker_config(own, open_training_set(own, date), own.model.integration):
            raise LTEError(f"the ranker of {date}, {space.name}, has other settings than today's; run {again}")
        for other in VERSIONS:
            accepted &= _accepts(ranker, sets[other])
        items = len(ranker.item_ids)
        ranker = with_catalogue(ranker, sets[version].catalogue)
        new_items = max(new_items, len(ranker.item_ids) - items)
        for lte, cases in served.items():
            ranks[f"{version}{lte}"] = target_ranks(ranker, cases, device)
    both = served["v1"].has_lte[:, 0] & served["v2"].has_lte[:, 0]
    return Drilled(
        ranks=ranks,
        cosine=_mean_cosine(served["v1"].lte[both, 0], served["v2"].lte[both, 0]),
        accepted=accepted,
        encoders={version: encoding.described for version, encoding in encodings.items()},
        new_items=new_items,
    )


def _accepts(ranker: Ranker, encoded: EncodedSet) -> bool:
    try:
        ranker.require(encoded.kind, "the drill")
    except LTEError:
        return False
    return True


def _mean_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The mean cosine of the rows of two matrices (N, dimensions); 1 where there is no row."""
    if not len(ours):
        return 1.0
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(np.mean((ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)))


def _again(settings: Settings, training_date: datetime.date, space: Space) -> str:
    seed = settings.training.seed
    return f"python -m lte_model.studies.drill train --date {training_date} --space {space.name} --seed {seed}"


def evaluate_drill(settings: Settings, earlier: datetime.date, later: datetime.date, seeds: int) -> Drill:
    """Compares the trained versions in every space, writes drill.json, logs to MLflow, and returns what was written.

    Raises `LTEError` where `later` isn't, and as `drill_space` does.
    """
    if earlier >= later:
        raise LTEError(f"version 1 is of {earlier}, not before version 2 of {later}; give an earlier --earlier")
    started = time.perf_counter()
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    dates = dict(zip(VERSIONS, (earlier, later), strict=True))
    drilled: dict[str, list[Drilled]] = {}
    for space in SPACES.values():
        print(f"drilling {space.name}", flush=True)
        drilled[space.name] = [drill_space(settings, dates, space, seed) for seed in range(seeds)]

    cutoffs = settings.evaluation.cutoffs
    headline = f"ndcg@{max(cutoffs)}"
    measured = {
        f"{space} {cell}": measures(np.stack([of_seed.ranks[cell] for of_seed in of_space]), cutoffs)
        for space, of_space in drilled.items()
        for cell in CELLS
    }
    by_seed = {side: of_side[headline].mean(axis=1) for side, of_side in measured.items()}
    comparison = Comparison.of_values(
        {
            side: {measure: found.mean(axis=0) for measure, found in of_side.items()}
            for side, of_side in measured.items()
        },
        settings,
    )
    metrics = comparison.metrics()
    uplifts = comparison.uplifts(
        {
            f"{space} {name}": (f"{space} {change.ours}", f"{space} {change.base}")
            for space in drilled
            for name, change in CHANGES.items()
        }
    )
    own = settings_of(settings, 0)
    training_set = open_training_set(own, later)
    cases = encoded_set(own, later, read_encoding(own, later, SPACES["fixed"])).cases("test")
    drill: Drill = {
        **tested_on(training_set, cases),
        "earlier_date": str(earlier),
        "earlier_anchors": [str(anchor) for anchor in settings.training_set.dates(earlier).anchors],
        "new_items": drilled["fixed"][0].new_items,
        "headline": headline,
        "seeds": seeds,
        "spaces": {
            name: {
                "description": SPACES[name].description,
                "cells": {
                    cell: {"metrics": metrics[f"{name} {cell}"], "by_seed": by_seed[f"{name} {cell}"].tolist()}
                    for cell in CELLS
                },
                "changes": {
                    change: {
                        "uplift": uplifts[f"{name} {change}"][headline],
                        "by_seed": relative_difference(
                            by_seed[f"{name} {pair.ours}"], by_seed[f"{name} {pair.base}"]
                        ).tolist(),
                    }
                    for change, pair in CHANGES.items()
                },
                "cosine": float(np.mean([of_seed.cosine for of_seed in of_space])),
                "accepted": all(of_seed.accepted for of_seed in of_space),
                "encoders": of_space[0].encoders,
            }
            for name, of_space in drilled.items()
        },
        "tables": {table: {"version": version} for table, version in sorted(training_set.tables.versions.items())},
        "seconds": round(time.perf_counter() - started, 1),
    }
    file = drill_path(settings, later)
    write_atomically(file, json.dumps(drill, indent=1, ensure_ascii=False, allow_nan=False).encode())
    _log(settings, later, drill)
    return drill


def _log(settings: Settings, training_date: datetime.date, drill: Drill) -> None:
    """The headline of every cell, and the file, into the run `drill` of the later version."""
    headline = drill["headline"]
    with runs.training_run(settings, training_date, runs.DRILL_SIDE) as active:
        mlflow.set_tags({"basis_id": drill["basis_id"], "earlier_date": drill["earlier_date"]})
        for table, of_table in drill["tables"].items():
            runs.log_dataset(settings, table, of_table["version"], "evaluation")
        runs.log_metrics(
            active.info.run_id,
            {
                f"{space}/{cell}/test_{headline}": of_cell["metrics"][headline]["value"]
                for space, of_space in drill["spaces"].items()
                for cell, of_cell in of_space["cells"].items()
            },
        )
        mlflow.log_artifact(str(drill_path(settings, training_date)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves rankers LTEs of another version, in fixed and in free spaces.")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="fits one encoder and trains its ranker")
    training.add_argument("--date", type=parse_run_date, required=True, help="the day the version's training runs on")
    training.add_argument("--space", required=True, help=f"one of {', '.join(SPACES)}")
    training.add_argument("--seed", type=int, required=True)
    report = commands.add_parser("report", help="compares the versions")
    report.add_argument("--date", type=parse_run_date, required=True, help="the training date of version 2")
    report.add_argument("--earlier", type=parse_run_date, required=True, help="the training date of version 1")
    report.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each training (default: %(default)s)")
    for options in (training, report):
        options.add_argument("--settings", default=None, help="settings file (default: $LTE_SETTINGS)")
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings)
    if arguments.command == "train":
        train_version(settings, arguments.date, space_called(arguments.space), arguments.seed)
    else:
        evaluate_drill(settings, arguments.earlier, arguments.date, arguments.seeds)
        page = write_page(settings, arguments.date)
        with runs.training_run(settings, arguments.date, runs.DRILL_SIDE):
            mlflow.log_artifact(str(page))
        print(page)


if __name__ == "__main__":
    run(main)

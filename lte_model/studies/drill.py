"""The drill shows what happens when ranker and LTE are of different versions.

    python -m lte_model.studies.drill train --date D --space S --seed N        encoder and ranker of the version of D
    python -m lte_model.studies.drill report --date D --earlier C [--seeds 3]  both versions against each other

Version 1 is trained on day C, version 2 on the later day D: the encoder of version 2 has seen newer days, and the
catalogue has new items. Each ranker is served both versions of the LTE:

                    LTE v1                       LTE v2
    ranker v1       as trained                   the LTE was deployed first
    ranker v2       the LTE was rolled back      as trained

1. Three spaces (spaces.py in this room) differ in the decoder. `fixed` has the frozen basis, `drifting` learns a
   decoder from the basis on, and `free` learns one in its own coordinates. Encoder, cases, loss, optimizer and epochs
   are those of lte_model/training/autoencoder.py in all three. `free` starts from the basis under a random rotation,
   drawn for each version and seed: it starts equivalent to `fixed`, so that a bad start can't explain a loss.
2. A version has *one* encoder for all of its LTEs: with one per anchor, no ranker could read the anchors of a free
   space together. It is fitted as of the oldest anchor of its training, without later data, so that no LTE of the
   version has seen a target. (The pipeline itself fits one per date, which the fixed basis allows.) encodings.py fits
   the encoder and builds the training set with its LTEs.
3. The ranker is the ablation's variant `prefix_autoencoder`. Its LTEs average encoded items over [A−L−W, A−L), in
   integers as the engine does. An item unknown to the encoder uses its content vector, in the coordinates of the space.
4. All cells rank the targets of D's test users in D's catalogue; `Ranker.over` adds the items that ranker v1 doesn't
   know. Within a row of the matrix only the LTE's version differs. Each row also has the ranker without any LTE.
5. Intervals come from a bootstrap over users with the same draws for all cells. A user's measure averages the seeds.

In production a ranker refuses LTEs of another space by their basis id. The drill serves them anyway, and so measures
the loss that this check prevents.

The result is `<reports>/<D>/drill.json`, and beside it a page (drill_page.py). Neither names a user.
"""

import dataclasses
import datetime
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch

from lte_model.command_line import CommandParser, run
from lte_model.domain.windows import parse_run_date
from lte_model.errors import LTEError
from lte_model.evaluation.comparison import Comparison
from lte_model.evaluation.evaluate import tested_on
from lte_model.evaluation.results import write_content
from lte_model.metrics import mean_cosine, measures, relative_difference
from lte_model.ranker.cases import Cases
from lte_model.ranker.model import Ranker
from lte_model.ranker.ranks import target_ranks
from lte_model.ranker.saved import load_ranker
from lte_model.settings import Settings
from lte_model.studies.drill_page import write_page
from lte_model.studies.encodings import (
    EncodedSet,
    encoded_set,
    fit_encoding,
    read_encoding,
    settings_of,
    side_of,
    training_command,
)
from lte_model.studies.results import Drill, drill_path
from lte_model.studies.spaces import CELLS, CHANGES, NO_LTE, SPACES, VERSIONS, Space, space_called
from lte_model.studies.variants import SEEDS
from lte_model.tracking import runs
from lte_model.training.checkpoints import MODEL_DIRECTORY, read_result, side_directory
from lte_model.training.device import choose_device
from lte_model.training.train import ranker_config, train
from lte_model.training.training_set import open_training_set
from lte_model.warehouse.catalogue import Catalogue


def train_version(settings: Settings, training_date: datetime.date, space: Space, seed: int) -> Path:
    """Fits the encoder and trains the ranker on its LTEs, unless both are done; returns the ranker's directory."""
    own = settings_of(settings, seed)
    if own.training.threads:
        torch.set_num_threads(own.training.threads)
    training_set = encoded_set(own, training_date, fit_encoding(own, training_date, space))
    return train(own, training_date, own.model.integration, side_of(space, seed), training_set=training_set)


def with_catalogue(ranker: Ranker, catalogue: Catalogue) -> Ranker:
    """The ranker over the whole catalogue, items that are new to it included.

    Raises `LTEError` where it ranks an item that the catalogue lacks.
    """
    known = set(ranker.item_ids)
    if not known <= set(catalogue.item_ids):
        raise LTEError(
            f"the model ranks {len(known):,} items, of which the catalogue of {len(catalogue):,} lacks some: table "
            "items or item_embeddings changed after the training; train the drill again"
        )
    return ranker.over(catalogue.item_ids.to_list(), torch.from_numpy(catalogue.vectors))


def without_lte(cases: Cases) -> Cases:
    """The cases with every LTE removed."""
    return dataclasses.replace(
        cases, has_lte=np.zeros_like(cases.has_lte), event_counts=np.zeros_like(cases.event_counts)
    )


@dataclass(frozen=True)
class Drilled:
    """The result of one seed in one space: ranks (N,) by cell, and how the LTEs of the versions differ."""

    ranks: dict[str, np.ndarray]
    cosine: float
    """The mean cosine of a test user's LTE v1 with the LTE v2; 1 where no user has both."""
    accepted: bool
    """Whether each ranker accepts the other version's LTE as its own kind."""
    encoders: dict[str, dict[str, Any]]
    new_items: int


def drill_space(settings: Settings, dates: dict[str, datetime.date], space: Space, seed: int) -> Drilled:
    """Ranks the test users of version 2 by every cell of a space.

    `dates` are the training dates of the versions. Raises `LTEError` where a training isn't finished or used other
    settings than today's.
    """
    own = settings_of(settings, seed)
    device = choose_device(own.training.device)
    encodings = {version: read_encoding(own, date, space) for version, date in dates.items()}
    sets = {version: encoded_set(own, dates["v2"], encoding) for version, encoding in encodings.items()}
    served = {version: encoded.cases("test") for version, encoded in sets.items()}
    served[NO_LTE] = without_lte(served["v2"])
    ranks, accepted, new_items = {}, True, 0
    for version, date in dates.items():
        again, side = training_command(own, date, space), side_of(space, seed)
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
    cosine = mean_cosine(served["v1"].lte[both, 0], served["v2"].lte[both, 0])
    return Drilled(
        ranks=ranks,
        cosine=1.0 if math.isnan(cosine) else cosine,
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


def evaluate_drill(settings: Settings, earlier: datetime.date, later: datetime.date, seeds: int) -> Drill:
    """Compares the trained versions in every space, writes drill.json, logs to MLflow, and returns what was written.

    Raises `LTEError` where `later` isn't after `earlier`, and as `drill_space` does.
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

    cutoffs, headline = settings.evaluation.cutoffs, settings.evaluation.headline
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
    write_content(drill_path(settings, later), drill)
    _log(settings, later, drill)
    return drill


def _log(settings: Settings, training_date: datetime.date, drill: Drill) -> None:
    """Logs every cell's headline and the file to the run `drill` of the later version."""
    headline = drill["headline"]
    with runs.training_run(settings, training_date, runs.DRILL_SIDE) as active:
        mlflow.set_tags({"basis_id": drill["basis_id"], "earlier_date": drill["earlier_date"]})
        for table, of_table in drill["tables"].items():
            runs.log_dataset(settings, table, of_table["version"], "evaluation")
        runs.log_metrics(
            active.info.run_id,
            {
                f"{space}/{cell}/test_{headline}": of_cell["metrics"][headline].value
                for space, of_space in drill["spaces"].items()
                for cell, of_cell in of_space["cells"].items()
            },
        )
        mlflow.log_artifact(str(drill_path(settings, training_date)))


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser("Serves rankers LTEs of another version, in fixed and in free spaces.")
    training = parser.add_command(
        "train", "fits one encoder and trains its ranker", "the day the version's training runs on"
    )
    training.add_argument("--space", required=True, help=f"one of {', '.join(SPACES)}")
    training.add_argument("--seed", type=int, required=True)
    report = parser.add_command("report", "compares the versions", "the training date of version 2")
    report.add_argument("--earlier", type=parse_run_date, required=True, help="the training date of version 1")
    report.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each training (default: %(default)s)")
    arguments, settings = parser.read_settings()
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

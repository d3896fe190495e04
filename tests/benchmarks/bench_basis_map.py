"""Measures what mapping LTEs from one basis to another loses, on real data: `make bench-basis-map`.

For each data set one ranker is trained, with the uniform LTE as prefix, in a basis of 64 dimensions fitted on all items
known by the training date. Other bases stand for a shop's old basis:

    earlier      fitted on the items known in the middle of the feed
    wider        128 dimensions
    narrower     32 dimensions
    titles       fitted on titles only, if the data set has other text too

Each is mapped to the ranker's basis (lte_model/registry/basis_map.py). It measures the loss on held-out items, the
cosine between test users' mapped and own LTEs, and the ranker's NDCG with its own LTEs, mapped ones, and none.

It reads the tables of the drill (`make drill`), and makes missing ones. Like the drill, it sums LTEs from the events in
integers, so that the other bases need not be registered.
"""

import argparse
import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from infra.runs import drill
from lte_model.command_line import run
from lte_model.domain.basis import CONTENT_COLUMNS, SemanticBasis, to_grid
from lte_model.metrics import mean_cosine
from lte_model.ranker.saved import load_ranker
from lte_model.registry.basis_map import (
    HELD_OUT,
    BasisMap,
    fit_map,
    held_out_items,
    loss_of,
    mapped_set,
    ranking_figures,
    ranking_loss,
)
from lte_model.studies.encodings import EncodedSet
from lte_model.training.train import train
from lte_model.training.training_set import TrainingSet, open_training_set
from lte_model.warehouse.catalogue import Catalogue
from tests.benchmarks.bench_quality import DATA, SETS

OWN = "own"


def fitted_bases(
    items: pl.DataFrame, middle: datetime.date, template: str, dimensions: int
) -> dict[str, SemanticBasis]:
    """{name: basis}, the ranker's basis first."""
    earlier = items.filter(pl.col("known_date") < middle)
    bases = {
        OWN: SemanticBasis.fit(items.to_dicts(), template, dimensions),
        "earlier": SemanticBasis.fit(earlier.to_dicts(), template, dimensions),
        "wider": SemanticBasis.fit(items.to_dicts(), template, 2 * dimensions),
        "narrower": SemanticBasis.fit(items.to_dicts(), template, dimensions // 2),
        "titles": SemanticBasis.fit(items.to_dicts(), "{title}", dimensions),
    }
    if np.array_equal(bases["titles"].features, bases[OWN].features):
        del bases["titles"]  # the set has no other text
    return bases


def in_basis(opened: TrainingSet, items: pl.DataFrame, basis: SemanticBasis) -> EncodedSet:
    """The training set with a basis' catalogue and uniform LTEs."""
    vectors, known = basis.encode(items.to_dicts())
    catalogue = Catalogue(items["item_id"].filter(known), items["title"].filter(known), vectors[known])
    kind = dataclasses.replace(opened.kind, basis_id=basis.basis_id)
    return EncodedSet(**vars(opened) | {"kind": kind, "catalogue": catalogue}, units=to_grid(catalogue.vectors))


def shared_vectors(source: EncodedSet, target: EncodedSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(source vectors, target vectors, held-out mask) of the items in both catalogues."""
    rows = source.catalogue.item_ids.cast(target.catalogue.rows, strict=False).to_physical()
    both = rows.is_not_null().to_numpy()
    held_out = held_out_items(source.catalogue.item_ids.filter(both).to_list())
    return source.catalogue.vectors[both], target.catalogue.vectors[rows.drop_nulls().to_numpy()], held_out


def measure(folder: Path, seed: int, with_ranking: bool = True) -> list[dict[str, Any]]:
    """A data set's figures as rows of measure, side, value and unit, the format of every `--json` option."""
    _, settings, _, date = drill.make_tables(drill.options(["--data", str(folder)]))
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"seed": seed})})
    opened = open_training_set(settings, date)
    known = opened.tables.scan("items").filter(pl.col("known_date") < opened.dates.test.start)
    items = known.select("item_id", "known_date", *CONTENT_COLUMNS).sort("item_id").collect()
    days = opened.tables.scan("events").select(first=pl.col("event_date").min()).collect()["first"]
    middle = days.item() + (date - days.item()) // 2
    bases = fitted_bases(items, middle, settings.basis.text_template, settings.basis.dimensions)
    sets = {name: in_basis(opened, items, basis) for name, basis in bases.items()}
    ours = sets.pop(OWN)
    if with_ranking:
        ranker = load_ranker(train(settings, date, "prefix", f"basis_map/{seed}", training_set=ours))
    figures = []
    for name, source in sets.items():
        vectors, own_vectors, held_out = shared_vectors(source, ours)
        basis_map = fit_map(source.kind.basis_id, ours.kind.basis_id, vectors[~held_out], own_vectors[~held_out])
        loss = {
            f"items {name}": value
            for name, value in loss_of(basis_map, vectors[held_out], own_vectors[held_out]).items()
        }
        loss |= {"items": len(vectors), "users cosine": cosine_of_users(ours, source, basis_map)}
        if with_ranking:
            loss |= ranking_figures(ranking_loss(ours, source, ranker, basis_map))
        figures += [
            {"measure": f"{folder.name} {name}", "side": side, "value": round(value, 5), "unit": ""}
            for side, value in loss.items()
        ]
    return figures


def cosine_of_users(ours: EncodedSet, source: EncodedSet, basis_map: BasisMap) -> float:
    """The mean cosine over test users with an LTE in both bases."""
    own, mapped = ours.cases("test"), mapped_set(ours, source, basis_map).cases("test")
    both = own.has_lte[:, 0] & mapped.has_lte[:, 0]
    return mean_cosine(mapped.lte[both, 0], own.lte[both, 0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what a map from one basis to another loses, on real data.")
    parser.add_argument("--data", default=str(DATA), help="the folder of the data sets (default: %(default)s)")
    parser.add_argument("--sets", default=",".join(SETS), help="their names, with commas (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the ranker (default: %(default)s)")
    parser.add_argument(
        "--without-ranking", action="store_true", help="train no ranker: the loss of items and users alone"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    figures = []
    for name in arguments.sets.split(","):
        figures += measure(Path(arguments.data, name), arguments.seed, not arguments.without_ranking)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"one item in {HELD_OUT} is held out")
    for figure in figures:
        print(f"{figure['measure']:<28} {figure['side']:<32} {figure['value']:.4f}")


if __name__ == "__main__":
    run(main)

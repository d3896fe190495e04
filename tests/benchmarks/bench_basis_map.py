"""What is lost on the way from one basis to another, on real data: `make bench-basis-map`.

For each data set one ranker is trained, with the LTE as prefix, in a basis of 64 dimensions that is fitted on the whole
catalogue. Three other bases stand for what a shop may change from:

    earlier      fitted on the items that were known half a feed earlier
    wider        128 dimensions
    titles       of the titles alone, where the set has more text than that

Each is mapped to the ranker's basis (lte_model/basis_map.py): the loss on items held out and on the users' LTEs, and
NDCG of the ranker with the LTEs that it was trained on, with the mapped ones, and with none.

The installation is `.lte/<name of the set>-bases`; a second call finds its tables and its training.
"""

import argparse
import datetime
import json
from pathlib import Path

import numpy as np

from infra.ablation import TRAINING
from infra.demo import Feed, add_installation, read_feed, settle
from infra.drill import dated_feed
from jobs.bases import load_basis
from jobs.build_training_set import build_training_set
from jobs.embed_items import embed_items
from jobs.fit_basis import fit_basis, register
from jobs.ingest_events import ingest_events
from jobs.ingest_items import ingest_items
from jobs.session import spark_session
from jobs.snapshot_lte import snapshot_lte
from jobs.tables import SEMANTIC_BASES, Warehouse
from lte_model.basis_map import keep_map, make_map, ranking_figures, ranking_loss
from lte_model.data import open_training_set
from lte_model.errors import run
from lte_model.model import load_ranker
from lte_model.settings import Settings, with_make
from lte_model.training import train
from lte_model.windows import ONE_DAY, Interval, training_dates
from tests.benchmarks.bench_quality import DATA, REPOSITORY, SETS

OWN = "own"
TITLES = "{title}"


def make_tables(settings: Settings, feed: Feed, date: datetime.date) -> dict[str, str]:
    """The tables of the ranker's basis, and the test cut's LTEs in the others; {name: basis_id}."""
    middle = feed.first + (feed.last - feed.first) // 2
    makes = {
        OWN: (date, {}),
        "earlier": (middle, {}),
        "wider": (date, {"dimensions": 2 * settings.basis.dimensions}),
        "titles": (date, {"text_template": TITLES}),
    }
    bases: dict[str, str] = {}
    with spark_session(settings, "bench_basis_map") as spark:
        warehouse = Warehouse(spark, settings)
        ingest_items(warehouse, settings, date)
        ingest_events(warehouse, settings, Interval(feed.first, date))
        warehouse.create(SEMANTIC_BASES)
        for name, (known_before, make) in makes.items():
            warehouse.settings = with_make(settings, make.get("dimensions"), make.get("text_template"))
            basis, items = fit_basis(warehouse, known_before)
            same_text = name == "titles" and np.array_equal(basis.features, load_basis(warehouse, bases[OWN]).features)
            if not same_text:
                register(warehouse, basis, known_before, items)
                bases[name] = basis.basis_id
        warehouse.settings = in_basis(settings, bases[OWN])
        dates = training_dates(date, settings.training_set)
        for name, basis_id in bases.items():
            print(f"{name}: basis {basis_id}, {embed_items(warehouse, date, basis_id)[1]:,} items embedded", flush=True)
            snapshot_lte(warehouse, dates.snapshot_dates if name == OWN else [dates.test.start], basis_id=basis_id)
        build_training_set(warehouse, date)
    return bases


def in_basis(settings: Settings, basis_id: str) -> Settings:
    return settings.model_copy(update={"basis": settings.basis.model_copy(update={"basis_id": basis_id})})


def measure(folder: Path, seed: int) -> list[dict]:
    """The figures of a data set in the form of every measuring command: a list of measure, side, value, unit."""
    parser = argparse.ArgumentParser()
    add_installation(parser, "", "")
    arguments = parser.parse_args([])
    arguments.data = str(folder)
    home = REPOSITORY / ".lte" / f"{folder.name}-bases"
    feed = read_feed(folder / "events.parquet")
    date = feed.last + ONE_DAY
    settings = settle(arguments, home, dated_feed(folder, home / "source"), feed, date, TRAINING)
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"seed": seed})})
    bases = make_tables(settings, feed, date)
    settings = in_basis(settings, bases[OWN])
    ranker = load_ranker(train(settings, date, "prefix", f"prefix-{seed}"))
    cut = open_training_set(settings, date).dates.test.start
    figures = []
    for name, basis_id in bases.items():
        if name == OWN:
            continue
        found = make_map(settings, basis_id, bases[OWN], cut)
        keep_map(settings, found)
        loss = found.loss | ranking_figures(ranking_loss(settings, date, ranker, found.basis_map))
        loss |= {"items/fitted": found.fitted_items, "items/held_out": found.held_out_items}
        figures += [
            {"measure": f"{folder.name} {name}", "side": side, "value": round(value, 5), "unit": ""}
            for side, value in loss.items()
        ]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what a map from one basis to another loses, on real data.")
    parser.add_argument("--data", default=str(DATA), help="the folder of the data sets (default: %(default)s)")
    parser.add_argument("--sets", default=",".join(SETS), help="their names, with commas (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the ranker (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    figures = []
    for name in arguments.sets.split(","):
        figures += measure(Path(arguments.data, name), arguments.seed)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for figure in figures:
        print(f"{figure['measure']:<28} {figure['side']:<32} {figure['value']:.4f}")


if __name__ == "__main__":
    run(main)

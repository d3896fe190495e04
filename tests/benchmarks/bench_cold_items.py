"""Measures the value of new items' content on real data: `make bench-cold-items`.

Few targets of a real test window are new items. So a share of the items is hidden: a model is trained on the ablation's
training set (infra/runs/ablation.py) as if nobody had ever bought them. Then the test cases whose target is a hidden
item are ranked over the full catalogue:

    content        the model, which knows only the content vectors of hidden items
    no_content     the same model, with the content vectors of hidden items set to 0
    all_items      a model with the same settings, trained on all events: shows the cost of hiding
    chance         a random order: the mean over all ranks

The model is `prefix_newest`, because an item bias by popularity would leak the hidden items' sales.
"""

import argparse
import copy
import dataclasses
import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lte_model.command_line import run
from lte_model.domain.windows import parse_run_date
from lte_model.errors import LTEError
from lte_model.evaluation.comparison import Comparison
from lte_model.evaluation.ranked import load_side
from lte_model.figures import number
from lte_model.metrics import ndcg
from lte_model.ranker.cases import Cases, first_places
from lte_model.ranker.ranks import target_ranks
from lte_model.settings import Settings, load_settings
from lte_model.studies.trained_variants import side_of, train_variant
from lte_model.studies.variants import VARIANTS
from lte_model.training.device import choose_device
from lte_model.training.train import train
from lte_model.training.training_set import Split, TrainingSet, open_training_set

VARIANT = VARIANTS["prefix_newest"]
SHARE = 0.1


@dataclass(frozen=True)
class WithoutItems(TrainingSet):
    """A training set without `hidden` (items,) bool: they are no input of training, and no target of validation.

    Test cases are unchanged.
    """

    hidden: np.ndarray

    def cases(self, *splits: Split) -> Cases:
        cases = super().cases(*splits)
        if splits == ("test",):
            return cases
        cases = without(cases, self.hidden)
        asks = cases.target_counts > 0 if splits != ("validation",) else ~self.hidden[cases.targets]
        return cases.taken(np.flatnonzero(asks))


def without(cases: Cases, hidden: np.ndarray) -> Cases:
    """Removes the events of `hidden` (items,) bool from `cases`, which must be as read, before any cut.

    The time gaps of the remaining events don't change.
    """
    case = np.repeat(np.arange(len(cases)), cases.lengths)
    is_target = cases.ends[case] - np.arange(len(case)) <= cases.target_counts[case]
    kept = ~hidden[cases.items]
    lengths = np.bincount(case[kept], minlength=len(cases))
    return dataclasses.replace(
        cases,
        items=cases.items[kept],
        inputs_end=first_places(cases.inputs_end[kept]),
        gaps=cases.gaps[kept],
        starts=lengths.cumsum() - lengths,
        ends=lengths.cumsum(),
        target_counts=np.bincount(case[kept & is_target], minlength=len(cases)),
        seen=cases.seen & ~hidden,
    )


def measured(settings: Settings, date: datetime.date, share: float, seed: int) -> list[dict[str, Any]]:
    """Prints the figures with their intervals; returns them as rows of measure, side, value and unit."""
    own = VARIANT.settings(settings, seed)
    device = choose_device(own.training.device)
    training_set = open_training_set(own, date)
    hidden = np.random.default_rng(seed).random(len(training_set.catalogue)) < share
    fewer = WithoutItems(**vars(training_set), hidden=hidden)
    side = f"cold-items/{share}/seed-{seed}"
    train(own, date, own.model.integration, side, training_set=fewer)
    train_variant(settings, date, VARIANT, seed)

    cases = training_set.cases("test")
    asked = cases.taken(np.flatnonzero(hidden[cases.targets]))
    if not len(asked):
        raise LTEError(f"no test user's target is among the {hidden.sum()} hidden items; give a greater --share")
    ranker = load_side(training_set, side, device)
    bare = copy.deepcopy(ranker)
    bare.content[torch.from_numpy(hidden).to(device)] = 0
    of_all = load_side(training_set, side_of(settings, VARIANT, seed), device)
    ranks = {
        name: target_ranks(of_side, asked, device)
        for name, of_side in (("content", ranker), ("no_content", bare), ("all_items", of_all))
    }
    comparison = Comparison.of(ranks, settings)
    metrics = comparison.metrics()
    cutoff = max(settings.evaluation.cutoffs)
    chance = float(ndcg(np.arange(1, len(hidden) + 1), cutoff).mean())
    print(f"{len(asked):,} test users whose target is one of {hidden.sum():,} hidden items of {len(hidden):,}")
    for name, of_side in metrics.items():
        figure = of_side[comparison.headline]
        print(f"  {name:<12} {figure.number()}  {figure.interval()}  median rank {np.median(ranks[name]):.0f}")
    print(f"  {'chance':<12} {number(chance)}  {'':<16}  median rank {(len(hidden) + 1) / 2:.0f}")
    pairs = {f"content over {base}": ("content", base) for base in ("no_content", "all_items")}
    for name, uplift in comparison.uplifts(pairs).items():
        figure = uplift[comparison.headline]
        print(f"  {name:<24} {figure.percent()}  {figure.percent_interval()}")
    values = {name: of_side[comparison.headline].value for name, of_side in metrics.items()} | {"chance": chance}
    measure = f"{comparison.headline}_cold_items"
    return [{"measure": measure, "side": name, "value": value, "unit": "ndcg"} for name, value in values.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Ranks items that training never saw, by their content and without it."
    )
    parser.add_argument("--settings", help="settings file of an ablation (default: $LTE_SETTINGS)")
    parser.add_argument("--date", type=parse_run_date, required=True, help="the day of its training")
    parser.add_argument("--share", type=float, default=SHARE, help="of the items, to be hidden (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    figures = measured(load_settings(arguments.settings), arguments.date, arguments.share, arguments.seed)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)

"""The ablation of a training date: every variant of the model, with several seeds, on one training set.

    python -m lte_model.studies.ablation list --date D [--variants a,b] [--seeds 3]    the trainings, one line of JSON
    python -m lte_model.studies.ablation train --date D --variant V --seed S           one of them
    python -m lte_model.studies.ablation report --date D [--variants a,b] [--seeds 3]  all of them compared

`--rival name=file` adds a model made elsewhere, by the ranks in a Parquet file.

1. Each training runs lte_model/training/train.py with the settings of its variant (variants.py in this room). It
   resumes after a kill, and is skipped when done. Its MLflow run is a child of the date's run `ablation`.
2. The test users and their targets are the same for all variants, and every rank is exact. A user's measure is the
   mean over the seeds. Intervals come from a bootstrap over users with the same draws for all variants, so that every
   difference is paired by user. The figure of each seed is also given: it shows what another seed would change.
3. `best` has the highest NDCG on the validation days, averaged over seeds. The choice ignores the test days.
4. The result also has the reliance on the newest event (newest_event.py) with its controls, NDCG by number of tokens,
   and the cost of each variant.

trained_variants.py trains and measures one variant, ablation_answers.py compares them. The result is
`<reports>/<D>/ablation.json`, and beside it a page (ablation_page.py). Neither names a user.
"""

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
import numpy as np
import torch

from lte_model.command_line import CommandParser, run
from lte_model.evaluation.comparison import Comparison
from lte_model.evaluation.evaluate import tested_on
from lte_model.evaluation.ranked import POPULARITY_SIDES, popularity
from lte_model.evaluation.results import write_content
from lte_model.metrics import measures
from lte_model.ranker.ranks import count_ranks
from lte_model.settings import Settings
from lte_model.studies.ablation_answers import (
    answers_of,
    budget_of,
    candidates_of,
    cohorts_of,
    described,
    newest_event_of,
)
from lte_model.studies.ablation_page import write_page
from lte_model.studies.results import Ablation, ablation_path
from lte_model.studies.trained_variants import (
    MeasuredVariant,
    VariantCases,
    list_trainings,
    measured_variant,
    read_ranks,
    side_of,
    train_variant,
    trained_variants,
)
from lte_model.studies.variants import BEST, SEEDS, VARIANTS, Variant, chosen_variants
from lte_model.tracking import runs
from lte_model.training.device import choose_device


def evaluate_ablation(
    settings: Settings,
    training_date: datetime.date,
    variants: Sequence[Variant],
    seeds: int,
    rivals: Mapping[str, Path] | None = None,
) -> Ablation:
    """Compares the trained `variants`, writes ablation.json, logs to MLflow, and returns what was written.

    `rivals` maps the names of models made elsewhere to their files of ranks. Raises `LTEError` where a training isn't
    finished or used other settings or tables than today's, and where a rival lacks a test user.
    """
    started = time.perf_counter()
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    device = choose_device(settings.training.device)
    test = VariantCases(settings, training_date)
    measured: dict[str, MeasuredVariant] = {}
    by_side: dict[str, MeasuredVariant] = {}
    for variant in variants:
        side = side_of(settings, variant, 0)
        if side not in by_side:
            print(f"evaluating {variant.name}", flush=True)
            by_side[side] = measured_variant(test, variant, seeds, device)
        measured[variant.name] = by_side[side]

    training_set, cases = test.cases(variants[0])
    ranks = {name: of_variant.ranks for name, of_variant in measured.items()}
    for side, days in POPULARITY_SIDES.items():
        ranks[side] = count_ranks(popularity(training_set, days), cases.targets)[None]
    for side, file in (rivals or {}).items():
        ranks[side] = read_ranks(file, cases)
    headline = settings.evaluation.headline
    candidates = candidates_of(measured, headline)
    best = next(iter(candidates), None)
    if best:
        ranks[BEST] = ranks[best]
    values = {
        side: {measure: found.mean(axis=0) for measure, found in measures(of_side, settings.evaluation.cutoffs).items()}
        for side, of_side in ranks.items()
    }
    by_seed = {
        side: measures(of_side, settings.evaluation.cutoffs)[headline].mean(axis=1) for side, of_side in ranks.items()
    }
    comparison = Comparison.of_values(values, settings)
    metrics = comparison.metrics()

    ablation: Ablation = {
        **tested_on(training_set, cases),
        "headline": headline,
        "seeds": seeds,
        "threads": torch.get_num_threads(),
        "sides": {
            side: {"metrics": metrics[side], "by_seed": by_seed[side].tolist()}
            | (described(VARIANTS[side], measured[side], headline) if side in measured else {})
            for side in ranks
            if side != BEST
        },
        "best": {"variant": best, "candidates": candidates},
        "questions": answers_of(comparison, measured, by_seed, best, settings),
        "cohorts": cohorts_of(test, measured, comparison),
        "recency": {
            name: newest_event_of(of_variant, settings)
            for name, of_variant in measured.items()
            if not VARIANTS[name].is_of_budget
        },
        "budget": budget_of(test, measured, comparison),
        "tables": {table: {"version": version} for table, version in sorted(test.versions.items())},
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_content(ablation_path(settings, training_date), ablation)
    _log(settings, training_date, ablation, by_seed)
    return ablation


def _log(
    settings: Settings, training_date: datetime.date, ablation: Ablation, by_seed: Mapping[str, np.ndarray]
) -> None:
    """Logs every side's headline and the file to the run `ablation`, and each seed's headline to its own run."""
    headline = ablation["headline"]
    with runs.training_run(settings, training_date, runs.ABLATION_SIDE) as active:
        mlflow.set_tags({"basis_id": ablation["basis_id"], "best": ablation["best"]["variant"]})
        for table, of_table in ablation["tables"].items():
            runs.log_dataset(settings, table, of_table["version"], "evaluation")
        runs.log_metrics(
            active.info.run_id,
            {f"{side}/test_{headline}": of["metrics"][headline].value for side, of in ablation["sides"].items()},
        )
        mlflow.log_artifact(str(ablation_path(settings, training_date)))
    for name in ablation["sides"].keys() & VARIANTS.keys():
        for seed, value in enumerate(by_seed[name]):
            run_id = runs.find_or_create_run(settings, training_date, side_of(settings, VARIANTS[name], seed))
            runs.log_metrics(run_id, {f"test_{headline}": value})


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser("Trains the variants of the model and compares them.")
    for command, does in (
        ("list", "prints the trainings as one line of JSON"),
        ("train", "trains one variant with one seed"),
        ("report", "compares the trained variants"),
    ):
        options = parser.add_command(command, does, "the day the training runs on")
        if command == "train":
            options.add_argument("--variant", required=True, help="its name")
            options.add_argument("--seed", type=int, required=True)
        else:
            every = "every one that is trained" if command == "report" else "all"
            options.add_argument("--variants", default="", help=f"their names, with commas (default: {every})")
            options.add_argument(
                "--seeds", type=int, default=SEEDS, help="seeds of each variant (default: %(default)s)"
            )
        if command == "report":
            options.add_argument(
                "--rival", action="append", default=[], metavar="NAME=FILE", help="ranks of a model of another making"
            )
    arguments, settings = parser.read_settings()
    if arguments.command == "train":
        (variant,) = chosen_variants(arguments.variant)
        train_variant(settings, arguments.date, variant, arguments.seed)
    elif arguments.command == "list":
        trainings = list_trainings(settings, arguments.date, chosen_variants(arguments.variants), arguments.seeds)
        print(json.dumps(trainings))
    else:
        seeds = arguments.seeds
        chosen = (
            chosen_variants(arguments.variants)
            if arguments.variants
            else trained_variants(settings, arguments.date, seeds)
        )
        rivals = {name: Path(file) for name, _, file in (given.partition("=") for given in arguments.rival)}
        evaluate_ablation(settings, arguments.date, chosen, seeds, rivals)
        page = write_page(settings, arguments.date)
        with runs.training_run(settings, arguments.date, runs.ABLATION_SIDE):
            mlflow.log_artifact(str(page))
        print(page)


if __name__ == "__main__":
    run(main)

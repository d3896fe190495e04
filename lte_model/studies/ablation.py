"""The ablation of a training date: every variant of the model, with several seeds, on one training set.

    python -m lte_model.studies.ablation list --date D [--variants a,b] [--seeds 3]     the trainings, as one line of JSON
    python -m lte_model.studies.ablation train --date D --variant V --seed S            one of them
    python -m lte_model.studies.ablation report --date D [--variants a,b] [--seeds 3]   all of them compared

With `--rival name=file` a model of another making is compared too, by the ranks in a Parquet file.

1. A training is that of lte_model.training.train, with the settings of its variant (variants.py), and goes on and repeats
   itself as that does. Its MLflow run is a child of the run `ablation` of the date.
2. The test users and their targets are the same for all variants, and every rank is exact. A user's measure is the
   mean over the seeds; intervals are those of a bootstrap over users, the same draws for all variants, so that every
   difference is paired by user. What another seed would change stands beside: the figure of each seed.
3. `best` is the variant with the highest NDCG on the validation days, the mean over seeds; the test has no say in it.
4. Recency (recency.py) with its controls, NDCG against the tokens of the sequence, and what each variant costs.

The result is `<reports>/<D>/ablation.json`, and beside it a page (ablation_report.py). Neither names a user.
"""

import argparse
import dataclasses
import datetime
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import polars as pl
import torch

from lte_model.command_line import run
from lte_model.domain.windows import parse_run_date
from lte_model.errors import LTEError
from lte_model.evaluation.cohorts import cohorts, history_is_longer
from lte_model.evaluation.comparison import Comparison
from lte_model.evaluation.evaluate import tested_on
from lte_model.evaluation.newest_event import attention_ratios, last_item_ranks, with_constant_lte, with_shuffled_lte
from lte_model.evaluation.ranked import POPULARITY_DAYS, load_side, popularity
from lte_model.files import write_atomically
from lte_model.metrics import measures, recall, relative_difference
from lte_model.ranker.cases import Cases
from lte_model.ranker.model import Ranker
from lte_model.ranker.ranks import count_ranks, target_ranks
from lte_model.settings import Settings, load_settings
from lte_model.studies.ablation_page import write_page
from lte_model.studies.results import Ablation, ablation_path
from lte_model.studies.variants import (
    BEST,
    BUDGETS,
    QUESTIONS,
    VARIANTS,
    Question,
    Variant,
    chosen_variants,
    trained_as,
)
from lte_model.tracking import runs
from lte_model.training.checkpoints import RESULT_FILE, read_result, side_directory
from lte_model.training.device import choose_device
from lte_model.training.train import ranker_config, train
from lte_model.training.training_set import TrainingSet, open_training_set

SEEDS = 3
QUERIES = 1024
"""Test users whose scoring is timed."""

CONTROLS = {"constant": with_constant_lte, "shuffled": lambda cases: with_shuffled_lte(cases, seed=0)}

Values = dict[str, np.ndarray]
"""What was measured of each test user, (N,), by the name of the measure."""


def list_trainings(
    settings: Settings, training_date: datetime.date, variants: Sequence[Variant], seeds: int
) -> list[dict[str, Any]]:
    """[{"variant", "seed"}, …]: each training once, seed by seed, so that what is stopped has every variant once.

    Raises `LTEError` where the tables lack what a variant reads, before hours of training find out.
    """
    test = _Test(settings, training_date)
    for variant in variants:
        test.cases(variant)
    trainings: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        for variant in variants:
            trainings.setdefault(side_of(settings, variant, seed), {"variant": variant.name, "seed": seed})
    return list(trainings.values())


def side_of(settings: Settings, variant: Variant, seed: int) -> str:
    """The side under which a training of `variant` is kept: its directory, and the name of its MLflow run."""
    return f"{runs.ABLATION_SIDE}/{trained_as(settings, variant).name}/seed-{seed}"


def train_variant(settings: Settings, training_date: datetime.date, variant: Variant, seed: int) -> Path:
    """Trains, or goes on, or finds the training done; returns the model's directory."""
    own = variant.settings(settings, seed)
    return train(own, training_date, own.model.integration, side_of(settings, variant, seed))


def trained_variants(settings: Settings, training_date: datetime.date, seeds: int) -> list[Variant]:
    """The variants of which the training of every seed is finished. Raises `LTEError` where there is none."""
    found = [
        variant
        for variant in VARIANTS.values()
        if all(
            (side_directory(settings, training_date, side_of(settings, variant, seed)) / RESULT_FILE).is_file()
            for seed in range(seeds)
        )
    ]
    if not found:
        raise LTEError(
            f"no variant is trained for {training_date} with seeds 0 to {seeds - 1}; run python -m lte_model.studies.ablation "
            f"list --date {training_date}, then train, or give --seeds"
        )
    return found


class _Test:
    """The test cases as each variant reads them: the same users and targets, other sequences and LTEs."""

    def __init__(self, settings: Settings, training_date: datetime.date):
        self.settings, self.training_date = settings, training_date
        self._read: dict[tuple, tuple[TrainingSet, Cases]] = {}

    def cases(self, variant: Variant) -> tuple[TrainingSet, Cases]:
        """Raises `LTEError` where they aren't the users and the targets of the variants before."""
        settings = variant.settings(self.settings, 0)
        model = settings.model
        key = (model.representations, model.sequence, model.popularity_bias)
        if key not in self._read:
            training_set = open_training_set(settings, self.training_date)
            cases = training_set.cases("test")
            for _, others in self._read.values():
                if not (cases.user_ids.equals(others.user_ids) and np.array_equal(cases.targets, others.targets)):
                    raise LTEError(
                        f"the test users of variant {variant.name} are not those of the others: table training_set "
                        "or items changed meanwhile; run the report again"
                    )
            self._read[key] = (training_set, cases)
        return self._read[key]

    @property
    def versions(self) -> dict[str, int]:
        """The version of every table that was read."""
        return {
            table: version
            for training_set, _ in self._read.values()
            for table, version in training_set.tables.versions.items()
        }


@dataclass(frozen=True)
class Measured:
    """What was measured of one variant with S seeds over N test users."""

    settings: Settings
    ranks: np.ndarray
    """(S, N)"""
    recency: Values
    """The attention ratio, with its controls where there is an LTE, and HRLI: means over the seeds. NaN: not defined."""
    results: list[dict[str, Any]]
    """What each training left."""
    milliseconds: float
    """Of scoring one user in a batch on this machine's CPU: of the seeds' models, the fastest."""


def evaluate_ablation(
    settings: Settings,
    training_date: datetime.date,
    variants: Sequence[Variant],
    seeds: int,
    rivals: Mapping[str, Path] | None = None,
) -> Ablation:
    """Compares the trained `variants`, writes ablation.json, logs to MLflow, and returns what was written.

    `rivals` are models of another making: their names, and the files that hold their ranks. Raises `LTEError` where a
    training isn't finished, or is of other settings or other tables than those of today, and where a rival didn't rank
    a test user.
    """
    started = time.perf_counter()
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    device = choose_device(settings.training.device)
    test = _Test(settings, training_date)
    measured: dict[str, Measured] = {}
    by_side: dict[str, Measured] = {}
    for variant in variants:
        side = side_of(settings, variant, 0)
        if side not in by_side:
            print(f"evaluating {variant.name}", flush=True)
            by_side[side] = _measure(test, variant, seeds, device)
        measured[variant.name] = by_side[side]

    training_set, cases = test.cases(variants[0])
    ranks = {name: of_variant.ranks for name, of_variant in measured.items()}
    for side, days in POPULARITY_DAYS.items():
        ranks[side] = count_ranks(popularity(training_set, days), cases.targets)[None]
    for side, file in (rivals or {}).items():
        ranks[side] = read_ranks(file, cases)
    headline = f"ndcg@{max(settings.evaluation.cutoffs)}"
    candidates = _candidates(measured, headline)
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
            | (_described(VARIANTS[side], measured[side], headline) if side in measured else {})
            for side in ranks
            if side != BEST
        },
        "best": {"variant": best, "candidates": candidates},
        "questions": _answers(comparison, measured, by_seed, best, settings),
        "cohorts": _cohorts(test, measured, comparison),
        "recency": {
            name: _recency(of_variant, settings)
            for name, of_variant in measured.items()
            if not VARIANTS[name].is_of_budget
        },
        "budget": _budget(test, measured, comparison),
        "tables": {table: {"version": version} for table, version in sorted(test.versions.items())},
        "seconds": round(time.perf_counter() - started, 1),
    }
    file = ablation_path(settings, training_date)
    write_atomically(file, json.dumps(ablation, indent=1, ensure_ascii=False, allow_nan=False).encode())
    _log(settings, training_date, ablation, by_seed)
    return ablation


def read_ranks(file: Path, cases: Cases) -> np.ndarray:
    """The ranks (S, N) of `cases` in a Parquet file (user_id, seed, rank). Raises `LTEError` where it lacks some."""
    if not file.is_file():
        raise LTEError(f"there is no file of ranks {file}; rank the test users and write (user_id, seed, rank)")
    frame = pl.read_parquet(file)
    ranks = []
    for (seed,), of_seed in frame.sort("seed").partition_by("seed", as_dict=True, maintain_order=True).items():
        found = cases.user_ids.to_frame().join(of_seed, on="user_id", how="left", maintain_order="left")["rank"]
        if found.null_count():
            raise LTEError(f"{file} lacks {found.null_count():,} test users of seed {seed}; rank all of them")
        ranks.append(found.to_numpy())
    return np.stack(ranks)


def _measure(test: _Test, variant: Variant, seeds: int, device: torch.device) -> Measured:
    """Ranks, recency and cost of one variant. The budget curve asks for no recency."""
    training_set, cases = test.cases(variant)
    settings = variant.settings(test.settings, 0)
    results, ranks, recency, milliseconds = [], [], [], []
    for seed in range(seeds):
        side = side_of(test.settings, variant, seed)
        again = f"python -m lte_model.studies.ablation train --date {test.training_date} --variant {variant.name} --seed {seed}"
        results.append(read_result(settings, test.training_date, side, again))
        ranker = load_side(training_set, side, device)
        if ranker.config != ranker_config(settings, training_set, settings.model.integration):
            raise LTEError(
                f"the model of variant {variant.name}, seed {seed}, has other settings than today's; run {again}"
            )
        ranks.append(target_ranks(ranker, cases, device))
        if not variant.is_of_budget:
            recency.append(_recency_values(ranker, cases, device, settings))
        milliseconds.append(milliseconds_per_query(ranker.to("cpu"), cases))
    return Measured(
        settings=settings,
        ranks=np.stack(ranks),
        recency={name: np.mean([of_seed[name] for of_seed in recency], axis=0) for name in (recency or [{}])[0]},
        results=results,
        milliseconds=min(milliseconds),
    )


def _recency_values(ranker: Ranker, cases: Cases, device: torch.device, settings: Settings) -> Values:
    values = {"attention_ratio": attention_ratios(ranker, cases, device)}
    if settings.model.integration != "none":
        for name, control in CONTROLS.items():
            values[name] = attention_ratios(ranker, control(cases), device)
    last = last_item_ranks(ranker, cases, device)
    for cutoff in settings.evaluation.cutoffs:
        values[f"hrli@{cutoff}"] = np.where(np.isnan(last), np.nan, recall(last, cutoff))
    return values


def milliseconds_per_query(ranker: Ranker, cases: Cases) -> float:
    """How long `ranker`, which lies on the CPU, takes for one of the first `QUERIES` cases, scored in batches."""
    asked = cases.taken(np.arange(min(QUERIES, len(cases))))
    target_ranks(ranker, asked.taken(np.arange(min(64, len(asked)))), torch.device("cpu"))  # memory, caches
    begin = time.perf_counter()
    target_ranks(ranker, asked, torch.device("cpu"))
    return 1000 * (time.perf_counter() - begin) / len(asked)


def _candidates(measured: Mapping[str, Measured], headline: str) -> dict[str, float]:
    """The NDCG on the validation days of every candidate, the mean over its seeds, from the highest."""
    first_names = {id(of_variant): name for name, of_variant in reversed(measured.items())}  # of those trained once
    found = {
        name: _validation(of_variant, headline)
        for name, of_variant in measured.items()
        if VARIANTS[name].candidate and first_names[id(of_variant)] == name
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _validation(measured: Measured, headline: str) -> float:
    return float(
        np.mean([max(epoch[f"validation_{headline}"] for epoch in result["curve"]) for result in measured.results])
    )


def _described(variant: Variant, measured: Measured, headline: str) -> dict[str, Any]:
    """What a variant is, how it was trained, and what it costs; figures are means over the seeds."""
    model, results = measured.settings.model, measured.results
    epochs = [epoch for result in results for epoch in result["curve"]]
    best_epochs = [result["curve"][result["best_epoch"] - 1] for result in results]
    return {
        "description": variant.description,
        "integration": model.integration,
        "representations": list(model.representations),
        "policy": model.sequence,
        "max_tokens": model.max_tokens,
        "long_memory": model.long_memory,
        "popularity_bias": model.popularity_bias,
        "time_features": model.time_features,
        "repeat_bias": model.repeat_bias,
        "validation": _validation(measured, headline),
        "training_loss": float(np.mean([epoch["training_loss"] for epoch in best_epochs])),
        "training_seconds": round(float(np.mean([result["seconds"] for result in results])), 1),
        "targets_per_second": round(float(np.median([epoch["targets_per_second"] for epoch in epochs]))),
        "milliseconds_per_query": round(measured.milliseconds, 4),
    }


def _answers(
    comparison: Comparison,
    measured: Mapping[str, Measured],
    by_seed: Mapping[str, np.ndarray],
    best: str | None,
    settings: Settings,
) -> list[dict[str, Any]]:
    """The questions whose two sides there are. A question about attention is of the users who have both ratios."""
    sides = set(by_seed)
    asked = [
        question
        for question in QUESTIONS
        if {question.ours, question.base} <= sides and not (question.ours == BEST and question.base == best)
    ]
    pairs = {f"{question.ours} over {question.base}": (question.ours, question.base) for question in asked}
    uplifts = comparison.uplifts(pairs)
    answers = []
    for question in asked:
        answer = dataclasses.asdict(question)
        if question.measure == "attention_ratio":
            answer |= _attention_answer(question, measured, settings)
        else:
            answer |= {
                "users": len(comparison.values),
                "uplift": uplifts[f"{question.ours} over {question.base}"][comparison.headline],
                "by_seed": _by_seed(by_seed[question.ours], by_seed[question.base]),
            }
        answers.append(answer)
    return answers


def _by_seed(ours: np.ndarray, base: np.ndarray) -> list[float | None]:
    """The relative difference with each seed; a side without chance is the same with every seed, and of a rival with
    more or fewer seeds the mean is."""
    base = base if len(base) == len(ours) else base.mean(keepdims=True)
    differences = relative_difference(ours, base)
    return [float(difference) if np.isfinite(difference) else None for difference in differences]


def _attention_answer(question: Question, measured: Mapping[str, Measured], settings: Settings) -> dict[str, Any]:
    ratios = {side: measured[side].recency["attention_ratio"] for side in (question.ours, question.base)}
    both = np.isfinite(np.stack(list(ratios.values()))).all(axis=0)
    if not both.any():
        return {"users": 0, "uplift": dict.fromkeys(("value", "low", "high")), "by_seed": []}
    compared = Comparison.of_values({side: {"ratio": found[both]} for side, found in ratios.items()}, settings)
    uplift = compared.uplifts({"": (question.ours, question.base)})[""]["ratio"]
    return {"users": int(both.sum()), "uplift": uplift, "by_seed": []}


def _recency(measured: Measured, settings: Settings) -> dict[str, Any]:
    """The mean of each recency measure, over the users who have it; and of the ratio, how far it is from its controls,
    as a relative difference paired by user."""
    figures: dict[str, Any] = {}
    values = {name: found[np.isfinite(found)] for name, found in measured.recency.items()}
    for name, found in values.items():
        if len(found):
            figures[name] = Comparison.of_values({name: {"": found}}, settings).metrics()[name][""]
            figures[name]["users"] = len(found)
    controls = [name for name in CONTROLS if name in figures]
    if controls:
        compared = Comparison.of_values({name: {"": values[name]} for name in ("attention_ratio", *controls)}, settings)
        pairs = {f"over_{name}": ("attention_ratio", name) for name in controls}
        figures |= {name: uplift[""] for name, uplift in compared.uplifts(pairs).items()}
    return figures


def _cohorts(test: _Test, measured: Mapping[str, Measured], comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """By sequence policy, each cohort with the variants of that policy and the questions about two of them. The
    sequence meant is that of the settings."""
    by_policy = {}
    for policy in ("lagged", "newest"):
        names = [name for name, of_variant in measured.items() if of_variant.settings.model.sequence == policy]
        if not names:
            continue
        pairs = {
            question.text: (question.ours, question.base)
            for question in QUESTIONS
            if question.measure == "ndcg" and {question.ours, question.base} <= set(names)
        }
        training_set, cases = test.cases(VARIANTS[names[0]])
        by_policy[policy] = []
        for cohort, members in cohorts(training_set, cases, test.settings.model.max_tokens - 1).items():
            among = comparison.among(members)
            metrics, uplifts = among.metrics(), among.uplifts(pairs)
            by_policy[policy].append(
                {
                    "name": cohort,
                    "users": int(members.sum()),
                    "sides": {side: metrics[side][among.headline] for side in (*names, *POPULARITY_DAYS)},
                    "uplifts": {text: by_measure[among.headline] for text, by_measure in uplifts.items()},
                }
            )
    return by_policy


def _budget(test: _Test, measured: Mapping[str, Measured], comparison: Comparison) -> dict[str, Any]:
    """The two curves, and whether the LTE with n tokens is worth 4n tokens or more without it.

    The latter for the users whose history is longer than the sequence of n tokens: the others' is read whole.
    """
    tokens = [n for n in BUDGETS if f"none@{n}" in measured and f"prefix@{n}" in measured]
    trades = []
    for n in tokens:
        against = next((more for more in tokens if more >= 4 * n), None)
        ours, base = f"prefix@{n}", f"none@{against}"
        if against is None:
            continue
        _, cases = test.cases(VARIANTS[ours])
        members = history_is_longer(cases, n - 1)
        if members.any():
            uplift = comparison.among(members).uplifts({"": (ours, base)})[""][comparison.headline]
            trades.append({"tokens": n, "against": against, "users": int(members.sum()), "uplift": uplift})
    return {"tokens": tokens, "trades": trades}


def _log(
    settings: Settings, training_date: datetime.date, ablation: Ablation, by_seed: Mapping[str, np.ndarray]
) -> None:
    """The headline of every side, and the file, into the run `ablation`; that of each seed into its own run."""
    headline = ablation["headline"]
    with runs.training_run(settings, training_date, runs.ABLATION_SIDE) as active:
        mlflow.set_tags({"basis_id": ablation["basis_id"], "best": ablation["best"]["variant"]})
        for table, of_table in ablation["tables"].items():
            runs.log_dataset(settings, table, of_table["version"], "evaluation")
        runs.log_metrics(
            active.info.run_id,
            {f"{side}/test_{headline}": of["metrics"][headline]["value"] for side, of in ablation["sides"].items()},
        )
        mlflow.log_artifact(str(ablation_path(settings, training_date)))
    for name in ablation["sides"].keys() & VARIANTS.keys():
        for seed, value in enumerate(by_seed[name]):
            run_id = runs.find_or_create_run(settings, training_date, side_of(settings, VARIANTS[name], seed))
            runs.log_metrics(run_id, {f"test_{headline}": value})


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the variants of the model and compares them.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, does in (
        ("list", "prints the trainings as one line of JSON"),
        ("train", "trains one variant with one seed"),
        ("report", "compares the trained variants"),
    ):
        options = commands.add_parser(command, help=does)
        options.add_argument("--date", type=parse_run_date, required=True, help="the day the training runs on")
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
        options.add_argument("--settings", default=None, help="settings file (default: $LTE_SETTINGS)")
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings)
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

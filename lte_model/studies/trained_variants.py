"""One variant of an ablation at a time: its trainings, its test cases and its measures."""

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from lte_model.errors import LTEError
from lte_model.evaluation.newest_event import attention_ratios, last_item_ranks, with_constant_lte, with_shuffled_lte
from lte_model.evaluation.ranked import load_side
from lte_model.metrics import recall
from lte_model.ranker.cases import Cases
from lte_model.ranker.model import Ranker
from lte_model.ranker.ranks import target_ranks
from lte_model.settings import Settings
from lte_model.studies.variants import VARIANTS, Variant, trained_as
from lte_model.tracking import runs
from lte_model.training.checkpoints import RESULT_FILE, read_result, side_directory
from lte_model.training.train import ranker_config, train
from lte_model.training.training_set import TrainingSet, open_training_set

QUERIES = 1024
"""The number of test users whose scoring is timed."""

CONTROLS = {"constant": with_constant_lte, "shuffled": lambda cases: with_shuffled_lte(cases, seed=0)}

Values = dict[str, np.ndarray]
"""{measure: its value for each test user (N,)}."""


def list_trainings(
    settings: Settings, training_date: datetime.date, variants: Sequence[Variant], seeds: int
) -> list[dict[str, Any]]:
    """[{"variant", "seed"}, …]: each training once, seed by seed, so that a stopped run has seen every variant.

    Raises `LTEError` where the tables lack what a variant reads, before any training starts.
    """
    test = VariantCases(settings, training_date)
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
    """Trains the variant, or resumes its training, unless it is done; returns the model's directory."""
    own = variant.settings(settings, seed)
    return train(own, training_date, own.model.integration, side_of(settings, variant, seed))


def trained_variants(settings: Settings, training_date: datetime.date, seeds: int) -> list[Variant]:
    """The variants whose trainings are finished for every seed. Raises `LTEError` where there is none."""
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
            f"no variant is trained for {training_date} with seeds 0 to {seeds - 1}; run python -m "
            f"lte_model.studies.ablation list --date {training_date}, then train, or give --seeds"
        )
    return found


class VariantCases:
    """The test cases as each variant reads them: users and targets are the same, sequences and LTEs differ."""

    def __init__(self, settings: Settings, training_date: datetime.date):
        self.settings, self.training_date = settings, training_date
        self._read: dict[tuple, tuple[TrainingSet, Cases]] = {}

    def cases(self, variant: Variant) -> tuple[TrainingSet, Cases]:
        """The variant's training set and cases. Raises `LTEError` where users or targets differ between variants."""
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
class MeasuredVariant:
    """The measures of one variant with S seeds over N test users."""

    settings: Settings
    ranks: np.ndarray
    """The rank of each user's target, (S, N)."""
    newest_event: Values
    """Attention ratio, HRLI and, for a variant with LTE, the ratio's controls: means over the seeds; may be NaN."""
    results: list[dict[str, Any]]
    """The result of each training, from `read_result`."""
    milliseconds: float
    """Time to score one user, in batches on this machine's CPU, with the fastest of the seeds' models."""


def measured_variant(test: VariantCases, variant: Variant, seeds: int, device: torch.device) -> MeasuredVariant:
    """Measures a variant's ranks, cost and reliance on the newest event; the budget curve has only ranks and cost."""
    training_set, cases = test.cases(variant)
    settings = variant.settings(test.settings, 0)
    results, ranks, by_seed, milliseconds = [], [], [], []
    for seed in range(seeds):
        side = side_of(test.settings, variant, seed)
        again = (
            f"python -m lte_model.studies.ablation train --date {test.training_date} --variant {variant.name} "
            f"--seed {seed}"
        )
        results.append(read_result(settings, test.training_date, side, again))
        ranker = load_side(training_set, side, device)
        if ranker.config != ranker_config(settings, training_set, settings.model.integration):
            raise LTEError(
                f"the model of variant {variant.name}, seed {seed}, has other settings than today's; run {again}"
            )
        ranks.append(target_ranks(ranker, cases, device))
        if not variant.is_of_budget:
            by_seed.append(_newest_event_values(ranker, cases, device, settings))
        milliseconds.append(milliseconds_per_query(ranker.to("cpu"), cases))
    return MeasuredVariant(
        settings=settings,
        ranks=np.stack(ranks),
        newest_event={name: np.mean([of_seed[name] for of_seed in by_seed], axis=0) for name in (by_seed or [{}])[0]},
        results=results,
        milliseconds=min(milliseconds),
    )


def _newest_event_values(ranker: Ranker, cases: Cases, device: torch.device, settings: Settings) -> Values:
    """The attention ratio, its controls where there is an LTE, and HRLI at every cutoff, of one model."""
    values = {"attention_ratio": attention_ratios(ranker, cases, device)}
    if settings.model.integration != "none":
        for name, control in CONTROLS.items():
            values[name] = attention_ratios(ranker, control(cases), device)
    last = last_item_ranks(ranker, cases, device)
    for cutoff in settings.evaluation.cutoffs:
        values[f"hrli@{cutoff}"] = np.where(np.isnan(last), np.nan, recall(last, cutoff))
    return values


def milliseconds_per_query(ranker: Ranker, cases: Cases) -> float:
    """The mean time that `ranker`, on the CPU, takes per case, over the first `QUERIES` cases in batches."""
    asked = cases.taken(np.arange(min(QUERIES, len(cases))))
    target_ranks(ranker, asked.taken(np.arange(min(64, len(asked)))), torch.device("cpu"))  # warms up memory and caches
    begin = time.perf_counter()
    target_ranks(ranker, asked, torch.device("cpu"))
    return 1000 * (time.perf_counter() - begin) / len(asked)


def read_ranks(file: Path, cases: Cases) -> np.ndarray:
    """The ranks (S, N) of `cases` in a Parquet file (user_id, seed, rank). Raises `LTEError` where some are missing."""
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

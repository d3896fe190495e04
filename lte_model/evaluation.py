"""Evaluates the two models of a training date and popularity: `python -m lte_model.evaluation --date D`.

1. Every test user's target, the first event on or after the test cut, gets its exact rank in the full catalogue from
   each *side*: the model with the LTE as prefix, the model without, and popularity of all time, 30 and 7 days.
2. NDCG, Recall and MRR at the settings' cutoffs are means over users. Intervals come from users drawn with
   replacement, the same draws for all sides, so that every difference is paired by user.
3. The same for each cohort, and five users to look at, spread over how much the LTE changed their rank.

The result is `<reports>/<D>/evaluation.json`, and the metrics of the sides in MLflow.
"""

import argparse
import datetime
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
import polars as pl
import torch

from lte_model import tracking
from lte_model.data import Cases, Catalogue, TrainingSet, open_training_set
from lte_model.errors import run
from lte_model.metrics import bootstrap_means, count_ranks, interval, measures, relative_difference, target_ranks
from lte_model.model import Ranker, load_ranker
from lte_model.settings import Settings, load_settings
from lte_model.training import (
    MODEL_DIRECTORY,
    choose_device,
    read_result,
    side_directory,
    target_counts_of,
    write_atomically,
)
from lte_model.verdict import OVER_NONE, OVER_POPULARITY, Evaluation, Figure, evaluation_path
from lte_model.windows import ONE_DAY, lte_window, parse_run_date

SIDES = ("prefix", "none")
"""The trainings that are compared."""

POPULARITY_DAYS: dict[str, int | None] = {"popularity_all": None, "popularity_30d": 30, "popularity_7d": 7}
UPLIFTS = {OVER_NONE: ("prefix", "none"), OVER_POPULARITY: ("prefix", "popularity_30d")}
LONG_SEQUENCE = 10
"""Events from which on a short-term sequence counts as long."""

EXAMPLE_USERS = 5
SHOWN_HISTORY = 20
SHOWN_ITEMS = 10


def evaluate(settings: Settings, training_date: datetime.date) -> Evaluation:
    """Evaluates, writes evaluation.json, logs to MLflow, and returns what was written.

    Raises `LTEError` where a table, a test case or one of the two models is missing, and where a model belongs to
    another basis, representation, lag or window than the training set.
    """
    started = time.perf_counter()
    training_set = open_training_set(settings, training_date)
    cases = training_set.cases("test")
    results = {side: read_result(settings, training_date, side) for side in SIDES}
    device = choose_device(settings.training.device)
    rankers = {side: load_side(training_set, side, device) for side in SIDES}

    ranks = {side: target_ranks(ranker, cases, device) for side, ranker in rankers.items()}
    for side, days in POPULARITY_DAYS.items():
        ranks[side] = count_ranks(popularity(training_set, days), cases.targets)
    comparison = Comparison.of(ranks, settings)
    run_ids = {side: tracking.find_or_create_run(settings, training_date, side) for side in SIDES}

    evaluation: Evaluation = {
        **tested_on(training_set, cases),
        "representation": training_set.kind.representation,
        "policy": settings.model.sequence,
        "sides": {
            side: ({"run_id": run_ids[side]} if side in run_ids else {}) | {"metrics": metrics}
            for side, metrics in comparison.metrics().items()
        },
        "uplift": comparison.uplifts(),
        "cohorts": [
            _cohort(name, comparison.among(members))
            for name, members in cohorts(training_set, cases, rankers["prefix"].config.max_events).items()
        ],
        "curves": {side: result["curve"] for side, result in results.items()},
        "users": _example_users(training_set, cases, rankers, ranks, device),
        "tables": {table: {"version": version} for table, version in sorted(training_set.tables.versions.items())},
        "seconds": {
            **{f"training {side}": round(result["seconds"], 1) for side, result in results.items()},
            "evaluation": round(time.perf_counter() - started, 1),
        },
    }
    file = evaluation_path(settings, training_date)
    write_atomically(file, json.dumps(evaluation, indent=1, ensure_ascii=False, allow_nan=False).encode())
    _log(settings, training_set, evaluation, run_ids)
    return evaluation


def tested_on(training_set: TrainingSet, cases: Cases) -> dict[str, Any]:
    """What was trained on and tested, the same for all sides: the first keys of an evaluation and of an ablation."""
    dates, kind = training_set.dates, training_set.kind
    return {
        "training_date": str(training_set.training_date),
        "basis_id": kind.basis_id,
        "lag_days": kind.lag_days,
        "window_days": kind.window_days,
        "anchors": [str(anchor) for anchor in dates.anchors],
        "validation": [str(dates.validation.start), str(dates.validation.end)],
        "test": [str(dates.test.start), str(dates.test.end)],
        "catalogue_items": len(training_set.catalogue),
        "test_users": len(cases),
        "test_users_with_lte": int(cases.has_lte.any(axis=1).sum()),
        "dropped_unknown_target": cases.dropped_unknown_target,
    }


def load_side(training_set: TrainingSet, side: str, device: torch.device) -> Ranker:
    """The model that the training of `side` left. Raises `LTEError` where it can't read this training set."""
    directory = side_directory(training_set.tables.settings, training_set.training_date, side) / MODEL_DIRECTORY
    ranker = load_ranker(directory, device)
    source = f"the training set of {training_set.training_date}"
    ranker.require(training_set.kind, source)
    ranker.require_catalogue(training_set.catalogue.item_ids.to_list(), source)
    return ranker


def over_champion(
    settings: Settings, training_date: datetime.date, challenger: Ranker, champion: Ranker
) -> tuple[Figure, int]:
    """By how much the challenger's headline measure differs from the champion's over the same test users, and how many.

    Relative, with its interval. The users are those of the test of `training_date` whom both can rank; each ranker
    reads them as it was trained to. Raises `LTEError` where the tables lack what one of them reads.
    """
    ours, theirs = (ranks_by_user(settings, training_date, ranker) for ranker in (challenger, champion))
    both = ours.join(theirs, on="user_id", suffix=" of the champion", maintain_order="left")
    comparison = Comparison.of(
        {"challenger": both["rank"].to_numpy(), "champion": both["rank of the champion"].to_numpy()}, settings
    )
    uplifts = comparison.uplifts({"over": ("challenger", "champion")})
    return uplifts["over"][comparison.headline], len(both)


def ranks_by_user(settings: Settings, training_date: datetime.date, ranker: Ranker) -> pl.DataFrame:
    """The rank of each test user's target (user_id, rank) by a ranker of whatever training.

    It ranks the catalogue of `training_date`, of its own basis; items that it never met by their content. Raises
    `LTEError` where the tables lack what it reads.
    """
    training_set = read_by(settings, training_date, ranker)
    cases = training_set.cases("test")
    return pl.DataFrame({"user_id": cases.user_ids, "rank": ranks_of_cases(training_set, cases, ranker)})


def read_by(settings: Settings, training_date: datetime.date, ranker: Ranker) -> TrainingSet:
    """The training set of a date as the ranker reads it: in its basis, by its policy, with its representations. Raises
    `LTEError` where it can't be read."""
    config = ranker.config
    reads = {
        "representations": ranker.kind.representations,
        "sequence": config.sequence,
        "popularity_bias": config.popularity_bias,
    }
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=reads)})
    training_set = open_training_set(settings, training_date).in_basis(ranker.kind.basis_id)
    ranker.require(training_set.kind, f"the training set of {training_date}")
    return training_set


def ranks_of_cases(training_set: TrainingSet, cases: Cases, ranker: Ranker) -> np.ndarray:
    """The rank (N,) of the target of each case in the catalogue of the training set."""
    catalogue, device = training_set.catalogue, choose_device(training_set.tables.settings.training.device)
    ranker = ranker.over(catalogue.item_ids.to_list(), torch.from_numpy(catalogue.vectors)).to(device)
    return target_ranks(ranker, cases, device)


def popularity(training_set: TrainingSet, days: int | None) -> np.ndarray:
    """Events per catalogue row (items,) in the `days` before the test cut (None: ever), of those known before it."""
    cut = training_set.dates.test.start
    events = training_set.tables.scan("events").filter(pl.col("known_date") < cut, pl.col("event_date") < cut)
    if days is not None:
        events = events.filter(pl.col("event_date") >= cut - ONE_DAY * days)
    counts = (
        events.group_by("item_id")
        .len()
        .with_columns(pl.col("item_id").cast(training_set.catalogue.rows, strict=False).to_physical())
        .drop_nulls()
        .collect()
    )
    per_row = np.zeros(len(training_set.catalogue), dtype=np.int64)
    per_row[counts["item_id"].to_numpy()] = counts["len"].to_numpy()
    return per_row


@dataclass(frozen=True)
class Comparison:
    """The measures of the sides over the same N users: `values` (N, sides × measures), columns named by `columns`."""

    values: np.ndarray
    columns: tuple[tuple[str, str], ...]
    samples: int
    seed: int
    headline: str

    @classmethod
    def of(cls, ranks: Mapping[str, np.ndarray], settings: Settings) -> "Comparison":
        """Every measure of the ranks (N,) of each side."""
        return cls.of_values(
            {side: measures(found, settings.evaluation.cutoffs) for side, found in ranks.items()}, settings
        )

    @classmethod
    def of_values(cls, values: Mapping[str, Mapping[str, np.ndarray]], settings: Settings) -> "Comparison":
        """{side: {measure: values (N,)}}, whatever was measured."""
        columns = {(side, measure): found for side, of_side in values.items() for measure, found in of_side.items()}
        return cls(
            values=np.column_stack(list(columns.values())),
            columns=tuple(columns),
            samples=settings.evaluation.bootstrap_samples,
            seed=settings.training.seed,
            headline=f"ndcg@{max(settings.evaluation.cutoffs)}",
        )

    def among(self, members: np.ndarray) -> "Comparison":
        """The headline measure alone, among the users `members` (N,) bool."""
        kept = [column for column, (_, measure) in enumerate(self.columns) if measure == self.headline]
        return Comparison(
            self.values[members][:, kept],
            tuple(self.columns[column] for column in kept),
            self.samples,
            self.seed,
            self.headline,
        )

    def metrics(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """{side: {measure: {"value", "low", "high"}}}."""
        means, resampled = self._means
        metrics: dict[str, dict[str, Any]] = {}
        for column, (side, measure) in enumerate(self.columns):
            metrics.setdefault(side, {})[measure] = interval(means[column], resampled[:, column])
        return metrics

    def uplifts(self, pairs: Mapping[str, tuple[str, str]] = UPLIFTS) -> dict[str, dict[str, dict[str, float | None]]]:
        """{"prefix over none": {measure: relative difference with its interval}, …} of `pairs` (ours, base)."""
        means, resampled = self._means
        column = {name: number for number, name in enumerate(self.columns)}
        return {
            name: {
                measure: interval(
                    relative_difference(means[column[ours, measure]], means[column[base, measure]]),
                    relative_difference(resampled[:, column[ours, measure]], resampled[:, column[base, measure]]),
                )
                for side, measure in self.columns
                if side == ours
            }
            for name, (ours, base) in pairs.items()
        }

    @functools.cached_property
    def _means(self) -> tuple[np.ndarray, np.ndarray]:
        return self.values.mean(axis=0), bootstrap_means(self.values, self.samples, self.seed)


def cohorts(training_set: TrainingSet, cases: Cases, max_events: int) -> dict[str, np.ndarray]:
    """Which test users (N,) bool belong to each cohort; a user may belong to several. Empty cohorts are left out."""
    short = np.minimum(cases.target_counts, max_events)  # dated in [D−L, D), whatever the policy reads
    splits = ("train", "refit") if training_set.tables.settings.training.refit else ("train",)
    trained_on = target_counts_of(training_set.cases(*splits), len(training_set.catalogue)) > 0
    members = {
        "no short sequence": short == 0,
        "short sequence": (short > 0) & (short < LONG_SEQUENCE),
        "long sequence": short >= LONG_SEQUENCE,
        "history longer than the sequence": history_is_longer(cases, max_events),
        "new target items": ~trained_on[cases.targets],
    }
    return {name: of_cohort for name, of_cohort in members.items() if of_cohort.any()}


def history_is_longer(cases: Cases, max_events: int) -> np.ndarray:
    """Which users (N,) bool have events that a sequence of `max_events` leaves out."""
    return cases.history_counts > np.minimum(cases.lengths, max_events)


def _cohort(name: str, comparison: Comparison) -> dict[str, Any]:
    return {
        "name": name,
        "users": len(comparison.values),
        "sides": comparison.metrics(),
        "uplift": comparison.uplifts()[OVER_NONE][comparison.headline],
    }


def _example_users(
    training_set: TrainingSet,
    cases: Cases,
    rankers: Mapping[str, Ranker],
    ranks: Mapping[str, np.ndarray],
    device: torch.device,
) -> list[dict[str, Any]]:
    """Users with an LTE, from the one whose target rose most by it to the one whose target fell most."""
    chosen = spread(np.log(ranks["none"] / ranks["prefix"]), np.flatnonzero(cases.has_lte[:, 0]), EXAMPLE_USERS)
    if not len(chosen):
        return []
    catalogue = training_set.catalogue
    user_ids = cases.user_ids.gather(chosen).to_list()
    histories = _histories(training_set, user_ids)
    inputs = _inputs(training_set, user_ids)
    tops = {
        side: ranker.scores(
            cases.batch(chosen, ranker.config.max_events, ranker.config.max_older_events).to(device),
            cases.popularity_on(device),
        )
        .topk(min(SHOWN_ITEMS, len(catalogue)))
        .indices.cpu()
        for side, ranker in rankers.items()
    }
    return [
        {
            "user_id": user_id,
            "history": histories.get(user_id, []),
            **inputs[user_id],
            "ranks": {side: round(float(ranks[side][case])) for side in rankers},
            "top": {side: catalogue.titles_of(top[number].numpy()) for side, top in tops.items()},
            "lte_neighbours": _neighbours(catalogue, cases.lte[case, 0]),
            "lte_count": int(cases.event_counts[case, 0]),
        }
        for number, (case, user_id) in enumerate(zip(chosen, user_ids, strict=True))
    ]


def spread(improvement: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """`count` of the `candidates` (case numbers), evenly spaced from the greatest improvement to the least."""
    ordered = candidates[np.argsort(-improvement[candidates], kind="stable")]
    places = np.unique(np.linspace(0, len(ordered) - 1, count).round().astype(int)) if len(ordered) else []
    return ordered[places]


def _histories(training_set: TrainingSet, user_ids: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """The newest events of each user that the LTE of the test cut averages, oldest first."""
    cut, kind = training_set.dates.test.start, training_set.kind
    window = lte_window(cut, kind.lag_days, kind.window_days)
    frame = (
        training_set.tables.scan("events")
        .filter(
            pl.col("user_id").is_in(user_ids),
            pl.col("known_date") < cut,
            pl.col("event_date") >= window.start,
            pl.col("event_date") < window.end,
        )
        .sort("user_id", "event_ts", "item_id")
        .group_by("user_id", maintain_order=True)
        .tail(SHOWN_HISTORY)
        .select("user_id", "item_id", date="event_date")
    )
    return _titled(training_set, frame)


def _inputs(training_set: TrainingSet, user_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The sequence that the policy reads, and the target, of each test user."""
    rows = training_set.rows("test").filter(pl.col("user_id").is_in(user_ids))
    lagged = training_set.tables.settings.model.sequence == "lagged"
    read = pl.col("target_count") if lagged else pl.lit(training_set.tables.settings.model.max_tokens)
    sequences = _titled(
        training_set,
        rows.select("user_id", item_id=pl.col("item_ids").list.tail(read), date=pl.col("event_times").list.tail(read))
        .filter(pl.col("item_id").list.len() > 0)
        .explode("item_id", "date")
        .with_columns(pl.col("date").dt.date()),
    )
    targets = _titled(training_set, rows.select("user_id", item_id="target_item_id", date="target_date"))
    return {user_id: {"sequence": sequences.get(user_id, []), "target": targets[user_id][0]} for user_id in user_ids}


def _titled(training_set: TrainingSet, events: pl.LazyFrame) -> dict[str, list[dict[str, str]]]:
    """Events (user_id, item_id, date) as {user: [{"date", "title"}, …]}, in their order."""
    frame = (
        events.join(
            training_set.tables.scan("items").select("item_id", "title"),
            on="item_id",
            how="left",
            maintain_order="left",
        )
        .select("user_id", pl.col("date").cast(pl.String), pl.coalesce("title", "item_id").alias("title"))
        .collect()
    )
    return {
        user_id: of_user.select("date", "title").to_dicts()
        for (user_id,), of_user in frame.partition_by("user_id", as_dict=True).items()
    }


def _neighbours(catalogue: Catalogue, lte: np.ndarray) -> list[dict[str, Any]]:
    """The items nearest to one LTE (dimensions,) by cosine; item vectors have length 1."""
    length = float(np.linalg.norm(lte))
    if length == 0:
        return []
    cosines = catalogue.vectors @ (lte / length)
    nearest = np.argsort(-cosines, kind="stable")[:SHOWN_ITEMS]
    return [
        {"title": title, "cosine": round(float(cosine), 4)}
        for title, cosine in zip(catalogue.titles_of(nearest), cosines[nearest], strict=True)
    ]


def _log(settings: Settings, training_set: TrainingSet, evaluation: Evaluation, run_ids: Mapping[str, str]) -> None:
    """The test metrics of each model into its own run; those of all sides, and the file, into the run `evaluation`."""
    values = {
        side: {f"test_{measure}": figure["value"] for measure, figure in of_side["metrics"].items()}
        for side, of_side in evaluation["sides"].items()
    }
    for side, run_id in run_ids.items():
        tracking.log_metrics(run_id, values[side])
    with tracking.training_run(settings, training_set.training_date, "evaluation") as active:
        mlflow.set_tags({"basis_id": evaluation["basis_id"], "representation": evaluation["representation"]})
        for table, version in training_set.tables.versions.items():
            tracking.log_dataset(settings, table, version, "evaluation")
        for side, metrics in values.items():
            tracking.log_metrics(active.info.run_id, {f"{side}/{name}": value for name, value in metrics.items()})
        uplift = {
            f"{name.replace(' ', '_')}/{measure}": figure["value"]
            for name, by_measure in evaluation["uplift"].items()
            for measure, figure in by_measure.items()
            if figure["value"] is not None
        }
        tracking.log_metrics(active.info.run_id, uplift)
        mlflow.log_artifact(str(evaluation_path(settings, training_set.training_date)))


def summary(evaluation: Evaluation, headline: str) -> str:
    """A few lines for the terminal."""

    def shown(figure: Mapping[str, float | None], form: Callable[[float], str]) -> str:
        if None in figure.values():
            return "not defined"
        return f"{form(figure['value'])} [{form(figure['low'])}, {form(figure['high'])}]"

    lines = [
        f"{evaluation['catalogue_items']:,} items, {evaluation['test_users']:,} test users; "
        + f"{evaluation['dropped_unknown_target']:,} more have a target that is no item of the catalogue",
    ]
    for side, of_side in evaluation["sides"].items():
        lines.append(f"{side}: {headline} {shown(of_side['metrics'][headline], '{:.4f}'.format)}")
    for name, by_measure in evaluation["uplift"].items():
        lines.append(f"{name}: {headline} {shown(by_measure[headline], '{:+.2%}'.format)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluates both models of a training date and popularity.")
    parser.add_argument("--date", type=parse_run_date, required=True, help="the day the training ran on")
    parser.add_argument("--settings", default=None, help="settings file (default: $LTE_SETTINGS)")
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings)
    evaluation = evaluate(settings, arguments.date)
    print(summary(evaluation, f"ndcg@{max(settings.evaluation.cutoffs)}"))
    print(evaluation_path(settings, arguments.date))


if __name__ == "__main__":
    run(main)

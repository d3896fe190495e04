"""Evaluates the two models of a training date and popularity: `python -m lte_model.evaluation.evaluate --date D`.

1. Every test user's target, the first event on or after the test cut, gets its exact rank in the full catalogue from
   each *side*: the model with the LTE as prefix, the model without, and popularity of all time, 30 and 7 days.
2. NDCG, Recall and MRR at the settings' cutoffs are means over users. Intervals come from a bootstrap over users with
   the same draws for all sides, so that every difference is paired by user.
3. The headline metric is repeated for each cohort. Five example users show how the LTE changed their target's rank.

The result is `<reports>/<D>/evaluation.json`; the sides' metrics are logged to MLflow.
"""

import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

import mlflow

from lte_model.command_line import CommandParser, run
from lte_model.evaluation.cohorts import cohorts
from lte_model.evaluation.comparison import Comparison
from lte_model.evaluation.examples import example_users
from lte_model.evaluation.ranked import POPULARITY_SIDES, load_side, popularity
from lte_model.evaluation.results import OVER_NONE, Evaluation, evaluation_path, write_content
from lte_model.figures import Figure
from lte_model.ranker.cases import Cases
from lte_model.ranker.ranks import count_ranks, target_ranks
from lte_model.settings import Settings
from lte_model.tracking import runs
from lte_model.training.checkpoints import read_result
from lte_model.training.device import choose_device
from lte_model.training.training_set import TrainingSet, open_training_set

SIDES = ("prefix", "none")
"""The trainings that are compared."""


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
    for side, days in POPULARITY_SIDES.items():
        ranks[side] = count_ranks(popularity(training_set, days), cases.targets)
    comparison = Comparison.of(ranks, settings)
    run_ids = {side: runs.find_or_create_run(settings, training_date, side) for side in SIDES}

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
        "users": example_users(training_set, cases, rankers, ranks, device),
        "tables": {table: {"version": version} for table, version in sorted(training_set.tables.versions.items())},
        "seconds": {
            **{f"training {side}": round(result["seconds"], 1) for side, result in results.items()},
            "evaluation": round(time.perf_counter() - started, 1),
        },
    }
    write_content(evaluation_path(settings, training_date), evaluation)
    _log(settings, training_set, evaluation, run_ids)
    return evaluation


def tested_on(training_set: TrainingSet, cases: Cases) -> dict[str, Any]:
    """What all sides share, such as dates and test users: the first keys of an evaluation and of an ablation."""
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


def _cohort(name: str, comparison: Comparison) -> dict[str, Any]:
    return {
        "name": name,
        "users": len(comparison.values),
        "sides": comparison.metrics(),
        "uplift": comparison.uplifts()[OVER_NONE][comparison.headline],
    }


def _log(settings: Settings, training_set: TrainingSet, evaluation: Evaluation, run_ids: Mapping[str, str]) -> None:
    """Logs each model's test metrics to its own run, and every side's metrics and the file to the run `evaluation`."""
    values = {
        side: {f"test_{measure}": figure.value for measure, figure in of_side["metrics"].items()}
        for side, of_side in evaluation["sides"].items()
    }
    for side, run_id in run_ids.items():
        runs.log_metrics(run_id, values[side])
    with runs.training_run(settings, training_set.training_date, "evaluation") as active:
        mlflow.set_tags({"basis_id": evaluation["basis_id"], "representation": evaluation["representation"]})
        for table, version in training_set.tables.versions.items():
            runs.log_dataset(settings, table, version, "evaluation")
        for side, metrics in values.items():
            runs.log_metrics(active.info.run_id, {f"{side}/{name}": value for name, value in metrics.items()})
        uplift = {
            f"{name.replace(' ', '_')}/{measure}": figure.value
            for name, by_measure in evaluation["uplift"].items()
            for measure, figure in by_measure.items()
            if figure.value is not None
        }
        runs.log_metrics(active.info.run_id, uplift)
        mlflow.log_artifact(str(evaluation_path(settings, training_set.training_date)))


def summary(evaluation: Evaluation, headline: str) -> str:
    """A few lines for the terminal."""

    def shown(figure: Figure, form: Callable[[float], str]) -> str:
        if figure.defined is None:
            return "not defined"
        value, low, high = map(form, figure.defined)
        return f"{value} [{low}, {high}]"

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
    """Reads the command line and runs the command."""
    parser = CommandParser("Evaluates both models of a training date and popularity.", "the day the training ran on")
    _, settings, training_date = parser.read()
    evaluation = evaluate(settings, training_date)
    print(summary(evaluation, settings.evaluation.headline))
    print(evaluation_path(settings, training_date))


if __name__ == "__main__":
    run(main)

"""Compares the measured variants of an ablation: the best one, answers, newest event, cohorts, value of tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lte_model.evaluation.cohorts import cohorts, history_is_longer
from lte_model.evaluation.comparison import Comparison
from lte_model.evaluation.ranked import POPULARITY_SIDES
from lte_model.figures import UNDEFINED, Figure, FigureOfUsers
from lte_model.metrics import relative_difference
from lte_model.settings import Settings
from lte_model.studies.trained_variants import CONTROLS, MeasuredVariant, VariantCases
from lte_model.studies.variants import BEST, BUDGETS, QUESTIONS, VARIANTS, Question, Variant


def candidates_of(measured: dict[str, MeasuredVariant], headline: str) -> dict[str, float]:
    """Every candidate's NDCG on the validation days, averaged over its seeds, highest first."""
    # Variants with equal settings share one training; it counts under its first name.
    first_names = {id(of_variant): name for name, of_variant in reversed(measured.items())}
    found = {
        name: validation_of(of_variant, headline)
        for name, of_variant in measured.items()
        if VARIANTS[name].candidate and first_names[id(of_variant)] == name
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def validation_of(measured: MeasuredVariant, headline: str) -> float:
    """The headline on the validation days after the best epoch, averaged over the seeds."""
    return float(
        np.mean([max(epoch[f"validation_{headline}"] for epoch in result["curve"]) for result in measured.results])
    )


def described(variant: Variant, measured: MeasuredVariant, headline: str) -> dict[str, Any]:
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
        "validation": validation_of(measured, headline),
        "training_loss": float(np.mean([epoch["training_loss"] for epoch in best_epochs])),
        "training_seconds": round(float(np.mean([result["seconds"] for result in results])), 1),
        "targets_per_second": round(float(np.median([epoch["targets_per_second"] for epoch in epochs]))),
        "milliseconds_per_query": round(measured.milliseconds, 4),
    }


def answers_of(
    comparison: Comparison,
    measured: Mapping[str, MeasuredVariant],
    by_seed: Mapping[str, np.ndarray],
    best: str | None,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Answers each question whose two sides were measured. Attention is compared over users who have both ratios."""
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
    """The relative difference of each seed; None where it is undefined.

    A base with another number of seeds, such as popularity with a single value, is compared by its mean.
    """
    base = base if len(base) == len(ours) else base.mean(keepdims=True)
    differences = relative_difference(ours, base)
    return [float(difference) if np.isfinite(difference) else None for difference in differences]


def _attention_answer(
    question: Question, measured: Mapping[str, MeasuredVariant], settings: Settings
) -> dict[str, Any]:
    ratios = {side: measured[side].newest_event["attention_ratio"] for side in (question.ours, question.base)}
    both = np.isfinite(np.stack(list(ratios.values()))).all(axis=0)
    if not both.any():
        return {"users": 0, "uplift": UNDEFINED, "by_seed": []}
    compared = Comparison.of_values({side: {"ratio": found[both]} for side, found in ratios.items()}, settings)
    uplift = compared.uplifts({"": (question.ours, question.base)})[""]["ratio"]
    return {"users": int(both.sum()), "uplift": uplift, "by_seed": []}


def newest_event_of(measured: MeasuredVariant, settings: Settings) -> dict[str, Any]:
    """The mean of each measure of the newest event, over the users who have it, and the ratio against its controls.

    The differences are relative, and paired by user.
    """
    figures: dict[str, Figure] = {}
    values = {name: found[np.isfinite(found)] for name, found in measured.newest_event.items()}
    for name, found in values.items():
        if len(found):
            mean = Comparison.of_values({name: {"": found}}, settings).metrics()[name][""]
            figures[name] = FigureOfUsers(mean.value, mean.low, mean.high, len(found))
    controls = [name for name in CONTROLS if name in figures]
    if controls:
        compared = Comparison.of_values({name: {"": values[name]} for name in ("attention_ratio", *controls)}, settings)
        pairs = {f"over_{name}": ("attention_ratio", name) for name in controls}
        figures |= {name: uplift[""] for name, uplift in compared.uplifts(pairs).items()}
    return figures


def cohorts_of(
    test: VariantCases, measured: Mapping[str, MeasuredVariant], comparison: Comparison
) -> dict[str, list[dict[str, Any]]]:
    """{sequence policy: its cohorts}; each cohort has the policy's variants and the questions between two of them.

    The settings' own `max_tokens` decides the cohorts.
    """
    by_policy: dict[str, list[dict[str, Any]]] = {}
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
                    "sides": {side: metrics[side][among.headline] for side in (*names, *POPULARITY_SIDES)},
                    "uplifts": {text: by_measure[among.headline] for text, by_measure in uplifts.items()},
                }
            )
    return by_policy


def budget_of(test: VariantCases, measured: Mapping[str, MeasuredVariant], comparison: Comparison) -> dict[str, Any]:
    """The token counts of the two curves, and whether n tokens with the LTE are worth 4n or more without it.

    The second comparison is over users whose history is longer than n tokens; a shorter history is read whole.
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

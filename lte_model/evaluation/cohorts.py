"""The cohorts of test users that an evaluation tells apart."""

import numpy as np

from lte_model.ranker.cases import Cases, target_counts_of
from lte_model.training.training_set import TrainingSet

LONG_SEQUENCE = 10
"""A short-term sequence with at least this many events counts as long."""


def cohorts(training_set: TrainingSet, cases: Cases, max_events: int) -> dict[str, np.ndarray]:
    """A mask (N,) bool of the test users in each cohort. Cohorts may overlap; empty ones are left out."""
    short = np.minimum(cases.target_counts, max_events)  # events in [D−L, D), with either sequence policy
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
    """A mask (N,) bool of the users with events that a sequence of `max_events` leaves out."""
    return cases.history_counts > np.minimum(cases.lengths, max_events)

"""Metrics of several sides over the same users, and their paired differences with intervals."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lte_model.evaluation.results import OVER_NONE, OVER_POPULARITY
from lte_model.figures import Figure
from lte_model.metrics import bootstrap_means, interval, measures, relative_difference
from lte_model.settings import Settings

UPLIFTS = {OVER_NONE: ("prefix", "none"), OVER_POPULARITY: ("prefix", "popularity_30d")}


@dataclass(frozen=True)
class Comparison:
    """Every side's measures over the same N users: `values` (N, sides × measures), with `columns` (side, measure)."""

    values: np.ndarray
    columns: tuple[tuple[str, str], ...]
    samples: int
    seed: int
    headline: str

    @classmethod
    def of(cls, ranks: Mapping[str, np.ndarray], settings: Settings) -> "Comparison":
        """Computes every measure from each side's ranks (N,)."""
        return cls.of_values(
            {side: measures(found, settings.evaluation.cutoffs) for side, found in ranks.items()}, settings
        )

    @classmethod
    def of_values(cls, values: Mapping[str, Mapping[str, np.ndarray]], settings: Settings) -> "Comparison":
        """Compares any measures of the users: {side: {measure: values (N,)}}."""
        columns = {(side, measure): found for side, of_side in values.items() for measure, found in of_side.items()}
        return cls(
            values=np.column_stack(list(columns.values())),
            columns=tuple(columns),
            samples=settings.evaluation.bootstrap_samples,
            seed=settings.training.seed,
            headline=settings.evaluation.headline,
        )

    def among(self, members: np.ndarray) -> "Comparison":
        """The comparison of the headline measure alone, over the users of the mask `members` (N,) bool."""
        kept = [column for column, (_, measure) in enumerate(self.columns) if measure == self.headline]
        return Comparison(
            self.values[members][:, kept],
            tuple(self.columns[column] for column in kept),
            self.samples,
            self.seed,
            self.headline,
        )

    def metrics(self) -> dict[str, dict[str, Figure]]:
        """{side: {measure: mean over the users with its interval}}."""
        means, resampled = self._means
        metrics: dict[str, dict[str, Figure]] = {}
        for column, (side, measure) in enumerate(self.columns):
            metrics.setdefault(side, {})[measure] = interval(means[column], resampled[:, column])
        return metrics

    def uplifts(self, pairs: Mapping[str, tuple[str, str]] = UPLIFTS) -> dict[str, dict[str, Figure]]:
        """{"prefix over none": {measure: relative difference with its interval}, …} for the `pairs` (ours, base)."""
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
        means = self.values.mean(axis=0) if len(self.values) else np.full(self.values.shape[1], np.nan)
        return means, bootstrap_means(self.values, self.samples, self.seed)

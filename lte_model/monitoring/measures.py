"""The measures of a snapshot before it goes live: what they mean, and which values are beyond a bound.

`jobs.monitor_lte` computes the figures and writes them to table `lte_monitoring`. In this module

1. `MEASURES` says what each figure is, and what to do where it is beyond a bound of `[monitoring]` in the settings;
2. `population_stability` and lte_model.metrics.mean_cosine are the formulas;
3. `judged` compares the figures of a date with the bounds: ok, warn or stop.

lte_model/monitoring/page.py draws every measure over the dates, with its bounds, and logs the figures of a date to
MLflow. Old dates are compared with today's bounds, too. Nothing here names a user.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from lte_model import figures
from lte_model.settings import Bounds, Settings

BINS = 10
FEWEST_USERS = 50 * BINS
"""The fewest users for a population stability index: by chance alone it is (bins − 1)(1/n + 1/m)."""


class Unit(Enum):
    """The unit of a figure, which decides its format."""

    COUNT = "count"
    SHARE = "share"
    CHANGE = "change"
    DAYS = "days"
    NUMBER = "number"

    def written(self, value: float) -> str:
        """A value of this unit as text."""
        match self:
            case Unit.COUNT:
                return f"{value:,.0f}"
            case Unit.SHARE:
                return figures.percent(value, signed=False, digits=2 if 0 < value < 0.001 else 1)
            case Unit.CHANGE:
                return figures.percent(value)
            case Unit.DAYS:
                return f"{value:,.1f}".removesuffix(".0")
            case Unit.NUMBER:
                return f"{value:.4g}".replace("-", "−")


@dataclass(frozen=True)
class Measure:
    """One figure of a snapshot D. `meaning` follows its title on the page; `advice` is for a value beyond a bound."""

    name: str
    group: str
    title: str
    unit: Unit
    meaning: str
    advice: str


WHO, MOVE, DRIFT, AGE, CONTENT, FAULTS = (
    "Who has one", "How they move", "How far the population has drifted", "How old the events are", "What they hold",
    "What must not be",
)  # fmt: skip

_EVENTS = "Is the feed complete? See jobs.ingest_events and table ingested_days"
_MOVED = "Another basis, another encoder, another window? Models may read what they were not trained on"
_MODEL = "Is a training due? See lte_training"
_REMAKE = "Make the snapshot again with jobs.snapshot_lte --full, and audit it with jobs.audit_lte"

MEASURES = {
    measure.name: measure
    for measure in (
        Measure("users", WHO, "Users", Unit.COUNT, "with an LTE", _EVENTS),
        Measure("users_change", WHO, "Change of users", Unit.CHANGE, "since the snapshot before", _EVENTS),
        Measure(
            "coverage", WHO, "Coverage", Unit.SHARE, "of the users with an event in [D−L, D), those with an LTE",
            "Many new users, or a history that is missing? See `missing`",
        ),
        Measure(
            "without_lte", WHO, "Without LTE", Unit.SHARE, "of the users with an event in [D−L−W, D)",
            "Many new users, or a history that is missing? See `missing`",
        ),
        Measure(
            "missing", WHO, "Missing", Unit.SHARE,
            "of the users with an event in the window [D−L−W, D−L), those without",
            "Items without a vector, or users lost? See item_embeddings, and audit the snapshot with jobs.audit_lte",
        ),
        Measure(
            "inertia", MOVE, "Inertia", Unit.NUMBER, "mean cosine of a user's LTE with that of the snapshot before",
            _MOVED,
        ),
        Measure(
            "moved_per_day", MOVE, "Moved a day", Unit.NUMBER, "1 − inertia, over the days between the two snapshots",
            _MOVED,
        ),
        Measure(
            "inertia_days", MOVE, "Days to the snapshot before", Unit.DAYS, "7 where there is one, else the nearest",
            "Run lte_daily, or lte_backfill, for the days between",
        ),
        Measure(
            "mean_shift", DRIFT, "Shift of the mean", Unit.NUMBER, "‖mean LTE now − mean LTE of the reference‖", _MODEL
        ),
        Measure("psi_norm", DRIFT, "PSI of the norms", Unit.NUMBER, "of the LTEs' lengths", _MODEL),
        Measure("psi_events", DRIFT, "PSI of event counts", Unit.NUMBER, "of the events in an LTE", _MODEL),
        Measure("psi_age", DRIFT, "PSI of ages", Unit.NUMBER, "of the days since an LTE's newest event", _MODEL),
        Measure(
            "reference_days", DRIFT, "Days to the reference", Unit.DAYS, "what the model in use was trained on", _MODEL
        ),
        Measure("age_mean", AGE, "Mean age", Unit.DAYS, "days from an LTE's newest event to D", _EVENTS),
        Measure("age_p50", AGE, "Median age", Unit.DAYS, "of half of the LTEs the newest event is no older", _EVENTS),
        Measure("age_p95", AGE, "95 % age", Unit.DAYS, "of 95 % of the LTEs the newest event is no older", _EVENTS),
        Measure(
            "days_without_events", AGE, "Days without events", Unit.DAYS, "right before D: none was known of any user",
            _EVENTS,
        ),
        Measure("events_mean", CONTENT, "Events", Unit.NUMBER, "mean number in an LTE", _EVENTS),
        Measure("norm_mean", CONTENT, "Norm", Unit.NUMBER, "mean length of the LTEs", _REMAKE),
        Measure("null_rows", FAULTS, "Rows with a null", Unit.COUNT, "in a column or in the vector", _REMAKE),
        Measure(
            "off_grid_rows", FAULTS, "Rows off the grid", Unit.COUNT,
            "no sum of so many vectors of the basis: a component too large, or other dimensions", _REMAKE,
        ),
        Measure("long_rows", FAULTS, "Rows too long", Unit.COUNT, "the average is longer than any vector", _REMAKE),
        Measure("zero_share", FAULTS, "Zero", Unit.SHARE, "of the LTEs, those without direction", _REMAKE),
    )
}  # fmt: skip
"""Every measure, in the order of the page. `Monitoring` of the settings has the bounds of each."""


class Level(Enum):
    """How far a value is from its bounds, from the mildest to the most severe."""

    OK = "ok"
    WARN = "warn"
    STOP = "stop"


@dataclass(frozen=True)
class Reading:
    """A measure of one representation, with its level; `bound` is the bound that the value is beyond, or ""."""

    representation: str
    measure: Measure
    value: float
    level: Level
    bound: str

    def __str__(self) -> str:
        written = self.measure.unit.written(self.value)
        beyond = f", {self.level.value}s {self.bound}" if self.bound else ""
        return f"{self.representation} {self.measure.name} {written}{beyond}"


def population_stability(reference: np.ndarray, now: np.ndarray) -> float:
    """The population stability index of two samples; NaN if either has fewer than `FEWEST_USERS`.

    It is Σ (pᵢ − qᵢ) ln(pᵢ/qᵢ) over the bins between the deciles of the reference, with p the shares now and q those of
    the reference: Jeffreys' divergence of the two histograms (Jeffreys 1946). Below 0.1 is read as little change, above
    0.25 as a significant one, and 9(1/n + 1/m) is expected by chance (Yurdakul and Naranjo, Journal of Risk Model
    Validation 2020). Half a user is added to every bin, so that an empty one has a logarithm.
    """
    if min(len(reference), len(now)) < FEWEST_USERS:
        return math.nan
    edges = np.unique(np.quantile(reference, np.arange(1, BINS) / BINS))
    counts = [
        np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) + 0.5 for values in (reference, now)
    ]
    q, p = (count / count.sum() for count in counts)
    return float(((p - q) * np.log(p / q)).sum())


def judged(settings: Settings, representation: str, values: Mapping[str, float]) -> list[Reading]:
    """The readings of the measures that have a value, in the order of `MEASURES`."""
    return [
        Reading(
            representation, measure, values[name], *_judged(getattr(settings.monitoring, name), measure, values[name])
        )
        for name, measure in MEASURES.items()
        if name in values
    ]


def _judged(bounds: Bounds, measure: Measure, value: float) -> tuple[Level, str]:
    for level, below, above in (
        (Level.STOP, bounds.stop_below, bounds.stop_above),
        (Level.WARN, bounds.warn_below, bounds.warn_above),
    ):
        if value < below:
            return level, f"below {measure.unit.written(below)}"
        if value > above:
            return level, f"above {measure.unit.written(above)}"
    return Level.OK, ""

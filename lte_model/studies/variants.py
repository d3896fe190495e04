"""What the ablation compares: the variants of the model, and the questions that are asked of them.

A variant changes what the model reads (`settings.model`) and how it is trained (`settings.training`). The sizes of the
transformer, and all other settings, are the same for every variant. All variants train on one training set, from which
lte_model/training/training_set.py reads each variant's sequence and LTEs. This module imports neither torch nor MLflow.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from lte_model.errors import LTEError
from lte_model.settings import Model, Settings

BEST = "best"
"""Stands in a question for the variant with the best validation."""

RIVAL = "rectools"
"""SASRec of RecTools, if the report is given its ranks with `--rival`."""

SEEDS = 3
"""The default number of seeds of a study."""

BUDGETS = (5, 10, 20, 50, 100, 200)
"""The token counts of the budget curve. The last one is the longest sequence in the training set."""


@dataclass(frozen=True)
class Variant:
    """A named variant: `overrides` change `settings.model`, `training` changes `settings.training`.

    `candidate` says whether validation may choose it as the best.
    """

    name: str
    description: str
    overrides: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    candidate: bool = True

    @property
    def is_of_budget(self) -> bool:
        """Whether it is a point of the budget curve."""
        return "@" in self.name

    def settings(self, settings: Settings, seed: int) -> Settings:
        """The settings of one training of this variant."""
        model = Model.model_validate(settings.model.model_dump() | PLAIN | self.overrides)
        training = settings.training.model_copy(update={"seed": seed} | AS_PUBLISHED | self.training)
        return settings.model_copy(update={"model": model, "training": training})


PLAIN = {
    "integration": "prefix",
    "representations": ("uniform",),
    "sequence": "lagged",
    "long_memory": "none",
    "popularity_bias": False,
    "time_features": False,
    "repeat_bias": False,
}
"""The defaults of `Variant.overrides`."""

AS_PUBLISHED = {"refit": False, "predict_from": "earlier_events"}
"""The defaults of `Variant.training`."""

_NEWEST = {"sequence": "newest"}
_NONE = {"integration": "none"}
_LONG = _NEWEST | {"max_tokens": 200}
_HYBRID = _NEWEST | {"max_tokens": 50, "long_memory": "linear_attention"}
_POPULARITY = {"popularity_bias": True}
_TIME = {"time_features": True}
_REPEATS = {"repeat_bias": True}
_LIVE = {"refit": True, "predict_from": "earlier_days"}
_AUTOENCODER = {"representations": ("autoencoder",)}

_LISTED = [
    Variant("none", "no LTE", _NONE),
    Variant("prefix", "uniform LTE as a prefix token"),
    Variant("prefix_recency", "recency-weighted LTE as a prefix token", {"representations": ("recency",)}),
    Variant(
        "prefix_inverse_popularity",
        "LTE weighted by inverse popularity as a prefix token",
        {"representations": ("inverse_popularity",)},
    ),
    Variant("prefix_autoencoder", "LTE of the autoencoder as a prefix token", _AUTOENCODER),
    Variant(
        "prefix_uniform_autoencoder",
        "two prefix tokens, uniform and autoencoder",
        {"representations": ("uniform", "autoencoder")},
    ),
    Variant("late_fusion", "uniform LTE fused with the last hidden state", {"integration": "late_fusion"}),
    Variant("feature_injection", "uniform LTE added to every event", {"integration": "feature_injection"}),
    Variant("leak", "prefix token whose window has no lag", {"representations": ("leaking",)}, candidate=False),
    Variant("none_newest", "newest events, no LTE", _NEWEST | _NONE),
    Variant("prefix_newest", "newest events, uniform LTE as a prefix token", _NEWEST),
    Variant("prefix_newest_autoencoder", "newest events, LTE of the autoencoder", _NEWEST | _AUTOENCODER),
    Variant("long_sequence", "newest events in 200 tokens, no LTE", _LONG | _NONE),
    Variant("long_prefix", "newest events in 200 tokens, uniform LTE", _LONG),
    Variant("hybrid", "50 tokens, linear attention over older events, no LTE", _HYBRID | _NONE),
    Variant("hybrid_prefix", "50 tokens, linear attention over older events, uniform LTE", _HYBRID),
    Variant("prefix_newest_popularity", "prefix_newest with popularity bias", _NEWEST | _POPULARITY),
    Variant(
        "prefix_newest_popularity_time",
        "prefix_newest with popularity bias and time features",
        _NEWEST | _POPULARITY | _TIME,
        _LIVE,
    ),
    Variant(
        "prefix_newest_autoencoder_popularity_time",
        "prefix_newest_autoencoder with popularity bias and time features",
        _NEWEST | _AUTOENCODER | _POPULARITY | _TIME,
        _LIVE,
    ),
    Variant(
        "prefix_newest_popularity_time_repeats",
        "prefix_newest with popularity bias, time features and repeat bias",
        _NEWEST | _POPULARITY | _TIME | _REPEATS,
        _LIVE,
    ),
    Variant(
        "prefix_newest_popularity_time_repeats_by_event",
        "prefix_newest_popularity_time_repeats, each event predicted from all before it",
        _NEWEST | _POPULARITY | _TIME | _REPEATS,
        _LIVE | {"predict_from": "earlier_events"},
    ),
    Variant(
        "none_newest_popularity_time_repeats",
        "newest events, no LTE, popularity bias, time features and repeat bias",
        _NEWEST | _NONE | _POPULARITY | _TIME | _REPEATS,
        _LIVE,
    ),
    Variant("long_sequence_popularity", "long_sequence with popularity bias", _LONG | _NONE | _POPULARITY),
    Variant(
        "long_sequence_popularity_time",
        "long_sequence with popularity bias and time features",
        _LONG | _NONE | _POPULARITY | _TIME,
        _LIVE,
    ),
    Variant(
        "long_sequence_popularity_time_repeats",
        "long_sequence with popularity bias, time features and repeat bias",
        _LONG | _NONE | _POPULARITY | _TIME | _REPEATS,
        _LIVE,
    ),
    Variant("long_prefix_popularity", "long_prefix with popularity bias", _LONG | _POPULARITY),
    Variant(
        "long_prefix_popularity_time",
        "long_prefix with popularity bias and time features",
        _LONG | _POPULARITY | _TIME,
        _LIVE,
    ),
    Variant(
        "long_prefix_popularity_time_repeats",
        "long_prefix with popularity bias, time features and repeat bias",
        _LONG | _POPULARITY | _TIME | _REPEATS,
        _LIVE,
    ),
    Variant(
        "long_prefix_autoencoder_popularity_time",
        "200 tokens, LTE of the autoencoder, popularity bias and time features",
        _LONG | _AUTOENCODER | _POPULARITY | _TIME,
        _LIVE,
    ),
    Variant(
        "hybrid_prefix_popularity_time",
        "hybrid_prefix with popularity bias and time features",
        _HYBRID | _POPULARITY | _TIME,
        _LIVE,
    ),
    *(
        Variant(f"{name}@{tokens}", f"newest events in {tokens} tokens, {lte}", _NEWEST | of | {"max_tokens": tokens})
        for tokens in BUDGETS
        for name, lte, of in (("none", "no LTE", _NONE), ("prefix", "uniform LTE", {}))
    ),
]

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _LISTED}
"""Variants by name: the paper's sequence policy, ours, ours with popularity, and the two sides of the budget curve.
Variants with popularity and time are trained as for production: up to the test cut, and to predict each day from
earlier days, because lists are made daily."""


@dataclass(frozen=True)
class Question:
    """A comparison of two variants: how much `measure` differs between `ours` and `base`.

    `paper` is the direction that arXiv 2604.08181 reports for `ours`; `size` is its relative difference, if published.
    """

    text: str
    ours: str
    base: str
    paper: Literal["higher", "lower", ""] = ""
    size: float | None = None
    measure: Literal["ndcg", "attention_ratio"] = "ndcg"


_RATIO = 2.62 / 2.83 - 1

QUESTIONS = (
    Question("LTE as a prefix token, over no LTE", "prefix", "none", "higher", 0.0131),
    Question("LTE as a prefix token, over no LTE, newest events", "prefix_newest", "none_newest", "higher", 0.0131),
    Question("recency-weighted over uniform average", "prefix_recency", "prefix", "lower"),
    Question("late fusion over no LTE", "late_fusion", "none", "lower"),
    Question("feature injection over no LTE", "feature_injection", "none", "lower"),
    Question("late fusion over prefix token", "late_fusion", "prefix", "lower"),
    Question("feature injection over prefix token", "feature_injection", "prefix", "lower"),
    Question("autoencoder over uniform average", "prefix_autoencoder", "prefix", "higher", 0.021),
    Question(
        "autoencoder over uniform average, newest events",
        "prefix_newest_autoencoder",
        "prefix_newest",
        "higher",
        0.021,
    ),
    Question(
        "attention to the newest event, with LTE over without", "prefix", "none", "lower", _RATIO, "attention_ratio"
    ),
    Question(
        "attention to the newest event, with LTE over without, newest events",
        "prefix_newest",
        "none_newest",
        "lower",
        _RATIO,
        "attention_ratio",
    ),
    Question("window without lag over lagged window", "leak", "prefix", "lower"),
    Question("weights by inverse popularity over uniform average", "prefix_inverse_popularity", "prefix"),
    Question("uniform and autoencoder over autoencoder alone", "prefix_uniform_autoencoder", "prefix_autoencoder"),
    Question("200 tokens over the short sequence, without LTE", "long_sequence", "none_newest"),
    Question("LTE and the short sequence, over 200 tokens without LTE", "prefix_newest", "long_sequence"),
    Question("LTE and 200 tokens, over 200 tokens without LTE", "long_prefix", "long_sequence"),
    Question("linear attention over older events, over none", "hybrid", "none_newest"),
    Question("LTE over linear attention over older events", "prefix_newest", "hybrid"),
    Question("LTE beside linear attention, over linear attention", "hybrid_prefix", "hybrid"),
    Question("popularity bias over none", "prefix_newest_popularity", "prefix_newest"),
    Question(
        "repeat bias over none, with popularity and time",
        "prefix_newest_popularity_time_repeats",
        "prefix_newest_popularity_time",
    ),
    Question(
        "predicted from earlier days over from earlier events, with popularity, time and repeat bias",
        "prefix_newest_popularity_time_repeats",
        "prefix_newest_popularity_time_repeats_by_event",
    ),
    Question(
        "LTE over none, with popularity, time and repeat bias",
        "prefix_newest_popularity_time_repeats",
        "none_newest_popularity_time_repeats",
    ),
    Question(
        "LTE over none, 200 tokens, with popularity, time and repeat bias",
        "long_prefix_popularity_time_repeats",
        "long_sequence_popularity_time_repeats",
    ),
    Question("the variant that validation chose, over 200 tokens without LTE", BEST, "long_sequence"),
    Question("the variant that validation chose, over popularity of 7 days", BEST, "popularity_7d"),
    Question("the variant that validation chose, over SASRec of RecTools", BEST, RIVAL),
)
"""First what the paper reports, then what it leaves open."""


def chosen_variants(names: str) -> list[Variant]:
    """The variants of a list such as `prefix,none@20`, in the order of `VARIANTS`; an empty list means all.

    Raises `LTEError` for an unknown name.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    unknown = sorted(wanted - set(VARIANTS))
    if unknown:
        raise LTEError(f"there is no variant {unknown[0]!r}; choose of {', '.join(VARIANTS)}")
    return [variant for variant in VARIANTS.values() if not wanted or variant.name in wanted]


def trained_as(settings: Settings, variant: Variant) -> Variant:
    """The first variant with the same settings, which is trained once for both: `none@200` is `long_sequence`."""
    own = variant.settings(settings, 0)
    return next(other for other in VARIANTS.values() if other.settings(settings, 0) == own)

"""What an evaluation found: its file, its figures as text, and what they say in plain words.

The report, the registry's gate and the demo's closing table read `evaluation.json` through this file, so that
the same figure is written, and judged, in the same way everywhere. Imports no torch.
"""

import datetime
import json
import math
from enum import Enum
from pathlib import Path
from typing import Any

from lte_model.errors import LTEError
from lte_model.settings import Settings

Evaluation = dict[str, Any]
"""The content of `evaluation.json`; its keys are those that lte_model.evaluation writes."""

Ablation = dict[str, Any]
"""The content of `ablation.json`; its keys are those that lte_model.ablation writes."""

Drill = dict[str, Any]
"""The content of `drill.json`; its keys are those that lte_model.drill writes."""

Figure = dict[str, float | None]
"""A measured value and the ends of its 95 % interval: `value`, `low`, `high`. None where it isn't defined."""

OVER_NONE = "prefix over none"
OVER_POPULARITY = "prefix over popularity_30d"


class Outcome(Enum):
    """What the interval of a relative difference says."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


def evaluation_path(settings: Settings, training_date: datetime.date) -> Path:
    """Where the evaluation of the training of `training_date` is written."""
    return Path(settings.reports) / training_date.isoformat() / "evaluation.json"


def report_path(settings: Settings, training_date: datetime.date) -> Path:
    """Where the report of the training of `training_date` is written."""
    return Path(settings.reports) / training_date.isoformat() / "report.html"


def ablation_path(settings: Settings, training_date: datetime.date) -> Path:
    """Where the ablation of the training of `training_date` is written. Its page lies beside it, as `.html`."""
    return Path(settings.reports) / training_date.isoformat() / "ablation.json"


def drill_path(settings: Settings, training_date: datetime.date) -> Path:
    """Where the drill whose later version is of `training_date` is written. Its page lies beside it, as `.html`."""
    return Path(settings.reports) / training_date.isoformat() / "drill.json"


def read_evaluation(settings: Settings, training_date: datetime.date) -> Evaluation:
    """The evaluation of the training of `training_date`. Raises `LTEError` where there is none or it is cut off."""
    again = f"run python -m lte_model.evaluation --date {training_date}"
    return _read(evaluation_path(settings, training_date), f"the training of {training_date} has no evaluation", again)


def read_ablation(settings: Settings, training_date: datetime.date) -> Ablation:
    """The ablation of the training of `training_date`. Raises `LTEError` where there is none or it is cut off."""
    again = f"run python -m lte_model.ablation report --date {training_date}"
    return _read(ablation_path(settings, training_date), f"the training of {training_date} has no ablation", again)


def read_drill(settings: Settings, training_date: datetime.date) -> Drill:
    """The drill whose later version is of `training_date`. Raises `LTEError` where there is none or it is cut off."""
    again = f"run python -m lte_model.drill report --date {training_date} --earlier DATE"
    return _read(drill_path(settings, training_date), f"the training of {training_date} has no drill", again)


def _read(path: Path, missing: str, again: str) -> dict[str, Any]:
    if not path.is_file():
        raise LTEError(f"{missing} at {path}; {again} first")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LTEError(f"{path} is not JSON ({error}); {again} again") from None


def headline_metric(evaluation: Evaluation) -> str:
    """The metric that decides: NDCG at the largest cutoff, as the paper reports it (`ndcg@500` by default)."""
    cutoffs = [int(name.removeprefix("ndcg@")) for name in evaluation["sides"]["prefix"]["metrics"] if "ndcg@" in name]
    return f"ndcg@{max(cutoffs)}"


def metric_label(name: str) -> str:
    """`ndcg@500` as people write it: NDCG@500."""
    family, _, cutoff = name.partition("@")
    return f"{family.capitalize() if family == 'recall' else family.upper()}@{cutoff}"


def outcome(uplift: Figure) -> Outcome:
    """Better or worse where the whole interval lies on one side of 0, undecided where it contains or touches 0."""
    if not is_defined(uplift):
        return Outcome.UNDECIDED
    if uplift["low"] > 0:
        return Outcome.BETTER
    return Outcome.WORSE if uplift["high"] < 0 else Outcome.UNDECIDED


def is_defined(figure: Figure | None) -> bool:
    """False for a figure that could not be measured: a cohort without users, a ratio to 0."""
    if not figure:
        return False
    return all(figure.get(end) is not None and math.isfinite(figure[end]) for end in ("value", "low", "high"))


def in_words(uplift: Figure, metric: str, users: int, rival: str) -> str:
    """One or two sentences on a relative difference of `metric` to `rival`, paired over `users` test users."""
    name = metric_label(metric)
    if not is_defined(uplift):
        return f"The difference to the {rival} could not be measured."
    value, interval = percent(uplift["value"], signed=False), f"{percent(uplift['low'])} to {percent(uplift['high'])}"
    direction = "higher" if uplift["value"] >= 0 else "lower"
    match outcome(uplift):
        case Outcome.BETTER:
            return f"{name} is {value} higher than that of the {rival} (95 % interval {interval}, {users:,} users)."
        case Outcome.WORSE:
            return f"{name} is {value} lower than that of the {rival} (95 % interval {interval}, {users:,} users)."
        case Outcome.UNDECIDED:
            return (
                f"{name} is {value} {direction} than that of the {rival}, but the 95 % interval, {interval}, contains "
                f"0: with {users:,} users this test cannot tell the two apart."
            )


def number(value: float | None) -> str:
    """A metric between 0 and 1, four digits behind the point."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def interval(figure: Figure) -> str:
    """The ends of a metric's 95 % interval, in brackets."""
    return f"[{number(figure['low'])}, {number(figure['high'])}]" if is_defined(figure) else ""


def percent(share: float | None, signed: bool = True, digits: int = 1) -> str:
    """A relative difference as a percentage with one digit behind the point, or more: 0.0131 is +1.3 %."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:+.{digits}f} %".replace("-", "−") if signed else f"{100 * abs(share):.{digits}f} %"


def percent_interval(uplift: Figure, digits: int = 1) -> str:
    """The ends of a relative difference's 95 % interval, in brackets."""
    if not is_defined(uplift):
        return ""
    return f"[{percent(uplift['low'], digits=digits)}, {percent(uplift['high'], digits=digits)}]"

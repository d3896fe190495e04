"""The file that an evaluation writes, and how it is read."""

import datetime
import json
from pathlib import Path
from typing import Any

from lte_model.errors import LTEError
from lte_model.settings import Settings

Evaluation = dict[str, Any]
"""The content of `evaluation.json`; its keys are those that lte_model.evaluation.evaluate writes."""


OVER_NONE = "prefix over none"
OVER_POPULARITY = "prefix over popularity_30d"


def evaluation_path(settings: Settings, training_date: datetime.date) -> Path:
    """Where the evaluation of the training of `training_date` is written."""
    return Path(settings.reports) / training_date.isoformat() / "evaluation.json"


def report_path(settings: Settings, training_date: datetime.date) -> Path:
    """Where the report of the training of `training_date` is written."""
    return Path(settings.reports) / training_date.isoformat() / "report.html"


def read_evaluation(settings: Settings, training_date: datetime.date) -> Evaluation:
    """The evaluation of the training of `training_date`. Raises `LTEError` where there is none or it is cut off."""
    again = f"run python -m lte_model.evaluation.evaluate --date {training_date}"
    return read_json(
        evaluation_path(settings, training_date), f"the training of {training_date} has no evaluation", again
    )


def read_json(path: Path, missing: str, again: str) -> dict[str, Any]:
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

"""The files of an evaluation: their paths, how they are written and read, and the names of the comparisons."""

import datetime
from pathlib import Path
from typing import Any

from lte_model import figures
from lte_model.errors import LTEError
from lte_model.files import write_atomically
from lte_model.settings import Settings

Evaluation = dict[str, Any]
"""The content of `evaluation.json`; lte_model.evaluation.evaluate defines its keys."""

EVALUATION_FILE, REPORT_FILE = "evaluation.json", "report.html"
"""The files of a training's evaluation and report, in one folder per training date."""

OVER_NONE = "prefix over none"
OVER_POPULARITY = "prefix over popularity_30d"
"""The comparisons of an evaluation, as its file and the registry name them."""


def evaluation_path(settings: Settings, training_date: datetime.date) -> Path:
    """Where the evaluation of the training of `training_date` is written."""
    return Path(settings.reports) / training_date.isoformat() / EVALUATION_FILE


def report_path(settings: Settings, training_date: datetime.date) -> Path:
    """Where the report of the training of `training_date` is written."""
    return Path(settings.reports) / training_date.isoformat() / REPORT_FILE


def read_evaluation(settings: Settings, training_date: datetime.date) -> Evaluation:
    """The evaluation of the training of `training_date`. Raises `LTEError` where it is missing or truncated."""
    again = f"run python -m lte_model.evaluation.evaluate --date {training_date}"
    return read_content(
        evaluation_path(settings, training_date), f"the training of {training_date} has no evaluation", again
    )


def write_content(path: Path, content: dict[str, Any]) -> None:
    """Writes the results of an evaluation or a study atomically. Raises `ValueError` for a NaN."""
    write_atomically(path, figures.to_json(content))


def read_content(path: Path, missing: str, again: str) -> dict[str, Any]:
    """Reads what `write_content` wrote, figures included.

    Raises `LTEError` where the file is missing or truncated; `missing` and `again` word the problem and the remedy.
    """
    if not path.is_file():
        raise LTEError(f"{missing} at {path}; {again} first")
    try:
        return figures.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LTEError(f"{path} is not JSON ({error}); {again} again") from None


def headline_metric(evaluation: Evaluation) -> str:
    """The metric that decides: NDCG at the largest cutoff, as the paper reports it (`ndcg@500` by default)."""
    cutoffs = [int(name.removeprefix("ndcg@")) for name in evaluation["sides"]["prefix"]["metrics"] if "ndcg@" in name]
    return f"ndcg@{max(cutoffs)}"

"""The files that an ablation and a drill write, and how they are read."""

import datetime
from pathlib import Path
from typing import Any

from lte_model.evaluation.results import read_content
from lte_model.settings import Settings

Ablation = dict[str, Any]
"""The content of `ablation.json`; lte_model.studies.ablation defines its keys."""


Drill = dict[str, Any]
"""The content of `drill.json`; lte_model.studies.drill defines its keys."""


def ablation_path(settings: Settings, training_date: datetime.date) -> Path:
    """Where the ablation of the training of `training_date` is written. Its page lies beside it, as `.html`."""
    return Path(settings.reports) / training_date.isoformat() / "ablation.json"


def drill_path(settings: Settings, training_date: datetime.date) -> Path:
    """The file of the drill whose later version is of `training_date`. Its page lies beside it, as `.html`."""
    return Path(settings.reports) / training_date.isoformat() / "drill.json"


def read_ablation(settings: Settings, training_date: datetime.date) -> Ablation:
    """The ablation of the training of `training_date`. Raises `LTEError` where it is missing or truncated."""
    again = f"run python -m lte_model.studies.ablation report --date {training_date}"
    return read_content(
        ablation_path(settings, training_date), f"the training of {training_date} has no ablation", again
    )


def read_drill(settings: Settings, training_date: datetime.date) -> Drill:
    """The drill whose later version is of `training_date`. Raises `LTEError` where it is missing or truncated."""
    again = f"run python -m lte_model.studies.drill report --date {training_date} --earlier DATE"
    return read_content(drill_path(settings, training_date), f"the training of {training_date} has no drill", again)

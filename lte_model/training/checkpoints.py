"""What a training leaves on disk: its directory, checkpoint and result."""

import datetime
import json
import pickle
from pathlib import Path
from typing import Any

import torch

from lte_model.errors import LTEError
from lte_model.settings import Settings

CHECKPOINT_FILE = "checkpoint.pt"
RESULT_FILE = "training.json"
MODEL_DIRECTORY = "model"


def side_directory(settings: Settings, training_date: datetime.date, side: str) -> Path:
    """Where the checkpoint and the model of one side lie."""
    return Path(settings.checkpoints) / str(training_date) / side


def read_result(settings: Settings, training_date: datetime.date, side: str, again: str = "") -> dict[str, Any]:
    """What a finished training left: fingerprint, best_epoch, seconds, curve, versions.

    Raises `LTEError` if the training isn't finished; the error says to run `again`, by default the training.
    """
    file = side_directory(settings, training_date, side) / RESULT_FILE
    if not file.is_file():
        raise LTEError(
            f"the training of {training_date}, side {side}, is not finished ({file} is missing); "
            f"run {again or f'lte_model.training.train --date {training_date} --integration {side}'}"
        )
    return json.loads(file.read_text(encoding="utf-8"))


def is_done(directory: Path, fingerprint: str) -> bool:
    """Whether the training with `fingerprint` is finished there. Removes the result of any other training."""
    file = directory / RESULT_FILE
    if not file.is_file():
        return False
    if json.loads(file.read_text(encoding="utf-8"))["fingerprint"] == fingerprint:
        return True
    file.unlink()  # from here on the directory holds a training that isn't done
    return False


def read_checkpoint(file: Path, fingerprint: str) -> tuple[dict[str, Any] | None, str]:
    """The checkpoint or None, and the reason if there is a file that training can't resume from."""
    if not file.is_file():
        return None, ""
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        return None, f"{file} can't be read ({type(error).__name__})"
    if checkpoint["fingerprint"] != fingerprint:
        return None, f"{file} belongs to other settings or other rows of the training set"
    return checkpoint, ""

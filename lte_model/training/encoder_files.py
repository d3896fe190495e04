"""The files of an encoder: lte_model.training.autoencoder writes them, and jobs.encode_items reads them."""

import datetime
from pathlib import Path

from lte_model.settings import Settings

VECTORS_FILE = "encoder.safetensors"
"""Tensor `vectors` (items, dimensions) float32, on the grid of the basis."""

DESCRIPTION_FILE = "encoder.json"
"""The basis, date and items of the encoder. Written last."""


def encoder_directory(settings: Settings, basis_id: str, fitted_on: datetime.date) -> Path:
    """The folder of both files. A date may have an encoder in each basis in force."""
    return Path(settings.checkpoints, "encoder", basis_id, str(fitted_on))

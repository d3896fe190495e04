"""Where the encoder of a date lies: lte_model.training.autoencoder writes the files, and
jobs.encode_items reads them.
"""

import datetime
from pathlib import Path

from lte_model.settings import Settings

VECTORS_FILE = "encoder.safetensors"
"""Tensor `vectors` (items, dimensions) float32, on the grid of the basis."""

DESCRIPTION_FILE = "encoder.json"
"""Of which basis, date and items; written last."""


def encoder_directory(settings: Settings, basis_id: str, fitted_on: datetime.date) -> Path:
    """The folder of both files. While one basis takes the place of another, a date may have an encoder in each."""
    return Path(settings.checkpoints, "encoder", basis_id, str(fitted_on))

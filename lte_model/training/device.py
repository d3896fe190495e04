"""The device that a training or an evaluation runs on."""

import os

import torch

from lte_model.errors import LTEError


def choose_device(choice: str) -> torch.device:
    """The device that `training.device` asks for, in deterministic mode. Raises `LTEError` if it is missing."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise LTEError("training.device is cuda, but torch finds no CUDA device; set it to auto or cpu")
    device = torch.device("cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        # Atomic additions differ in bits from run to run, so a resumed training would end in other weights.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device

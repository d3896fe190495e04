"""A trained ranker on disk: weights and content vectors as safetensors, the rest as JSON."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lte_model.domain.kind import KIND_FIELDS, LTEKind
from lte_model.errors import LTEError
from lte_model.files import UNFINISHED
from lte_model.ranker.model import Ranker, RankerConfig

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"

EARLIER_DEFAULTS: dict[str, Any] = {
    "representations": 1,
    "feed_forward": 1,
    "id_dropout": 0.0,
    "sequence": "lagged",
    "popularity_bias": False,
    "time_features": False,
    "repeat_bias": False,
    "long_memory": "none",
    "memory_events": 150,
    "popularity_counts": 3,
}
"""The values of `RankerConfig` fields that a model saved by an earlier release may lack."""


def save_ranker(ranker: Ranker, directory: str | os.PathLike) -> None:
    """Writes the ranker to `directory`: weights and content vectors as safetensors, the rest as JSON.

    The directory appears whole or not at all, and replaces an existing one.
    """
    directory = Path(directory)
    beside = directory.with_name(directory.name + UNFINISHED)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in ranker.state_dict().items()}, beside / WEIGHTS_FILE)
    description = {
        **dataclasses.asdict(ranker.kind),
        "config": dataclasses.asdict(ranker.config),
        "item_ids": list(ranker.item_ids),
    }
    (beside / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    beside.rename(directory)


def load_ranker(directory: str | os.PathLike, device: str | torch.device = "cpu") -> Ranker:
    """The ranker that `save_ranker` wrote to `directory`, in evaluation mode. Raises `LTEError` where there is none."""
    directory = Path(directory)
    try:
        description = json.loads((directory / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        weights = load_file(directory / WEIGHTS_FILE, device=str(device))
    except FileNotFoundError as error:
        raise LTEError(
            f"there is no trained model in {directory} ({Path(error.filename or '').name or WEIGHTS_FILE} is missing); "
            "run lte_model.training.train for its date and side"
        ) from None
    kind = LTEKind(**{field: description[field] for field in KIND_FIELDS})
    ranker = Ranker(
        RankerConfig(**EARLIER_DEFAULTS | description["config"]), kind, description["item_ids"], weights["content"]
    )
    ranker.load_state_dict(weights)
    return ranker.to(device).eval()

"""Trains one side of a training date: `python -m lte_model.training --date D --integration prefix|none`.

1. The loss is the exact cross entropy of every event of the anchors' sequences, over the whole catalogue.
2. After each epoch the model is measured on the validation cut, by NDCG at the largest cutoff, and a checkpoint is
   written: model, optimizer, best weights so far, curve. It replaces the last one in one step.
3. Training stops when `patience` epochs brought nothing better, and the best weights become the model directory.

In `<checkpoints>/<D>/<side>/` appear `checkpoint.pt`, then `model/`, and last `training.json`: all is done.
A training that was killed goes on from its checkpoint and ends in the same weights, bit for bit: each epoch draws its
order and its dropout from the seed and its own number. Checkpoint and result belong to a fingerprint of the data and
the settings; with another fingerprint training starts anew, and says so.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import math
import os
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch

from lte_model import tracking
from lte_model.data import Cases, TrainingSet, epoch_batches, open_training_set
from lte_model.errors import LTEError, run
from lte_model.metrics import ndcg, target_ranks
from lte_model.model import INTEGRATIONS, Integration, Ranker, RankerConfig, save_ranker
from lte_model.settings import Settings, load_settings
from lte_model.windows import parse_run_date

CHECKPOINT_FILE = "checkpoint.pt"
RESULT_FILE = "training.json"
MODEL_DIRECTORY = "model"

LOSS_CHECKED_EVERY = 50
"""Batches between two looks at the losses: each look waits for the GPU."""


def side_directory(settings: Settings, training_date: datetime.date, side: str) -> Path:
    """Where the checkpoint and the model of one side lie."""
    return Path(settings.checkpoints) / str(training_date) / side


def read_result(settings: Settings, training_date: datetime.date, side: str) -> dict[str, Any]:
    """What a finished training left: fingerprint, best_epoch, seconds, curve, versions.

    Raises `LTEError` where the training of that side isn't finished.
    """
    file = side_directory(settings, training_date, side) / RESULT_FILE
    if not file.is_file():
        raise LTEError(
            f"the training of {training_date}, side {side}, is not finished ({file} is missing); "
            f"run lte_model.training --date {training_date} --integration {side}"
        )
    return json.loads(file.read_text(encoding="utf-8"))


def train(settings: Settings, training_date: datetime.date, integration: Integration) -> Path:
    """Trains, or goes on, or finds the training done; returns the model's directory.

    Raises `LTEError` for a training set that can't be used, and a loss that is not a number.
    """
    device = choose_device(settings.training.device)
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    directory = side_directory(settings, training_date, integration)
    directory.mkdir(parents=True, exist_ok=True)

    training_set = open_training_set(settings, training_date)
    cases, validation = training_set.cases("train"), training_set.cases("validation")
    config = ranker_config(settings, training_set, integration)
    fingerprint = _fingerprint(settings, config, training_set, cases, validation)
    if _is_done(directory, fingerprint):
        print(f"the training of {training_date}, side {integration}, is done already: {directory / MODEL_DIRECTORY}")
        return directory / MODEL_DIRECTORY

    checkpoint, reason = _read_checkpoint(directory / CHECKPOINT_FILE, fingerprint)
    if reason:
        print(f"starting anew: {reason}")
    print(
        f"{integration}: {len(cases):,} cases with {len(cases.items):,} targets, {len(validation):,} users validate, "
        f"{len(training_set.catalogue):,} items; {device}, {torch.get_num_threads()} threads"
    )
    with tracking.training_run(settings, training_date, integration, anew=bool(reason)):
        _log_inputs(settings, training_set, config, device)
        ranker = _new_ranker(config, training_set, settings.training.seed).to(device)
        progress = _fit(settings, ranker, cases, validation, device, directory, fingerprint, checkpoint)
        ranker.load_state_dict(progress.best_weights)
        save_ranker(ranker, directory / MODEL_DIRECTORY)
        result = {
            "fingerprint": fingerprint,
            "training_date": str(training_date),
            "best_epoch": progress.best_epoch,
            "seconds": sum(epoch["seconds"] for epoch in progress.curve),
            "curve": progress.curve,
            "versions": training_set.tables.versions,
        }
        write_atomically(directory / RESULT_FILE, json.dumps(result, indent=1).encode())
        mlflow.log_metrics({"best_epoch": progress.best_epoch, "training_seconds": result["seconds"]})
    print(f"best epoch {progress.best_epoch}: {directory / MODEL_DIRECTORY}")
    return directory / MODEL_DIRECTORY


def ranker_config(settings: Settings, training_set: TrainingSet, integration: Integration) -> RankerConfig:
    items, dimensions = training_set.catalogue.vectors.shape
    return RankerConfig(
        items=items,
        dimensions=dimensions,
        max_tokens=settings.training_set.max_length,
        integration=integration,
        **settings.model.model_dump(),
    )


@dataclass
class Progress:
    """What a training knows besides weights and optimizer state; all of it is in the checkpoint."""

    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)


def _fit(
    settings: Settings,
    ranker: Ranker,
    cases: Cases,
    validation: Cases,
    device: torch.device,
    directory: Path,
    fingerprint: str,
    checkpoint: dict[str, Any] | None,
) -> Progress:
    """Runs the epochs that are left and leaves a checkpoint after each."""
    options = settings.training
    cutoff = max(settings.evaluation.cutoffs)
    measure = f"validation_ndcg@{cutoff}"
    optimizer = _optimizer(ranker, options.learning_rate, options.weight_decay)
    progress = Progress()
    if checkpoint:
        ranker.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        progress = Progress(**checkpoint["progress"])
        print(f"going on after epoch {progress.epoch}")

    while progress.epoch < options.epochs and progress.epoch - progress.best_epoch < options.patience:
        progress.epoch += 1
        started = time.perf_counter()
        loss = _train_epoch(ranker, optimizer, cases, settings, progress.epoch, device)
        trained = time.perf_counter()
        quality = float(ndcg(target_ranks(ranker, validation, device), cutoff).mean())
        if quality > progress.best:
            progress.best, progress.best_epoch = quality, progress.epoch
            progress.best_weights = {name: tensor.cpu().clone() for name, tensor in ranker.state_dict().items()}
        seconds = time.perf_counter() - started
        targets_per_second = len(cases.items) / (trained - started)
        progress.curve.append(
            {"epoch": progress.epoch, "training_loss": loss, measure: quality, "seconds": round(seconds, 3)}
        )
        _write_checkpoint(directory / CHECKPOINT_FILE, fingerprint, ranker, optimizer, progress)
        mlflow.log_metrics(
            {
                "training_loss": loss,
                measure.replace("@", "_at_"): quality,
                "targets_per_second": targets_per_second,
                "epoch_seconds": seconds,
            },
            step=progress.epoch,
        )
        print(
            f"epoch {progress.epoch}: loss {loss:.4f}, validation NDCG@{cutoff} {quality:.4f} "
            f"(best {progress.best:.4f} in epoch {progress.best_epoch}), {seconds:.1f} s, "
            f"{targets_per_second:,.0f} targets/s",
            flush=True,
        )
    return progress


def _train_epoch(
    ranker: Ranker,
    optimizer: torch.optim.Optimizer,
    cases: Cases,
    settings: Settings,
    epoch: int,
    device: torch.device,
) -> float:
    """One pass over the cases; returns the mean loss per target."""
    options = settings.training
    torch.manual_seed(int(np.random.SeedSequence((options.seed, epoch)).generate_state(1)[0]))
    ranker.train()
    batches = epoch_batches(cases.lengths, options.batch_size, options.seed, epoch)
    losses, total = [], 0.0
    for number, batch in enumerate(batches):
        arguments = cases.batch(batch).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = ranker.loss(**arguments)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if len(losses) == LOSS_CHECKED_EVERY or number == len(batches) - 1:
            values = torch.stack(losses).tolist()
            for behind, value in enumerate(reversed(values)):
                total += value * cases.lengths[batches[number - behind]].sum()
            _require_finite(values, number - len(values) + 1, batches, cases, epoch)
            losses = []
    return float(total / len(cases.items))


def _require_finite(losses: list[float], first: int, batches: list[np.ndarray], cases: Cases, epoch: int) -> None:
    for number, loss in enumerate(losses, start=first):
        if not math.isfinite(loss):
            users = cases.user_ids.gather(batches[number][:3]).to_list()
            raise LTEError(
                f"the loss is {loss} in epoch {epoch}, batch {number + 1} of {len(batches)} "
                f"(users {', '.join(users)}, …); lower training.learning_rate, or look for broken vectors in "
                "item_embeddings and training_set"
            )


def _optimizer(ranker: Ranker, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that decays matrices, not biases, norms and single tokens."""
    matrices = [parameter for parameter in ranker.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in ranker.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def _new_ranker(config: RankerConfig, training_set: TrainingSet, seed: int) -> Ranker:
    torch.manual_seed(seed)
    catalogue = training_set.catalogue
    return Ranker(config, training_set.kind, catalogue.item_ids.to_list(), torch.from_numpy(catalogue.vectors))


def choose_device(choice: str) -> torch.device:
    """The device that `training.device` asks for, set up to repeat itself."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise LTEError("training.device is cuda, but torch finds no CUDA device; set it to auto or cpu")
    device = torch.device("cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        # Atomic additions end in other bits on every run, and would a resumed training in other weights.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def _fingerprint(
    settings: Settings, config: RankerConfig, training_set: TrainingSet, cases: Cases, validation: Cases
) -> str:
    """The hash of everything that decides the weights: rows and settings, not the table version, which also counts
    commits of other dates."""
    content = hashlib.sha256()
    described = {
        "config": dataclasses.asdict(config),
        "kind": dataclasses.asdict(training_set.kind),
        "training": settings.training.model_dump(exclude={"device", "threads"}),
        "cutoff": max(settings.evaluation.cutoffs),
        "item_ids": training_set.catalogue.item_ids.to_list(),
    }
    content.update(json.dumps(described, sort_keys=True).encode())
    content.update(training_set.catalogue.vectors)
    content.update(cases.digest())
    content.update(validation.digest())
    return content.hexdigest()


def _is_done(directory: Path, fingerprint: str) -> bool:
    file = directory / RESULT_FILE
    if not file.is_file():
        return False
    if json.loads(file.read_text(encoding="utf-8"))["fingerprint"] == fingerprint:
        return True
    file.unlink()  # from here on the directory holds a training that isn't done
    return False


def _read_checkpoint(file: Path, fingerprint: str) -> tuple[dict[str, Any] | None, str]:
    """The checkpoint, or None; and why there is none to go on from although the file is there."""
    if not file.is_file():
        return None, ""
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        return None, f"{file} can't be read ({type(error).__name__})"
    if checkpoint["fingerprint"] != fingerprint:
        return None, f"{file} belongs to other settings or other rows of the training set"
    return checkpoint, ""


def _write_checkpoint(
    file: Path, fingerprint: str, ranker: Ranker, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    beside = file.with_suffix(".part")
    with open(beside, "wb") as stream:
        torch.save(
            {
                "fingerprint": fingerprint,
                "model": ranker.state_dict(),
                "optimizer": optimizer.state_dict(),
                "progress": vars(progress),
            },
            stream,
        )
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, file)


def write_atomically(file: Path, content: bytes) -> None:
    """Writes `file` so that a reader, or a kill, sees the old content or the new."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(file.name + ".part")
    beside.write_bytes(content)
    os.replace(beside, file)


def _log_inputs(settings: Settings, training_set: TrainingSet, config: RankerConfig, device: torch.device) -> None:
    mlflow.set_tags(
        {
            "basis_id": training_set.kind.basis_id,
            "representation": training_set.kind.representation,
            "integration": config.integration,
            "lag_days": training_set.kind.lag_days,
            "window_days": training_set.kind.window_days,
            "device": str(device),
        }
    )
    mlflow.log_params(
        {
            **dataclasses.asdict(config),
            **settings.training.model_dump(exclude={"device", "threads"}),
            "training_date": training_set.training_date,
            "anchors": len(training_set.dates.anchors),
            "validation": training_set.dates.validation,
            "test": training_set.dates.test,
        }
    )
    for table, version in training_set.tables.versions.items():
        tracking.log_dataset(settings, table, version, "training")


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the ranker of a date, with the LTE as prefix or without it.")
    parser.add_argument("--date", type=parse_run_date, required=True, help="the day the training runs on")
    parser.add_argument("--integration", choices=INTEGRATIONS, required=True)
    parser.add_argument("--settings", default=None, help="settings file (default: $LTE_SETTINGS)")
    arguments = parser.parse_args()
    train(load_settings(arguments.settings), arguments.date, arguments.integration)


if __name__ == "__main__":
    run(main)

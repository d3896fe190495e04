"""Trains one side of a training date: `python -m lte_model.training --date D --integration prefix|none|…`.

1. The loss is the cross entropy of every target of the anchors' sequences: exact, over all items that somebody has
   chosen by then, or, where those are more than `training.exact_items`, against a sample of them.
2. After each epoch the model is measured on the validation cut, by NDCG at the largest cutoff, and a checkpoint is
   written: model, optimizer, best weights so far, curve. It replaces the last one in one step. What is measured, and
   kept, is a moving average of the weights (`training.averaging`): it wavers less than they do.
3. Training stops when `patience` epochs brought nothing better, and the best weights become the model directory. With
   `training.refit` they don't: a new model is trained for as many epochs, on the days of the validation too.

In `<checkpoints>/<D>/<side>/` appear `checkpoint.pt`, then `model/`, and last `training.json`: all is done.
A training that was killed goes on from its checkpoint and ends in the same weights, bit for bit: each epoch draws its
order and its dropout from the seed and its own number. Checkpoint and result belong to a fingerprint of the data and
the settings; with another fingerprint training starts anew, and says so.

Under torchrun several processes share each batch (distributed.py); the gradient is the mean over all its targets.
"""

import argparse
import contextlib
import copy
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
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lte_model import tracking
from lte_model.data import Cases, TrainingSet, epoch_batches, open_training_set
from lte_model.distributed import Group, training_group
from lte_model.errors import LTEError, run
from lte_model.integrations import INTEGRATIONS
from lte_model.losses import CatalogueLoss
from lte_model.metrics import ndcg, target_ranks
from lte_model.model import POPULARITY_COUNTS, Batch, Ranker, RankerConfig, save_ranker
from lte_model.settings import Settings, Training, load_settings
from lte_model.windows import parse_run_date

CHECKPOINT_FILE = "checkpoint.pt"
RESULT_FILE = "training.json"
MODEL_DIRECTORY = "model"

NOT_IN_THE_WEIGHTS = ("device", "threads", "compile")
"""Settings of a training that say where it runs."""

REPEAT_BIAS_RATE = {"earlier_events": 1, "earlier_days": 10}
"""The learning rate of the repeat bias, in that of the other weights, by `training.predict_from`: its few numbers are
logits, some units in size, and at the rate of a matrix's entries the epochs end before they get there. Learned by event
they would get to what holds within a basket, where nothing comes twice, and not at a date."""

LOSS_CHECKED_EVERY = 50
"""Batches between two looks at the losses: each look waits for the GPU."""


def side_directory(settings: Settings, training_date: datetime.date, side: str) -> Path:
    """Where the checkpoint and the model of one side lie."""
    return Path(settings.checkpoints) / str(training_date) / side


def read_result(settings: Settings, training_date: datetime.date, side: str, again: str = "") -> dict[str, Any]:
    """What a finished training left: fingerprint, best_epoch, seconds, curve, versions.

    Raises `LTEError` where the training of that side isn't finished; it says to run `again`, the training by default.
    """
    file = side_directory(settings, training_date, side) / RESULT_FILE
    if not file.is_file():
        raise LTEError(
            f"the training of {training_date}, side {side}, is not finished ({file} is missing); "
            f"run {again or f'lte_model.training --date {training_date} --integration {side}'}"
        )
    return json.loads(file.read_text(encoding="utf-8"))


def train(
    settings: Settings,
    training_date: datetime.date,
    integration: str,
    side: str = "",
    group: Group | None = None,
    training_set: TrainingSet | None = None,
) -> Path:
    """Trains, or goes on, or finds the training done; returns the model's directory.

    `side` is the name of the directory and of the MLflow run, the integration's own where it is empty;
    `training_set` that of the date, unless its LTEs are of another making. Raises `LTEError` for a training set that
    can't be used, and a loss that is not a number.
    """
    group, side = group or Group(), side or integration
    device = choose_device(settings.training.device)
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    directory = side_directory(settings, training_date, side)
    directory.mkdir(parents=True, exist_ok=True)

    training_set = training_set or open_to_train(settings, training_date)
    config = ranker_config(settings, training_set, integration)
    last_only = settings.training.loss_positions == "last"
    cases = training_set.cases("train").windows(config.max_events, last_only)
    validation = training_set.cases("validation")
    all_cases = cases
    if settings.training.refit:
        all_cases = training_set.cases("train", "refit").windows(config.max_events, last_only)
    fingerprint = _fingerprint(settings, config, training_set, all_cases, validation, group)
    if _is_done(directory, fingerprint):
        _say(group, f"the training of {training_date}, side {side}, is done already: {directory / MODEL_DIRECTORY}")
        return directory / MODEL_DIRECTORY

    checkpoint, reason = _read_checkpoint(directory / CHECKPOINT_FILE, fingerprint)
    if reason:
        _say(group, f"starting anew: {reason}")
    _say(
        group,
        f"{side}: {len(cases):,} sequences with {cases.target_counts.sum():,} targets, {len(validation):,} users "
        f"validate, {len(training_set.catalogue):,} items; {device}, {group.size} x {torch.get_num_threads()} threads",
    )
    recorded = tracking.training_run(settings, training_date, side, anew=bool(reason))
    with recorded if group.is_first else contextlib.nullcontext():
        if group.is_first:
            _log_inputs(settings, training_set, config, device)
        ranker = new_ranker(config, training_set, settings.training.seed).to(device)
        fit = Fit(settings, ranker, cases, validation, device, group)
        progress = fit.run(directory / CHECKPOINT_FILE, fingerprint, checkpoint)
        ranker.load_state_dict(progress.best_weights)
        if settings.training.refit:
            _say(group, f"once more for {progress.best_epoch} epochs, up to the test cut")
            ranker = new_ranker(config, training_set, settings.training.seed).to(device)
            again = Fit(settings, ranker, all_cases, validation, device, group)
            again.refit(progress.best_epoch)
            ranker.load_state_dict(again.averaged.state_dict())
        if group.is_first:
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
    _say(group, f"best epoch {progress.best_epoch}: {directory / MODEL_DIRECTORY}")
    return directory / MODEL_DIRECTORY


def open_to_train(settings: Settings, training_date: datetime.date) -> TrainingSet:
    """The training set of a date. Raises `LTEError` where it is of another basis than models are trained in now."""
    training_set = open_training_set(settings, training_date)
    wanted, found = settings.basis.basis_id, training_set.kind.basis_id
    if wanted and wanted != found:
        raise LTEError(
            f"the training_set of {training_date} is of basis {found}, and basis.basis_id is {wanted}; run "
            f"python -m jobs.build_training_set --date {training_date}, or set basis.basis_id to {found}"
        )
    return training_set


def ranker_config(settings: Settings, training_set: TrainingSet, integration: str) -> RankerConfig:
    items, dimensions = training_set.catalogue.vectors.shape
    return RankerConfig(
        items=items,
        dimensions=dimensions,
        representations=len(settings.model.representations),
        integration=integration,
        # What a model doesn't read is no part of what it is: a training is done again for its own sake alone.
        popularity_counts=len(POPULARITY_COUNTS) if settings.model.popularity_bias else RankerConfig.popularity_counts,
        **settings.model.model_dump(exclude={"representations", "integration"}),
    )


def new_ranker(config: RankerConfig, training_set: TrainingSet, seed: int) -> Ranker:
    """An untrained ranker, which `seed` decides. Once saved, its item bias is that of the newest date, the test cut."""
    torch.manual_seed(seed)
    catalogue = training_set.catalogue
    ranker = Ranker(config, training_set.kind, catalogue.item_ids.to_list(), torch.from_numpy(catalogue.vectors))
    if config.popularity_bias:
        ranker.popularity.copy_(torch.from_numpy(training_set.popularity([training_set.dates.test.start])))
    return ranker


def _say(group: Group, line: str) -> None:
    if group.is_first:
        print(line, flush=True)


@dataclass
class Progress:
    """What a training knows besides weights and optimizer state; all of it is in the checkpoint."""

    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)


class _Loss(nn.Module):
    """The ranker's loss as a module's forward pass: that is what DistributedDataParallel hooks on to."""

    def __init__(self, ranker: Ranker):
        super().__init__()
        self.ranker = ranker

    def forward(self, *arguments) -> torch.Tensor:
        return self.ranker.loss(*arguments)


class Fit:
    """The epochs of one training of `ranker`, which lies on `device`."""

    def __init__(
        self,
        settings: Settings,
        ranker: Ranker,
        cases: Cases,
        validation: Cases,
        device: torch.device,
        group: Group,
    ):
        self.options = settings.training
        self.cutoff = max(settings.evaluation.cutoffs)
        self.ranker, self.cases, self.validation, self.device, self.group = ranker, cases, validation, device, group
        self.optimizer = _optimizer(ranker, self.options)
        self.averaged, self.steps = copy.deepcopy(ranker), 0
        self.averaged.content = ranker.content  # frozen: one copy is enough
        self.popularity = cases.popularity_on(device)
        self.objective = CatalogueLoss.of(
            torch.from_numpy(cases.seen).to(device),
            torch.from_numpy(target_counts_of(cases, ranker.config.items)).to(device),
            self.options.exact_items,
            self.options.sampled_items,
            self.options.sampling_power,
            self.options.sampling_correction,
        )
        wanted = {"auto": device.type == "cuda", "float32": False, "bfloat16": True}
        self.in_bfloat16 = wanted[self.options.precision]
        if self.options.compile == "on" or (self.options.compile == "auto" and device.type == "cuda"):
            for block in ranker.blocks:
                block.compile(dynamic=True)
        self.loss: nn.Module = _Loss(ranker)
        if group.size > 1:
            self.loss = DistributedDataParallel(self.loss)

    def run(self, file: Path, fingerprint: str, checkpoint: dict[str, Any] | None) -> Progress:
        """Runs the epochs that are left and leaves a checkpoint after each."""
        options, progress = self.options, Progress()
        measure = f"validation_ndcg@{self.cutoff}"
        if checkpoint:
            self.ranker.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.averaged.load_state_dict(checkpoint["averaged"])
            self.steps = checkpoint["steps"]
            progress = Progress(**checkpoint["progress"])
            _say(self.group, f"going on after epoch {progress.epoch}")

        while progress.epoch < options.epochs and progress.epoch - progress.best_epoch < options.patience:
            progress.epoch += 1
            started = time.perf_counter()
            loss = self.train_epoch(progress.epoch)
            trained = time.perf_counter()
            quality = self.validate()
            if quality > progress.best:
                progress.best, progress.best_epoch = quality, progress.epoch
                progress.best_weights = {
                    name: weight.cpu().clone() for name, weight in self.averaged.state_dict().items()
                }
            seconds = time.perf_counter() - started
            targets_per_second = self.cases.target_counts.sum() / (trained - started)
            progress.curve.append(
                {
                    "epoch": progress.epoch,
                    "training_loss": loss,
                    measure: quality,
                    "seconds": round(seconds, 3),
                    "targets_per_second": round(float(targets_per_second), 1),
                }
            )
            if not self.group.is_first:
                continue
            self._write_checkpoint(file, fingerprint, progress)
            mlflow.log_metrics(
                {
                    "training_loss": loss,
                    measure.replace("@", "_at_"): quality,
                    "targets_per_second": targets_per_second,
                    "epoch_seconds": seconds,
                },
                step=progress.epoch,
            )
            _say(
                self.group,
                f"epoch {progress.epoch}: loss {loss:.4f}, validation NDCG@{self.cutoff} {quality:.4f} "
                f"(best {progress.best:.4f} in epoch {progress.best_epoch}), {seconds:.1f} s, "
                f"{targets_per_second:,.0f} targets/s",
            )
        return progress

    def refit(self, epochs: int) -> None:
        """Runs that many epochs, unmeasured. A kill loses them: the next try begins the refit anew."""
        for epoch in range(1, epochs + 1):
            started = time.perf_counter()
            loss = self.train_epoch(epoch)
            _say(
                self.group, f"refit, epoch {epoch} of {epochs}: loss {loss:.4f}, {time.perf_counter() - started:.1f} s"
            )

    def validate(self) -> float:
        """Mean NDCG at the largest cutoff, of the averaged weights."""
        mine = self.validation.taken(self.group.share(np.arange(len(self.validation))))
        ranks = self.group.join(target_ranks(self.averaged, mine, self.device) if len(mine) else np.empty(0))
        return float(ndcg(ranks, self.cutoff).mean())

    def train_epoch(self, epoch: int) -> float:
        """One pass over the cases; returns the mean loss per target."""
        options, group, cases = self.options, self.group, self.cases
        config = self.ranker.config
        torch.manual_seed(int(np.random.SeedSequence((options.seed, epoch, group.rank)).generate_state(1)[0]))
        self.ranker.train()
        lengths = np.minimum(cases.input_lengths, config.max_events)
        batches = epoch_batches(lengths, cases.target_counts, options.batch_size, options.seed, epoch)
        losses, total = [], 0.0
        bar = tqdm(batches, f"epoch {epoch}", leave=False, unit="batch", disable=None if group.is_first else True)
        for number, batch in enumerate(bar):
            mine = group.share(batch)
            # A process whose share is empty takes part in the exchange all the same, and adds nothing.
            arguments = self._batch(mine if len(mine) else batch[:1])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bfloat16):
                loss = self.loss(arguments, self.popularity, self.objective) * bool(len(mine))
            self.optimizer.zero_grad(set_to_none=True)
            # DistributedDataParallel takes the mean over processes; this makes it the mean over all targets.
            (loss * (group.size / cases.target_counts[batch].sum())).backward()
            self.optimizer.step()
            average(self.averaged, self.ranker, self.steps, self.options.averaging)
            self.steps += 1
            losses.append(loss.detach())
            if len(losses) == LOSS_CHECKED_EVERY or number == len(batches) - 1:
                values = group.sum(torch.stack(losses)).tolist()
                _require_finite(values, number - len(values) + 1, batches, cases, epoch)
                total += sum(values)
                losses = []
        return float(total / cases.target_counts.sum())

    def _batch(self, numbers: np.ndarray) -> Batch:
        config = self.ranker.config
        return self.cases.training_batch(numbers, config.max_events, config.max_older_events).to(self.device)

    def _write_checkpoint(self, file: Path, fingerprint: str, progress: Progress) -> None:
        beside = file.with_suffix(".part")
        with open(beside, "wb") as stream:
            torch.save(
                {
                    "fingerprint": fingerprint,
                    "model": self.ranker.state_dict(),
                    "averaged": self.averaged.state_dict(),
                    "steps": self.steps,
                    "optimizer": self.optimizer.state_dict(),
                    "progress": vars(progress),
                },
                stream,
            )
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, file)


def target_counts_of(cases: Cases, items: int) -> np.ndarray:
    """How many targets of the training cases each item (items,) is."""
    ends = cases.ends
    edges = np.zeros(len(cases.items) + 1, dtype=np.int64)
    np.add.at(edges, ends - cases.target_counts, 1)
    np.add.at(edges, ends, -1)
    times = edges.cumsum()[:-1]
    return np.bincount(cases.items, weights=times, minlength=items).astype(np.int64)


def _require_finite(losses: list[float], first: int, batches: list[np.ndarray], cases: Cases, epoch: int) -> None:
    for number, loss in enumerate(losses, start=first):
        if not math.isfinite(loss):
            users = cases.user_ids.gather(batches[number][:3]).to_list()
            raise LTEError(
                f"the loss is {loss} in epoch {epoch}, batch {number + 1} of {len(batches)} "
                f"(users {', '.join(users)}, …); lower training.learning_rate, or look for broken vectors in "
                "item_embeddings and lte_snapshots"
            )


def _optimizer(ranker: Ranker, options: Training) -> torch.optim.Optimizer:
    """AdamW that decays matrices, not biases, norms and single tokens."""
    parameters = dict(ranker.named_parameters())
    repeats = [parameters.pop("repeats")] if "repeats" in parameters else []
    groups = [
        {"params": [each for each in parameters.values() if each.dim() >= 2], "weight_decay": options.weight_decay},
        {"params": [each for each in parameters.values() if each.dim() < 2], "weight_decay": 0.0},
        {
            "params": repeats,
            "weight_decay": 0.0,
            "lr": REPEAT_BIAS_RATE[options.predict_from] * options.learning_rate,
        },
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def average(averaged: nn.Module, module: nn.Module, steps: int, decay: float) -> None:
    """Takes the weights of `module` into the moving average of those of the `steps` before.

    While these are few it forgets sooner, or the start would weigh for epochs.
    """
    kept = min(decay, (1 + steps) / (10 + steps)) if steps else 0.0
    for of_average, weight in zip(averaged.parameters(), module.parameters(), strict=True):
        of_average.lerp_(weight, 1 - kept)


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
    settings: Settings,
    config: RankerConfig,
    training_set: TrainingSet,
    cases: Cases,
    validation: Cases,
    group: Group,
) -> str:
    """The hash of everything that decides the weights: rows and settings, not the table version, which also counts
    commits of other dates."""
    content = hashlib.sha256()
    described = {
        "config": dataclasses.asdict(config),
        "kind": dataclasses.asdict(training_set.kind),
        "training": settings.training.model_dump(exclude=set(NOT_IN_THE_WEIGHTS)),
        "processes": group.size,
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
            **settings.training.model_dump(exclude=set(NOT_IN_THE_WEIGHTS)),
            "training_date": training_set.training_date,
            "anchors": len(training_set.dates.anchors),
            "validation": training_set.dates.validation,
            "test": training_set.dates.test,
        }
    )
    for table, version in training_set.tables.versions.items():
        tracking.log_dataset(settings, table, version, "training")


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the ranker of a date, with the LTE or without it.")
    parser.add_argument("--date", type=parse_run_date, required=True, help="the day the training runs on")
    parser.add_argument("--integration", choices=INTEGRATIONS, help="how the LTE enters (default: model.integration)")
    parser.add_argument("--side", default="", help="a name for this training (default: the integration)")
    parser.add_argument("--settings", default=None, help="settings file (default: $LTE_SETTINGS)")
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings)
    with training_group(settings.training.device) as group:
        train(settings, arguments.date, arguments.integration or settings.model.integration, arguments.side, group)


if __name__ == "__main__":
    run(main)

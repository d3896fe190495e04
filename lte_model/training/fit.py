"""The epochs of one training: batches, loss, optimizer, moving average, checkpoints."""

import copy
import io
import math
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

from lte_model.errors import LTEError
from lte_model.files import write_atomically
from lte_model.metrics import ndcg
from lte_model.ranker.cases import Cases, target_counts_of
from lte_model.ranker.losses import CatalogueLoss
from lte_model.ranker.model import Batch, Ranker
from lte_model.ranker.ranks import target_ranks
from lte_model.settings import Settings, Training
from lte_model.training.distributed import Group

POOLED_BATCHES = 32
"""The batches of a pool. Pools are drawn at random and sorted by length: little padding, and still random batches."""


def epoch_batches(
    lengths: np.ndarray, target_counts: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """The case numbers of each batch of an epoch: every case once, in an order that `seed` and `epoch` decide.

    A batch holds about as many targets as `batch_size` average cases, so that every step weighs its targets alike.
    Cases of similar length share a batch.
    """
    random = np.random.default_rng((seed, epoch))
    targets = max(1, round(batch_size * target_counts.mean()))
    order = random.permutation(len(lengths))
    batches = []
    for pool in np.array_split(order, max(1, round(len(order) / (batch_size * POOLED_BATCHES)))):
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batch_of_case = (target_counts[pool].cumsum() - 1) // targets
        batches += np.split(pool, np.flatnonzero(np.diff(batch_of_case)) + 1)
    return [batches[i] for i in random.permutation(len(batches))]


REPEAT_BIAS_RATE = {"earlier_events": 1, "earlier_days": 10}
"""The learning rate of the repeat bias, as a multiple of the other weights' rate, by `training.predict_from`. Its few
numbers are logits of some units; at the rate of a matrix's entries, training ends before they get there. With
`earlier_events`, they would get to what holds within a basket, where no item comes twice, and not at a date."""

LOSS_CHECKED_EVERY = 50
"""Batches between two checks of the losses: each check waits for the GPU."""


def say(group: Group, line: str) -> None:
    """Prints a line once, however many processes train."""
    if group.is_first:
        print(line, flush=True)


@dataclass
class Progress:
    """The state of a training besides weights and optimizer; all of it is in the checkpoint."""

    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)


class _Loss(nn.Module):
    """The ranker's loss as the forward pass of a module, as DistributedDataParallel needs it."""

    def __init__(self, ranker: Ranker):
        super().__init__()
        self.ranker = ranker

    def forward(self, *arguments) -> torch.Tensor:
        return self.ranker.loss(*arguments)


class Fit:
    """The epochs of one training of `ranker`, which is on `device`."""

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
        """Runs the remaining epochs and writes a checkpoint after each."""
        options, progress = self.options, Progress()
        measure = f"validation_ndcg@{self.cutoff}"
        if checkpoint:
            self.ranker.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.averaged.load_state_dict(checkpoint["averaged"])
            self.steps = checkpoint["steps"]
            progress = Progress(**checkpoint["progress"])
            say(self.group, f"going on after epoch {progress.epoch}")

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
            say(
                self.group,
                f"epoch {progress.epoch}: loss {loss:.4f}, validation NDCG@{self.cutoff} {quality:.4f} "
                f"(best {progress.best:.4f} in epoch {progress.best_epoch}), {seconds:.1f} s, "
                f"{targets_per_second:,.0f} targets/s",
            )
        return progress

    def refit(self, epochs: int) -> None:
        """Runs `epochs` epochs without validation or checkpoints. After a kill, the refit starts anew."""
        for epoch in range(1, epochs + 1):
            started = time.perf_counter()
            loss = self.train_epoch(epoch)
            say(self.group, f"refit, epoch {epoch} of {epochs}: loss {loss:.4f}, {time.perf_counter() - started:.1f} s")

    def validate(self) -> float:
        """The mean validation NDCG at the largest cutoff, with the averaged weights."""
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
            # A process with an empty share still takes part in the exchange, and adds nothing.
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
        content = io.BytesIO()
        torch.save(
            {
                "fingerprint": fingerprint,
                "model": self.ranker.state_dict(),
                "averaged": self.averaged.state_dict(),
                "steps": self.steps,
                "optimizer": self.optimizer.state_dict(),
                "progress": vars(progress),
            },
            content,
        )
        write_atomically(file, content.getvalue())


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
    """Updates `averaged`, the moving average of the weights after `steps` steps, with those of `module`.

    The decay is lower in the first steps; otherwise the initial weights would count for epochs.
    """
    kept = min(decay, (1 + steps) / (10 + steps)) if steps else 0.0
    for of_average, weight in zip(averaged.parameters(), module.parameters(), strict=True):
        of_average.lerp_(weight, 1 - kept)

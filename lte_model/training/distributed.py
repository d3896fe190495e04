"""Several processes that train one model, as `torchrun` starts them; one process alone is a group of one.

    torchrun --nproc-per-node 2 -m lte_model.training.train --date D --integration prefix

Each process takes a share of every batch, so that the batch, and with it the curve, stays that of one process.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed


@dataclass(frozen=True)
class Group:
    """The place of this process among the training processes: `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, numbers: np.ndarray) -> np.ndarray:
        """Every `size`-th of `numbers`, from `rank` on: together, the processes have each once."""
        return numbers[self.rank :: self.size]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all processes, in every process."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def join(self, mine: np.ndarray) -> np.ndarray:
        """Gathers the values of all cases, in case order, from each process's `share`."""
        if self.size == 1:
            return mine
        parts: list[np.ndarray] = [mine] * self.size
        distributed.all_gather_object(parts, mine)
        joined = np.empty(sum(map(len, parts)), dtype=mine.dtype)
        for rank, part in enumerate(parts):
            joined[rank :: self.size] = part
        return joined


@contextlib.contextmanager
def training_group(device: str) -> Iterator[Group]:
    """The group that torchrun's environment describes: NCCL with one GPU per process, or gloo on CPUs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Group(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()

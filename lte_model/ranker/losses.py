"""Cross entropy over a catalogue: exact and in chunks, or sampled.

`catalogue_cross_entropy` computes the gradient of a chunk of logits while they are still in the processor's cache, and
keeps the gradient, not the logits. That takes three matrix products, and no logit is computed or written to memory
twice. The memory is that of one chunk, whatever the number of targets.

`sampled_cross_entropy` is for catalogues whose logits cost too much: all targets share one sample of negatives.

`CatalogueLoss` chooses one of the two, and the items.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = {"cpu": 2**19, "cuda": 2**27}
"""Logits per chunk: 2 MiB on a CPU, to fit a core's cache; 512 MiB on a GPU, for large matrix products."""


@dataclass(frozen=True)
class ItemBiases:
    """A bias for a few items of each row's logits: `biases` (M, T) for `items` (M, T). Biases of one item add up."""

    items: torch.Tensor
    biases: torch.Tensor

    def added_to(self, logits: torch.Tensor) -> torch.Tensor:
        """Adds the biases to `logits` (M, items) in place, and returns them."""
        return _add_at(logits, self.items, self.biases)


@dataclass(frozen=True)
class CatalogueLoss:
    """The softmax's candidates: all items, or only `rows` (candidates,), ascending; exact, or over a sample of them.

    `place` (items,) is the inverse of `rows`. If `sampled` > 0, that many items are drawn with `probabilities`
    (candidates,). `corrected` turns the logQ correction on.
    """

    EXACT: ClassVar["CatalogueLoss"]

    rows: torch.Tensor | None = None
    place: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None
    sampled: int = 0
    corrected: bool = True

    @classmethod
    def of(
        cls,
        candidates: torch.Tensor,
        target_counts: torch.Tensor,
        exact_items: int,
        sampled_items: int,
        power: float,
        corrected: bool,
    ) -> "CatalogueLoss":
        """The loss over the items of the mask `candidates` (items,) bool; every target must be a candidate.

        An item that nobody has ever chosen should not be one: every step would push it down, and with it new items.
        With more than `exact_items` candidates, `sampled_items` are drawn in proportion to (targets + 1)^`power`, where
        `target_counts` (items,) says how often an item is a target.
        """
        rows = candidates.nonzero()[:, 0]
        place = torch.full_like(target_counts, -1, dtype=torch.int64)
        place[rows] = torch.arange(len(rows), device=rows.device)
        every = len(rows) == len(candidates)
        loss = cls(rows=None if every else rows, place=None if every else place)
        if len(rows) <= exact_items:
            return loss
        weights = (target_counts[rows].double() + 1) ** power
        return dataclasses.replace(
            loss, probabilities=weights / weights.sum(), sampled=sampled_items, corrected=corrected
        )

    def __call__(
        self, hidden: torch.Tensor, table: torch.Tensor, items: torch.Tensor, biases: ItemBiases | None = None
    ) -> torch.Tensor:
        """Summed cross entropy of `items` (M,), given the states `hidden` (M, width) and `table` (items, width)."""
        if self.rows is not None and self.place is not None:
            table, items = table[self.rows], self.place[items]
            # An item of a user's history is a candidate. A padding item may be none (−1), but its bias is 0.
            biases = biases and dataclasses.replace(biases, items=self.place[biases.items].clamp(min=0))
        if self.probabilities is None:
            return catalogue_cross_entropy(hidden, table, items, biases=biases)
        log_expected = (self.probabilities * self.sampled).log().float() if self.corrected else None
        negatives = sample_negatives(self.probabilities, self.sampled)
        return sampled_cross_entropy(hidden, table, items, negatives, log_expected, biases=biases)


CatalogueLoss.EXACT = CatalogueLoss()


def catalogue_cross_entropy(
    hidden: torch.Tensor,
    table: torch.Tensor,
    targets: torch.Tensor,
    chunk_logits: int | None = None,
    biases: ItemBiases | None = None,
) -> torch.Tensor:
    """Exact, summed cross entropy of `targets` (M,) under softmax(`hidden` · `table`ᵀ + `biases`).

    `hidden` is (M, width), `table` (items, width). Matrix products use autocast's type if it is on, all else float32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    rows = max(1, (chunk_logits or CHUNK_LOGITS.get(device, 2**25)) // len(table))
    of_items = (biases.items, biases.biases) if biases else (None, None)
    return _CatalogueCrossEntropy.apply(hidden, table, targets, *of_items, rows, dtype)


class _CatalogueCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, table, targets, biased, biases, rows, dtype):
        h, e = hidden.detach().to(dtype), table.detach().to(dtype)
        grad_hidden = torch.empty_like(h)
        grad_table = torch.zeros(e.shape, dtype=torch.float32, device=e.device)
        grad_biases = None if biases is None else torch.empty_like(biases)
        total = torch.zeros((), dtype=torch.float32, device=e.device)
        for chunk in torch.arange(len(h)).split(rows) if len(h) else ():
            part = slice(int(chunk[0]), int(chunk[-1]) + 1)
            target = targets[part, None]
            logits = (h[part] @ e.T).float()  # (rows, items)
            if biases is not None:
                _add_at(logits, biased[part], biases[part])
            of_target = logits.gather(1, target)
            greatest = logits.amax(dim=1, keepdim=True)
            exponentials = logits.sub_(greatest).exp_()
            sums = exponentials.sum(dim=1, keepdim=True)
            total += (sums.log() + greatest - of_target).sum()
            # The gradient with respect to the logits: probabilities, minus 1 at the target.
            gradient = exponentials.div_(sums).scatter_add_(1, target, torch.full_like(sums, -1.0))
            if grad_biases is not None:
                torch.gather(gradient, 1, biased[part], out=grad_biases[part])
            gradient = gradient.to(dtype)
            torch.mm(gradient, e, out=grad_hidden[part])
            if dtype == torch.float32:
                grad_table.addmm_(gradient.T, h[part])
            else:
                grad_table += (gradient.T @ h[part]).float()
        ctx.save_for_backward(grad_hidden, grad_table, grad_biases)
        ctx.types = hidden.dtype, table.dtype
        return total

    @staticmethod
    def backward(ctx, grad_total):
        grad_hidden, grad_table, grad_biases = ctx.saved_tensors
        of_hidden, of_table = ctx.types
        of_biases = None if grad_biases is None else grad_biases * grad_total
        grads = (grad_hidden * grad_total).to(of_hidden), (grad_table * grad_total).to(of_table)
        return *grads, None, None, of_biases, None, None


def sampled_cross_entropy(
    hidden: torch.Tensor,
    table: torch.Tensor,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    log_expected: torch.Tensor | None = None,
    chunk_logits: int | None = None,
    biases: ItemBiases | None = None,
) -> torch.Tensor:
    """Summed cross entropy of `targets` (M,), each against the sampled rows `negatives` (S,) of `table`.

    A negative that equals a row's target is masked in that row. The logQ correction (Bengio and Senécal, 2008)
    subtracts `log_expected` (items,), the logarithm of an item's expected count in the sample, from the negatives'
    logits. On average, the sum of their exponentials is then that of the whole catalogue without the target. The
    target's logit stays as it is, because the target is not drawn.
    """
    rows = max(1, (chunk_logits or CHUNK_LOGITS["cuda"] // 4) // len(negatives))
    of_rows = [hidden, targets, *((biases.items, biases.biases) if biases else ())]
    sums = [
        checkpoint(_sampled, table, negatives, log_expected, *chunk, use_reentrant=False)
        for chunk in zip(*(of_row.split(rows) for of_row in of_rows), strict=True)
    ]
    return torch.stack(sums).sum()


def _sampled(table, negatives, log_expected, hidden, targets, biased=None, biases=None):
    of_target = (hidden * table[targets]).sum(dim=1).float()  # (rows,)
    of_negatives = (hidden @ table[negatives].T).float()  # (rows, S)
    if log_expected is not None:
        of_negatives = of_negatives - log_expected[negatives]
    if biases is not None:
        of_target = of_target + torch.where(biased == targets[:, None], biases, 0.0).sum(dim=1)
        distinct, number = negatives.unique(return_inverse=True)
        place = torch.searchsorted(distinct, biased).clamp(max=len(distinct) - 1)
        drawn = torch.where(distinct[place] == biased, biases, 0.0)
        of_negatives = of_negatives + _add_at(drawn.new_zeros(len(hidden), len(distinct)), place, drawn)[:, number]
    of_negatives = of_negatives.masked_fill(negatives == targets[:, None], -torch.inf)
    return functional.softplus(of_negatives.logsumexp(dim=1) - of_target).sum()


def _add_at(matrix: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Adds `values` (M, T) to `matrix` (M, N) at `columns` (M, T) in place, and returns the matrix.

    It scatters over one dimension, because on a GPU only that is deterministic.
    """
    rows = torch.arange(len(matrix), device=matrix.device)[:, None]
    matrix.view(-1).scatter_add_(0, (rows * matrix.shape[1] + columns).view(-1), values.to(matrix.dtype).reshape(-1))
    return matrix


def sample_negatives(probabilities: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows of the catalogue, drawn with replacement with `probabilities` (items,)."""
    edges = probabilities.double().cumsum(0)
    drawn = torch.rand(count, dtype=torch.float64, device=edges.device) * edges[-1]
    return torch.searchsorted(edges, drawn, right=True).clamp(max=len(edges) - 1)

"""How much a ranker relies on the newest event: measures with one value for each user.

1. The *last-interaction attention ratio*. arXiv 2604.08181 reports one without a formula; this definition is ours. The
   query is the last event's token, whose state scores the next item. In every block and head, its attention is
   renormalised over the user's n events, without the context tokens: another token alone would lower every softmax
   share. The ratio is the newest event's weight times n, averaged over heads and blocks; 1 means evenly spread
   attention. It is undefined for fewer than two events.
2. Two controls give the same ranker the mean LTE for every user (`with_constant_lte`), or another user's LTE
   (`with_shuffled_lte`). If the ratio stays the same, it depends on the LTE's presence, not on its content.
3. HRLI@k (arXiv 2409.09722): the share of users whose last *input* item is in the model's top k; seen items are not
   filtered. It is Recall@k of `last_item_ranks`, and undefined for a user without an event.
"""

import dataclasses

import numpy as np
import torch

from lte_model.ranker.cases import Cases
from lte_model.ranker.model import Batch, CausalAttention, Ranker
from lte_model.ranker.ranks import target_ranks

BATCH = 512


def attention_ratios(ranker: Ranker, cases: Cases, device: torch.device) -> np.ndarray:
    """The last-interaction attention ratio (N,) of each case; NaN for fewer than two events."""
    ratios = np.full(len(cases), np.nan)
    config = ranker.config
    with torch.inference_mode():
        table = ranker.item_table()
        read = np.minimum(cases.lengths, config.max_events)
        several = np.flatnonzero(read >= 2)
        for numbers in np.split(several, range(BATCH, len(several), BATCH)):
            batch = cases.batch(numbers, config.max_events, config.max_older_events).to(device)
            ratios[numbers] = _ratios(last_attention(ranker, batch, table), batch, config.context_tokens).cpu().numpy()
    return ratios


def last_attention(ranker: Ranker, batch: Batch, table: torch.Tensor) -> torch.Tensor:
    """The attention weights of each user's last event (B, blocks, heads, C + T), in one forward pass over `batch`."""
    queries = ranker.config.context_tokens - 1 + batch.lengths
    found: list[torch.Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda attention, inputs: found.append(attention.weights(inputs[0], queries)))
        for module in ranker.blocks.modules()
        if isinstance(module, CausalAttention)
    ]
    try:
        ranker(batch, table)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found, dim=1)


def _ratios(attention: torch.Tensor, batch: Batch, context_tokens: int) -> torch.Tensor:
    """The ratios (B,) from `attention` (B, blocks, heads, C + T), which is 0 at padding: padding follows the query."""
    of_events = attention[..., context_tokens:].double()  # (B, blocks, heads, T)
    users = torch.arange(len(batch), device=of_events.device)
    newest = of_events[users, :, :, batch.lengths - 1]  # (B, blocks, heads)
    return (newest / of_events.sum(dim=3)).mean(dim=(1, 2)) * batch.lengths


def last_item_ranks(ranker: Ranker, cases: Cases, device: torch.device) -> np.ndarray:
    """The rank (N,) of each case's newest event in the full catalogue; NaN for a case without an event."""
    ranks = np.full(len(cases), np.nan)
    some = np.flatnonzero(cases.lengths > 0)
    if len(some):
        ending = cases.taken(some)
        last = cases.items[ending.ends - 1].astype(np.int64)
        ranks[some] = target_ranks(ranker, dataclasses.replace(ending, targets=last), device)
    return ranks


def with_constant_lte(cases: Cases) -> Cases:
    """The cases, each with the mean of all LTEs."""
    has_lte = cases.has_lte[..., None]  # (N, R, 1)
    mean = (cases.lte * has_lte).sum(axis=0) / np.maximum(has_lte.sum(axis=0), 1)  # (R, dimensions)
    return dataclasses.replace(
        cases,
        lte=np.broadcast_to(mean.astype(np.float32), cases.lte.shape).copy(),
        has_lte=np.ones_like(cases.has_lte),
    )


def with_shuffled_lte(cases: Cases, seed: int) -> Cases:
    """The cases with their LTEs permuted at random by `seed`."""
    order = np.random.default_rng(seed).permutation(len(cases))
    return dataclasses.replace(cases, lte=cases.lte[order], has_lte=cases.has_lte[order])

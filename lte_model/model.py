"""The ranker: a causal transformer over a user's items, which reads the user's LTE as its first token.

One forward pass, for B users whose newest T events are given oldest first:

1. The *item table* E has a row for every item of the catalogue: a learned projection of the item's frozen content
   vector, plus a learned vector of the item's own where `id_embedding` is on.
2. The tokens are [context, e1, …, eT]. The context is a learned start token; the integration `prefix` adds to it the
   projected LTE, or a learned "no LTE" vector for a user who has none. `none` and `prefix` therefore read the same
   number of tokens at the same cost, and a difference between them is the LTE's.
3. Pre-norm blocks with causal attention: the hidden state at token t has seen the context and e1 … et alone.
4. The logits of event t+1 are that hidden state times Eᵀ: input and output share one table.

Sequences are padded on the right, so that padding lies in the future of every real token and needs no mask.
After SASRec (Kang and McAuley, arXiv 1808.09781) and the contextual prefix token of arXiv 2604.08181.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lte_model.errors import LTEError

Integration = Literal["prefix", "none"]
INTEGRATIONS: tuple[Integration, ...] = ("prefix", "none")

CONTEXT_TOKENS = 1
"""Tokens before the first event."""

MOST_LOGITS = 2**25
"""Logits that are held at once while the loss is taken: 128 MiB as float32. More positions go chunk by chunk."""

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"


@dataclass(frozen=True)
class LTEKind:
    """What makes one LTE readable by a model that was trained on another date's: the same basis, the same
    representation, the same lag and window."""

    basis_id: str
    representation: str
    lag_days: int
    window_days: int


@dataclass(frozen=True)
class RankerConfig:
    """The sizes of a ranker. `items` and `dimensions` are the catalogue's; `max_tokens` counts the context too."""

    items: int
    dimensions: int
    max_tokens: int = 50
    width: int = 64
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.2
    id_embedding: bool = True
    integration: Integration = "prefix"

    def __post_init__(self):
        if self.width % self.heads:
            raise LTEError(
                f"model.width {self.width} is not divisible by model.heads {self.heads}; choose a width that is"
            )
        if self.max_tokens <= CONTEXT_TOKENS:
            raise LTEError(f"training_set.max_length {self.max_tokens} leaves no room for an event; make it 2 or more")
        if self.integration not in INTEGRATIONS:
            raise LTEError(f"there is no integration {self.integration!r}; choose one of {', '.join(INTEGRATIONS)}")

    @property
    def max_events(self) -> int:
        """The most events that are read as input."""
        return self.max_tokens - CONTEXT_TOKENS


class Ranker(nn.Module):
    """Scores every item of its catalogue as a user's next one.

    `content` is the frozen (items, dimensions) matrix of unit vectors of the basis; `item_ids` names its rows, and
    the integers in every `items` tensor are row numbers. `kind` says which LTEs it may read.
    """

    def __init__(self, config: RankerConfig, kind: LTEKind, item_ids: Sequence[str], content: torch.Tensor):
        super().__init__()
        if content.shape != (config.items, config.dimensions) or len(item_ids) != config.items:
            raise ValueError(
                f"config has {config.items} items of {config.dimensions} dimensions; "
                f"content is {tuple(content.shape)} with {len(item_ids)} ids"
            )
        self.config = config
        self.kind = kind
        self.item_ids = tuple(item_ids)
        self.register_buffer("content", content.to(torch.float32))
        self.item_projection = nn.Linear(config.dimensions, config.width)
        self.id_embedding = nn.Parameter(torch.zeros(config.items, config.width)) if config.id_embedding else None
        self.context = Context(config)
        self.positions = nn.Parameter(torch.empty(config.max_tokens, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self._initialise()

    def _initialise(self) -> None:
        # Content vectors have norm 1, so that these weights give item rows of norm about 1/2. The state of a token
        # resembles the token itself at first, so that rows of norm 1 would score the last item √width above all others.
        # The items' own vectors start at zero: an item that training never saw keeps to its content.
        nn.init.normal_(self.item_projection.weight, std=0.5 * self.config.width**-0.5)
        nn.init.zeros_(self.item_projection.bias)
        nn.init.normal_(self.positions, std=0.1)

    def item_table(self) -> torch.Tensor:
        """E, (items, width): what an item is to the model, as input and as output."""
        table = self.item_projection(self.content)  # (items, width)
        return table if self.id_embedding is None else table + self.id_embedding

    def forward(
        self, items: torch.Tensor, lte: torch.Tensor, has_lte: torch.Tensor, table: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states (B, 1 + T, width); the one at t is of what came before event t, counting from 0.

        `items` (B, T) int64, right-padded with any row number; `lte` (B, dimensions) float32, anything where
        `has_lte` (B,) bool is false; `table` is `item_table()`.
        """
        events = functional.embedding(items, table) * math.sqrt(self.config.width)  # (B, T, width)
        x = torch.cat((self.context(lte, has_lte).to(events.dtype), events), dim=1)  # (B, 1 + T, width)
        x = self.dropout(x + self.positions[: x.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def loss(
        self, items: torch.Tensor, lengths: torch.Tensor, lte: torch.Tensor, has_lte: torch.Tensor
    ) -> torch.Tensor:
        """Mean cross entropy of the events of `items` (B, T) under the whole catalogue, without the padding.

        The last event is a target only, so that an event is never an input of its own prediction.
        """
        table = self.item_table()
        hidden = self(items[:, :-1], lte, has_lte, table)  # (B, T, width)
        valid = torch.arange(items.shape[1], device=items.device) < lengths[:, None]  # (B, T)
        return catalogue_cross_entropy(hidden[valid], table, items[valid])

    @torch.inference_mode()
    def scores(
        self, items: torch.Tensor, lengths: torch.Tensor, lte: torch.Tensor, has_lte: torch.Tensor
    ) -> torch.Tensor:
        """Logits (B, items) of the event that follows each sequence, which may be empty (`lengths` 0)."""
        table = self.item_table()
        hidden = self(items, lte, has_lte, table)  # (B, 1 + T, width)
        last = hidden[torch.arange(len(items), device=items.device), lengths]  # (B, width)
        return last @ table.T

    def require(self, kind: LTEKind, source: str) -> None:
        """Raises `LTEError` unless LTEs and items of `kind`, which come from `source`, are readable by this model."""
        for field in dataclasses.fields(LTEKind):
            ours, theirs = getattr(self.kind, field.name), getattr(kind, field.name)
            if ours != theirs:
                raise LTEError(
                    f"the model was trained on {field.name} {ours}, but {source} has {field.name} {theirs}; "
                    f"give it {source} of {field.name} {ours}, or train a model on {theirs}"
                )

    def require_catalogue(self, item_ids: Sequence[str], source: str) -> None:
        """Raises `LTEError` unless `item_ids`, in their order, are the rows that this model scores."""
        if tuple(item_ids) != self.item_ids:
            raise LTEError(
                f"the model ranks {len(self.item_ids)} items, which are not the {len(item_ids)} of {source}: "
                "items changed after the training; run lte_model.training again for that date"
            )


class Context(nn.Module):
    """The tokens before the first event, (B, CONTEXT_TOKENS, width). Another integration by tokens is added here."""

    def __init__(self, config: RankerConfig):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(config.width))
        self.reads_lte = config.integration == "prefix"
        if self.reads_lte:
            # The mean of many unit vectors is short, the shorter the more varied the history; the gain brings
            # the projection to the size of the other tokens and leaves the length readable.
            self.gain = math.sqrt(config.dimensions)
            self.projection = nn.Linear(config.dimensions, config.width)
            self.no_lte = nn.Parameter(torch.zeros(config.width))

    def forward(self, lte: torch.Tensor, has_lte: torch.Tensor) -> torch.Tensor:
        start = self.start.expand(len(lte), CONTEXT_TOKENS, -1)  # (B, 1, width)
        if not self.reads_lte:
            return start
        projected = self.projection(lte * self.gain)  # (B, width)
        return start + torch.where(has_lte[:, None], projected, self.no_lte)[:, None]


class Block(nn.Module):
    """Attention, then a feed-forward layer, each on the normalised state and added to it."""

    def __init__(self, config: RankerConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = CausalAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and what came before it."""

    def __init__(self, config: RankerConfig):
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.output_dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)  # (B, heads, T, C / heads)
            for part in self.query_key_value(x).split(C, dim=2)
        )
        y = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.output_dropout(self.output(y))


def catalogue_cross_entropy(
    hidden: torch.Tensor, table: torch.Tensor, targets: torch.Tensor, most_logits: int = MOST_LOGITS
) -> torch.Tensor:
    """Mean cross entropy of `targets` (M,) under softmax(`hidden` (M, width) · `table`ᵀ (width, items)), exactly.

    No more than `most_logits` logits exist at once, in the backward pass too, which computes a chunk's anew.
    """
    rows = max(1, most_logits // len(table))
    if len(hidden) <= rows:
        return functional.cross_entropy(hidden @ table.T, targets)
    sums = [
        checkpoint(_summed_cross_entropy, *chunk, use_reentrant=False)
        for chunk in zip(hidden.split(rows), [table] * math.ceil(len(hidden) / rows), targets.split(rows), strict=True)
    ]
    return torch.stack(sums).sum() / len(hidden)


def _summed_cross_entropy(hidden: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(hidden @ table.T, targets, reduction="sum")


def save_ranker(ranker: Ranker, directory: str | os.PathLike) -> None:
    """Writes the ranker to `directory`: weights and content vectors as safetensors, the rest as JSON.

    The directory appears whole or not at all; one that is there is replaced.
    """
    directory = Path(directory)
    beside = directory.with_name(directory.name + ".part")
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
            "run lte_model.training for its date and side"
        ) from None
    kind = LTEKind(**{field.name: description[field.name] for field in dataclasses.fields(LTEKind)})
    ranker = Ranker(RankerConfig(**description["config"]), kind, description["item_ids"], weights["content"])
    ranker.load_state_dict(weights)
    return ranker.to(device).eval()

"""The ranker: a causal transformer over a user's items, which may read the user's long-term embedding (LTE).

Longer than 350 lines, because the transformer is read whole in one file.

One forward pass, for B users whose newest T events are given oldest first:

1. The *item table* E has a row for every item of the catalogue: a learned projection of the item's frozen content
   vector, plus a learned vector of the item's own where `id_embedding` is on.
2. The tokens are [context, e1, …, eT]: a context token for each representation, then the events. The integration
   decides where the LTE enters (integrations.py); every integration reads the same number of tokens.
3. With `long_memory`, the tokens also read a memory that sums up the events older than the sequence (long_memory.py).
4. Pre-norm blocks with causal attention: the hidden state at token t has only seen the context and e1 … et.
5. The logits of event t+1 are that hidden state times Eᵀ: input and output share one table. `popularity_bias` adds a
   bias per item: its sales before the case's date, times learned scales. `repeat_bias` adds a learned bias to the items
   of the user's own history, so that the model learns whether items are bought again.

Sequences are padded on the right, so that padding lies in the future of every real token and needs no mask.
Based on SASRec (Kang and McAuley, arXiv 1808.09781) and the contextual prefix token of arXiv 2604.08181.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lte_model.domain.kind import LTEKind, require_kind
from lte_model.errors import LTEError
from lte_model.ranker.integrations import INTEGRATIONS
from lte_model.ranker.long_memory import LinearAttentionMemory
from lte_model.ranker.losses import CatalogueLoss, ItemBiases

LONG_MEMORIES = ("none", "linear_attention")
"""What may read the events before the sequence."""

GAP_BUCKETS = 24
"""Time features: bucket b begins at a gap of 2^b − 1 minutes, the last one at sixteen years."""

REPEAT_BUCKETS = 8
"""Repeat bias: bucket b begins 2^b events ago, where the newest event is 1 event ago."""


@dataclass(frozen=True)
class RankerConfig:
    """Everything that defines a ranker, except its weights.

    `items` and `dimensions` are the catalogue's; `representations` says how many LTEs the ranker reads, and
    `popularity_counts` how many of `POPULARITY_COUNTS` its item bias reads. Section `model` of the settings describes
    the other fields, and has their defaults; saved.py has the values of earlier releases.
    """

    items: int
    dimensions: int
    representations: int
    max_tokens: int
    width: int
    blocks: int
    heads: int
    feed_forward: int
    dropout: float
    id_embedding: bool
    id_dropout: float
    integration: str
    sequence: str
    popularity_bias: bool
    time_features: bool
    repeat_bias: bool
    long_memory: str
    memory_events: int
    popularity_counts: int

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise LTEError(
                f"model.width {self.width} is not divisible by model.heads {self.heads}; choose a width that is"
            )
        if self.max_tokens <= self.context_tokens:
            raise LTEError(
                f"model.max_tokens {self.max_tokens} leaves no room for an event after {self.context_tokens} context "
                f"tokens; make it {self.context_tokens + 1} or more"
            )
        for name, choices in (("integration", INTEGRATIONS), ("long_memory", LONG_MEMORIES)):
            if getattr(self, name) not in choices:
                raise LTEError(f"there is no {name} {getattr(self, name)!r}; choose one of {', '.join(choices)}")

    @property
    def context_tokens(self) -> int:
        """The number of tokens before the first event."""
        return self.representations

    @property
    def max_events(self) -> int:
        """The most events that are read as tokens."""
        return self.max_tokens - self.context_tokens

    @property
    def max_older_events(self) -> int:
        """The most older events that the memory reads."""
        return self.memory_events if self.long_memory != "none" else 0


@dataclass(frozen=True)
class Batch:
    """What a ranker reads of B users, as tensors.

    `items` (B, T) int64: events, oldest first, padded on the right with any row number; the first `lengths` (B,) int64
    are real. `lte` (B, R, dimensions) float32 is ignored where `has_lte` (B, R) bool is false. `gaps` (B, T) int64: for
    time features, the bucket of the time from each event to the next one, or to the query. `older` (B, S) int64 with
    `older_lengths` (B,): the events before `items`, for the memory. `dates` (B,) int64: the row of the popularity of
    each user's snapshot date. For training, `targets` (M,) int64 are the items to predict: target m comes after the
    first `target_places[m]` events of user `target_users[m]`.
    """

    items: torch.Tensor
    lengths: torch.Tensor
    lte: torch.Tensor
    has_lte: torch.Tensor
    gaps: torch.Tensor | None = None
    older: torch.Tensor | None = None
    older_lengths: torch.Tensor | None = None
    dates: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    target_users: torch.Tensor | None = None
    target_places: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.items)

    def to(self, device: str | torch.device) -> "Batch":
        """The batch on `device`."""
        moved = {
            name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items() if tensor is not None
        }
        return dataclasses.replace(self, **moved)


def _given(tensor: torch.Tensor | None, name: str) -> torch.Tensor:
    if tensor is None:
        raise ValueError(f"the batch has no {name}, which the model reads")
    return tensor


class Ranker(nn.Module):
    """Scores every item of its catalogue as a user's next one.

    `content` is the frozen (items, dimensions) matrix of unit vectors of the basis; `item_ids` names its rows, and
    the integers in every `items` tensor are row numbers. `kind` says which LTEs it may read.
    """

    content: torch.Tensor
    popularity: torch.Tensor

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
        self.integration = INTEGRATIONS[config.integration](config.representations, config.dimensions, config.width)
        self.positions = nn.Parameter(torch.empty(config.max_tokens, config.width))
        self.gaps = nn.Parameter(torch.zeros(GAP_BUCKETS, config.width)) if config.time_features else None
        self.memory = LinearAttentionMemory(config.width, config.heads) if config.max_older_events else None
        if config.popularity_bias:
            # The popularity of the newest date, which a served model uses.
            self.register_buffer("popularity", torch.zeros(1, config.popularity_counts, config.items))
            self.popularity_scale = nn.Parameter(torch.zeros(config.popularity_counts))
        self.repeats = nn.Parameter(torch.zeros(REPEAT_BUCKETS)) if config.repeat_bias else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self._initialise()

    def _initialise(self) -> None:
        # Content vectors have norm 1, so these weights give item rows of norm about 1/2. At first the state of a token
        # resembles the token itself: rows of norm 1 would score the last item √width above all others.
        # The items' own vectors start at zero, so that an item that training never saw is only its content.
        nn.init.normal_(self.item_projection.weight, std=0.5 * self.config.width**-0.5)
        nn.init.zeros_(self.item_projection.bias)
        nn.init.normal_(self.positions, std=0.1)

    def item_table(self) -> torch.Tensor:
        """The item table E (items, width): both the input embedding and the output layer.

        In training each item loses its own vector with probability `id_dropout`, so that content alone learns to
        represent an item, as it must for a new one.
        """
        table = self.item_projection(self.content)  # (items, width)
        if self.id_embedding is None:
            return table
        if not self.training or not self.config.id_dropout:
            return table + self.id_embedding
        kept = torch.rand(len(table), 1, device=table.device) >= self.config.id_dropout
        return table + self.id_embedding * kept

    def forward(self, batch: Batch, table: torch.Tensor, queries: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states (B, C + T, width); the one at C − 1 + t has seen the events before event t, counted from 0.

        C is the number of context tokens; `table` is `item_table()`. With `queries` (B,), one token for each user, only
        the states of these are returned, (B, 1, width): the last block computes no others.
        """
        scale = math.sqrt(self.config.width)
        events = functional.embedding(batch.items, table) * scale  # (B, T, width)
        if self.gaps is not None:
            events = events + functional.embedding(_given(batch.gaps, "gaps"), self.gaps)
        events = self.integration.into_events(events, batch.lte, batch.has_lte)
        context = self.integration.tokens(batch.lte, batch.has_lte)  # (B, C, width)
        x = torch.cat((context.to(events.dtype), events), dim=1)  # (B, C + T, width)
        x = x + self.positions[: x.shape[1]]
        if self.memory is not None and batch.older is not None:
            x = x + self.memory(x, functional.embedding(batch.older, table) * scale, batch.older_lengths)
        x = self.dropout(x)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, queries)
        return self.integration.into_states(self.norm(x), batch.lte, batch.has_lte)

    def loss(
        self, batch: Batch, popularity: torch.Tensor | None = None, objective: CatalogueLoss = CatalogueLoss.EXACT
    ) -> torch.Tensor:
        """Summed cross entropy of `batch.targets` under `objective`; by default exact, over the whole catalogue.

        `batch.dates` are rows of `popularity` (dates, counts, items).
        """
        users, places = _given(batch.target_users, "target_users"), _given(batch.target_places, "target_places")
        table = self.item_table()
        hidden = self(batch, table)[:, self.config.context_tokens - 1 :]  # (B, 1 + T, width)
        hidden, table = self._with_bias(hidden[users, places], table, batch, popularity, users)  # (M, width)
        return objective(
            hidden, table, _given(batch.targets, "targets"), self._repeat_biases(batch.items[users], places)
        )

    @torch.inference_mode()
    def scores(
        self, batch: Batch, popularity: torch.Tensor | None = None, table: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, items) of the event that follows each sequence, which may be empty (`lengths` 0).

        Without `popularity` (dates, counts, items), the item bias is that of the newest date of the training.
        `table` is `item_table()`; giving it saves computing it for every batch.
        """
        table = self.item_table() if table is None else table
        users = torch.arange(len(batch), device=batch.items.device)
        hidden = self(batch, table, self.config.context_tokens - 1 + batch.lengths)[:, 0]  # (B, width)
        hidden, table = self._with_bias(hidden, table, batch, popularity, users)
        logits = hidden @ table.T
        biases = self._repeat_biases(batch.items, batch.lengths)
        return logits if biases is None else biases.added_to(logits)

    def _with_bias(
        self,
        hidden: torch.Tensor,
        table: torch.Tensor,
        batch: Batch,
        popularity: torch.Tensor | None,
        users: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends a column per date to hidden states and table, so that their product is logit + bias of the date.

        A bias matrix (M, items) would be as large as the logits themselves.
        """
        if not self.config.popularity_bias:
            return hidden, table
        dates = batch.dates
        if popularity is None or dates is None:
            popularity, dates = self.popularity, torch.zeros(len(batch), dtype=torch.int64, device=hidden.device)
        known = popularity[:, : self.config.popularity_counts]
        bias = torch.einsum("k,dki->id", self.popularity_scale, known)  # (items, dates)
        of_date = functional.one_hot(dates[users], bias.shape[1]).to(hidden.dtype)  # (M, dates)
        return torch.cat((hidden, of_date), dim=1), torch.cat((table, bias.to(table.dtype)), dim=1)

    def _repeat_biases(self, items: torch.Tensor, before: torch.Tensor) -> ItemBiases | None:
        """The repeat biases of M rows; each comes after the first `before` (M,) of its events `items` (M, T)."""
        if self.repeats is None:
            return None
        ago = before[:, None] - torch.arange(items.shape[1], device=items.device)  # 1 is the newest
        bucket = torch.bucketize(ago, 2 ** torch.arange(1, REPEAT_BUCKETS, device=ago.device), right=True)
        return ItemBiases(items, torch.where(ago > 0, self.repeats[bucket], 0.0))

    def with_items(self, item_ids: Sequence[str], content: torch.Tensor) -> "Ranker":
        """This ranker with new items at the end, whose vectors in its basis are `content` (new, dimensions).

        A new item has only its content, and no sales. Raises `LTEError` for an item that is there already and for
        vectors of another number of dimensions.
        """
        known = set(self.item_ids) & set(item_ids)
        if known:
            raise LTEError(f"the model ranks {min(known)!r} already; give with_items only items that are new")
        if content.dim() != 2 or content.shape[1] != self.config.dimensions:
            raise LTEError(
                f"the new items' vectors are {tuple(content.shape)}, those of the model's basis {self.kind.basis_id} "
                f"have {self.config.dimensions} dimensions; embed the items in that basis"
            )
        return self.over((*self.item_ids, *item_ids), torch.cat((self.content, content.to(self.content))))

    def over(self, item_ids: Sequence[str], content: torch.Tensor) -> "Ranker":
        """This ranker over the catalogue `item_ids`, whose vectors in its basis are `content` (items, dimensions).

        A known item keeps what was learned of it; an unknown one has only its content.
        """
        row = {item_id: number for number, item_id in enumerate(self.item_ids)}
        rows = torch.tensor(
            [row.get(item_id, -1) for item_id in item_ids], dtype=torch.int64, device=self.content.device
        )
        met, rows = rows >= 0, rows.clamp(min=0)
        state = self.state_dict() | {"content": content.to(self.content)}
        if self.id_embedding is not None:
            state["id_embedding"] = self.id_embedding.detach()[rows] * met[:, None]
        if self.config.popularity_bias:
            least = self.popularity.amin(dim=2, keepdim=True)
            state["popularity"] = torch.where(met, self.popularity[:, :, rows], least)
        config = dataclasses.replace(self.config, items=len(item_ids))
        ranker = Ranker(config, self.kind, item_ids, state["content"]).to(self.content.device)
        ranker.load_state_dict(state)
        return ranker.train(self.training)

    def require(self, kind: LTEKind, source: str) -> None:
        """Raises `LTEError` unless this model can read LTEs and items of `kind`, which come from `source`."""
        require_kind(self.kind, kind, source)

    def require_catalogue(self, item_ids: Sequence[str], source: str) -> None:
        """Raises `LTEError` unless `item_ids`, in their order, are the rows that this model scores."""
        if tuple(item_ids) != self.item_ids:
            raise LTEError(
                f"the model ranks {len(self.item_ids)} items, which are not the {len(item_ids)} of {source}: "
                "items changed after the training; run lte_model.training.train again for that date"
            )


def gap_buckets(minutes: np.ndarray) -> np.ndarray:
    """The bucket (uint8) of each gap in minutes: 0 below one minute, then one per doubling."""
    return np.minimum(np.log2(1.0 + np.maximum(minutes, 0)), GAP_BUCKETS - 1).astype(np.uint8)


class Block(nn.Module):
    """Attention, then a feed-forward layer, each on the normalised state and added to it."""

    def __init__(self, config: RankerConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = CausalAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        hidden = config.feed_forward * config.width
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, config.width),
            Dropout(config.dropout),
        )

    def forward(self, x: torch.Tensor, queries: torch.Tensor | None = None) -> torch.Tensor:
        """Maps (B, T, C) to (B, T, C), or to (B, 1, C) for one token per user, at `queries` (B,)."""
        read = x if queries is None else tokens_at(x, queries)
        read = read + self.attention(self.attention_norm(x), queries)
        return read + self.feed_forward(self.feed_forward_norm(read))


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and what came before it.

    Dropout applies to its output, not to its weights: torch's fused CPU kernels can't drop weights.
    """

    def __init__(self, config: RankerConfig):
        super().__init__()
        self.heads = config.heads
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.output_dropout = Dropout(config.dropout)

    def forward(self, x: torch.Tensor, queries: torch.Tensor | None = None) -> torch.Tensor:
        """Maps (B, T, C) to (B, T, C), or to (B, 1, C) for one token per user, at `queries` (B,)."""
        if queries is None:
            q, k, v = self._by_head(x)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            q, k, v = self._by_head(x, queries)
            seen = up_to(queries, x.shape[1])[:, None, None]  # (B, 1, 1, T)
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.output_dropout(self.output(y.transpose(1, 2).flatten(2)))

    def weights(self, x: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """The attention weights (B, heads, T) of one query per user: the token at `queries` (B,).

        softmax(q·kᵀ / √(C / heads)) over the tokens up to the query, 0 beyond: the fused kernel doesn't return it.
        """
        q, k, _ = self._by_head(x, queries)
        logits = (q @ k.transpose(2, 3))[:, :, 0] / math.sqrt(q.shape[3])  # (B, heads, T)
        return logits.masked_fill(~up_to(queries, x.shape[1])[:, None], -torch.inf).softmax(dim=2)

    def _by_head(self, x: torch.Tensor, queries: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Queries, keys and values, each (B, heads, T, C / heads).

        With `queries` (B,), the queries are (B, heads, 1, C / heads).
        """
        C = x.shape[2]
        if queries is None:
            parts = self.query_key_value(x).split(C, dim=2)
        else:
            weight, bias = self.query_key_value.weight, self.query_key_value.bias
            q = functional.linear(tokens_at(x, queries), weight[:C], bias[:C])
            parts = (q, *functional.linear(x, weight[C:], bias[C:]).split(C, dim=2))
        return [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts]


def tokens_at(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The token at `positions` (B,) of each user of `x` (B, T, C): (B, 1, C)."""
    return x[torch.arange(len(x), device=x.device), positions][:, None]


def up_to(positions: torch.Tensor, tokens: int) -> torch.Tensor:
    """The mask (B, `tokens`) bool of what the token at `positions` (B,) sees: itself and the tokens before it."""
    return torch.arange(tokens, device=positions.device) <= positions[:, None]


class Dropout(nn.Module):
    """Dropout that is fast on a CPU: a component is 0 with probability `p`, and the others are scaled up.

    On a CPU torch draws a double for every component, one after another: a tenth of a training step. Sixteen bits
    suffice, and one draw here has four times as many; `p` is met to 1/131,072.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self.kept = round((1 - p) * 2**16)  # of 65,536

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` with components dropped and the others scaled; outside training, `x` itself."""
        if x.device.type != "cpu" or not self.training or self.kept in (0, 2**16):
            return functional.dropout(x, self.p, self.training)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = bits[: x.numel()].view(x.shape) < self.kept - 2**15
        return x * kept.to(x.dtype).mul_(2**16 / self.kept)

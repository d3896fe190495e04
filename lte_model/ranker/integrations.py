"""How an LTE enters the ranker: one small class per way, and nothing of the transformer.

| integration | where the LTE goes |
|---|---|
| `none` | nowhere: the control, with as many tokens at the same cost |
| `prefix` | onto a token of its own before the first event, one for each representation |
| `late_fusion` | into the last hidden state, outside the transformer |
| `feature_injection` | onto the embedding of every event of the input |

arXiv 2604.08181 names the three and publishes no code: the layers are ours.
Every integration opens the sequence with the same number of *context tokens*, a learned start token for each
representation, so that two integrations differ only in what they know of the LTE.
"""

import math

import torch
from torch import nn
from torch.nn import functional


class NoLTE(nn.Module):
    """The integration `none`, and the base class of the others: R representations, of `dimensions` each."""

    def __init__(self, representations: int, dimensions: int, width: int):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(representations, width))

    def tokens(self, lte: torch.Tensor, has_lte: torch.Tensor) -> torch.Tensor:
        """The context tokens (B, R, width), from `lte` (B, R, dimensions) and `has_lte` (B, R)."""
        return self.start.expand(len(lte), -1, -1)

    def into_events(self, events: torch.Tensor, lte: torch.Tensor, has_lte: torch.Tensor) -> torch.Tensor:
        """The embedded events (B, T, width) as the transformer reads them."""
        return events

    def into_states(self, states: torch.Tensor, lte: torch.Tensor, has_lte: torch.Tensor) -> torch.Tensor:
        """The hidden states (B, R + T, width) that are multiplied by the item table."""
        return states


class Projection(nn.Module):
    """One vector for each LTE: (B, R, dimensions) to (B, R, width); a learned "no LTE" where a user has none."""

    def __init__(self, representations: int, dimensions: int, width: int):
        super().__init__()
        # The mean of many unit vectors is short, and shorter for a more varied history. The gain brings
        # the projection to the size of the other tokens and keeps the differences in length.
        self.gain = math.sqrt(dimensions)
        self.of = nn.ModuleList(nn.Linear(dimensions, width) for _ in range(representations))
        self.no_lte = nn.Parameter(torch.zeros(representations, width))

    def forward(self, lte: torch.Tensor, has_lte: torch.Tensor) -> torch.Tensor:
        """Projections (B, R, width) of `lte` (B, R, dimensions); a learned vector where `has_lte` (B, R) is false."""
        projected = torch.stack([of(lte[:, r] * self.gain) for r, of in enumerate(self.of)], dim=1)
        return torch.where(has_lte[:, :, None], projected, self.no_lte.to(projected.dtype))


class Prefix(NoLTE):
    """The context tokens carry the LTEs."""

    def __init__(self, representations: int, dimensions: int, width: int):
        super().__init__(representations, dimensions, width)
        self.projection = Projection(representations, dimensions, width)

    def tokens(self, lte: torch.Tensor, has_lte: torch.Tensor) -> torch.Tensor:
        """The start tokens, each plus the projection of its LTE: (B, R, width)."""
        return super().tokens(lte, has_lte) + self.projection(lte, has_lte)


class LateFusion(NoLTE):
    """A layer over hidden state and LTE, added to the hidden state: the transformer itself never sees the LTE."""

    def __init__(self, representations: int, dimensions: int, width: int):
        super().__init__(representations, dimensions, width)
        self.projection = Projection(representations, dimensions, width)
        self.of_state = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def into_states(self, states: torch.Tensor, lte: torch.Tensor, has_lte: torch.Tensor) -> torch.Tensor:
        """The hidden `states` (B, T, width), plus a layer over each of them and the LTEs."""
        projected = self.projection(lte, has_lte).sum(dim=1, keepdim=True)  # (B, 1, width)
        return states + self.output(functional.gelu(self.of_state(states) + projected))


class FeatureInjection(NoLTE):
    """The sum of the projected LTEs, added to every event of the input."""

    def __init__(self, representations: int, dimensions: int, width: int):
        super().__init__(representations, dimensions, width)
        self.projection = Projection(representations, dimensions, width)

    def into_events(self, events: torch.Tensor, lte: torch.Tensor, has_lte: torch.Tensor) -> torch.Tensor:
        """The embedded `events` (B, T, width), plus the projections of the LTEs."""
        return events + self.projection(lte, has_lte).sum(dim=1, keepdim=True)


INTEGRATIONS: dict[str, type[NoLTE]] = {
    "prefix": Prefix,
    "none": NoLTE,
    "late_fusion": LateFusion,
    "feature_injection": FeatureInjection,
}

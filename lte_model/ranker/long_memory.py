"""Linear attention over the events that are older than the sequence: a long history at constant cost.

For the S older events of a user, with keys k, values v and a positive feature map φ (Katharopoulos et al.,
arXiv 2006.16236):

    memory  M = Σ_s φ(k_s) v_sᵀ      normaliser  m = Σ_s φ(k_s)      what token t reads:  φ(q_t)ᵀ M / φ(q_t)ᵀ m

M and m are sums: one more old event is one addition, and reading costs the same after ten events as after ten
thousand. The tokens of the sequence read the memory once, before the first block; the softmax attention then covers
only the newest events. Every older event precedes every event of the sequence, so that no token reads its future.
"""

import torch
from torch import nn
from torch.nn import functional


class LinearAttentionMemory(nn.Module):
    """Lets tokens x (B, T, width) read older events (B, S, width). The result is added to x; it is 0 without events."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.older_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, older: torch.Tensor, older_lengths: torch.Tensor) -> torch.Tensor:
        """`older` (B, S, width) is padded on the right; its first `older_lengths` (B,) events are real."""
        real = torch.arange(older.shape[1], device=older.device) < older_lengths[:, None]  # (B, S)
        key, value = self.key_value(self.older_norm(older)).chunk(2, dim=2)
        q = self._features(self.query(self.norm(x)))  # (B, heads, T, width / heads)
        k = self._features(key) * real[:, None, :, None]  # (B, heads, S, width / heads)
        v = self._by_head(value)
        memory = k.transpose(2, 3) @ v  # (B, heads, width / heads, width / heads)
        normaliser = k.sum(dim=2)[..., None]  # (B, heads, width / heads, 1)
        y = (q @ memory) / (q @ normaliser).clamp(min=1e-6)  # (B, heads, T, width / heads)
        y = self.output(y.transpose(1, 2).reshape(x.shape))
        return y * (older_lengths > 0)[:, None, None]

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        return functional.elu(self._by_head(x)) + 1

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        return x.view(B, T, self.heads, C // self.heads).transpose(1, 2)

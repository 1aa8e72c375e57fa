"""The two halves of a transformer's layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .attention import Attention, Pass
from .gated import gated
from .token_shift import remember, shift_next, shift_tokens


class FeedForward(nn.Module):
    """Two linear maps with a gated GELU between them (Shazeer 2020, arXiv 2002.05202).

    Args:
        dim: Channels.
        dropout: Share of the inner channels that is dropped in training.
        mult: Inner channels by channel.
    """

    def __init__(self, dim: int, dropout: float = 0.0, mult: int = 4) -> None:
        super().__init__()
        self.to_inner = nn.Linear(dim, dim * mult * 2)
        self.dropout = nn.Dropout(dropout)
        self.to_out = nn.Linear(dim * mult, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return float [B, n, dim]."""
        inner = gated(self.to_inner(x))
        return self.to_out(self.dropout(inner))  # type: ignore[no-any-return]


class Half(nn.Module):
    """What is added to the stream: norm, shift of channels, the inner network, scale.

    The scale by channel begins small (LayerScale, Touvron et al. 2021, arXiv 2103.17239).

    Args:
        inner: The network; it may stand in other layers too.
        dim: Channels.
        layer: Number of the layer, from 0.
        sandwich: A second norm behind the network (Ding et al. 2021, arXiv 2105.13290).
        shift: Whether channels are shifted (`shift_tokens`).
    """

    def __init__(
        self, inner: Attention | FeedForward, dim: int, *, layer: int, sandwich: bool, shift: bool
    ) -> None:
        super().__init__()
        self.layer, self.shift = layer, shift
        self.norm = nn.LayerNorm(dim)
        self.inner = inner
        self.norm_out: Callable[[Tensor], Tensor] = nn.LayerNorm(dim) if sandwich else nn.Identity()
        first = 0.1 if layer < 18 else 1e-5 if layer < 24 else 1e-6
        self.scale = nn.Parameter(torch.full((dim,), first))

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        """Return what ``x``, [B, n, dim], gets, before the scale."""
        x = self.norm(x)
        kind = "attention" if isinstance(self.inner, Attention) else "feed-forward"
        if self.shift and run.layout is not None:
            x = self._shifted(x, run, f"shift {kind} {self.layer}")
        if isinstance(self.inner, Attention):
            return self.norm_out(self.inner(x, run, self.layer))
        return self.norm_out(self.inner(x))

    def _shifted(self, x: Tensor, run: Pass, key: str) -> Tensor:
        assert run.layout is not None
        if run.cache is not None and run.cache.length > 0:
            return shift_next(x, run.layout, run.cache, key)
        if run.cache is not None:
            remember(x, run.cache, key)
        return shift_tokens(x, run.layout)

    def add(self, stream: Tensor, x: Tensor, run: Pass) -> Tensor:
        """Return ``stream`` with what ``x`` gives added."""
        return torch.addcmul(stream, self(x, run), self.scale)

"""Part of each position's channels taken from the position before or above it."""

from typing import Any

import torch
from torch import Tensor

from .cache import Cache
from .layout import Layout


def shift_tokens(x: Tensor, layout: Layout) -> Tensor:
    """Return ``x`` with shifted channels, from the start of a sequence.

    Half of a text position's channels come from the position before; of an image position's, a
    quarter from the one above and a quarter from the one to the left; zeros at the edges.

    Args:
        x: Float [B, n, C]: text positions, then whole rows of the image, or texts alone.
        layout: Where the image begins, and its width.
    """
    return _Shift.apply(x, layout)  # type: ignore[no-any-return]


class _Shift(torch.autograd.Function):
    """A few copies forward and as few back, where slices assigned one by one would copy all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return _shifted(x, layout, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _shifted(grads[0], ctx.layout, -1), None


def _shifted(x: Tensor, layout: Layout, step: int) -> Tensor:
    """Shift forward (1), or, which is its transpose, back (-1)."""
    text = min(layout.text_len, x.shape[1])
    half, quarter = shares(x.shape[2])
    out = x.clone(memory_format=torch.contiguous_format)
    _slide(out[:, :text, :half], x[:, :text, :half], 1, step)
    if x.shape[1] > text:
        size = (-1, layout.width)
        old, new = (torch.unflatten(t[:, text:], 1, size) for t in (x, out))
        _slide(new[..., :quarter], old[..., :quarter], 1, step)
        left = slice(quarter, 2 * quarter)
        _slide(new[..., left], old[..., left], 2, step)
    return out


def _slide(new: Tensor, old: Tensor, dim: int, step: int) -> None:
    """Write ``old``, one place on or back along ``dim``, into ``new``; zeros where none comes."""
    n = old.shape[dim]
    new.narrow(dim, max(step, 0), n - 1).copy_(old.narrow(dim, max(-step, 0), n - 1))
    new.narrow(dim, 0 if step > 0 else n - 1, 1).zero_()


def shift_next(x: Tensor, layout: Layout, cache: Cache, key: str) -> Tensor:
    """Return one more position, [B, 1, C], shifted from those in the cache."""
    past = remember(x, cache, key)
    half, quarter = shares(x.shape[2])
    at = cache.length
    none = torch.zeros_like(x[:, 0])
    if at < layout.text_len:
        before = past[:, at - 1] if at > 0 else none
        return torch.cat([before[:, None, :half], x[..., half:]], dim=-1)
    row, column = divmod(at - layout.text_len, layout.width)
    above = (past[:, at - layout.width] if row > 0 else none)[:, None, :quarter]
    left = (past[:, at - 1] if column > 0 else none)[:, None, quarter : 2 * quarter]
    return torch.cat([above, left, x[..., 2 * quarter :]], dim=-1)


def remember(x: Tensor, cache: Cache, key: str) -> Tensor:
    """Keep what later positions take of ``x``, [B, n, C]; return all that is kept."""
    half, quarter = shares(x.shape[2])
    return cache.extend(key, x[..., : max(half, 2 * quarter)])


def shares(channels: int) -> tuple[int, int]:
    """Return a half and a quarter of the channels, rounded up as torch.chunk does."""
    return -(-channels // 2), -(-channels // 4)

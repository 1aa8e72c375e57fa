"""Attention in which an image sees its text and a part of itself."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Cache
from .layout import Layout
from .patterns import KINDS, pattern_rows
from .rotary import turn
from .sparse import BlockSparse
from .strips import Strips


@dataclass
class Pass:
    """What all layers share in one pass.

    Attributes:
        layout: Where text and image stand; None where nothing is causal.
        turns: Rotary positions, complex [n, D / 2], of the positions of this pass.
        visible: Bool [B, m]: the first m keys that may be seen; None for all. All later ones may.
        cache: Holds what was seen before; None where the pass is not part of a generation.
        masks: Masks made so far in this pass.
    """

    layout: Layout | None
    turns: Tensor | None = None
    visible: Tensor | None = None
    cache: Cache | None = None
    masks: dict[str, Tensor] = field(default_factory=dict)


class Attention(nn.Module):
    """Multi-head attention of one kind.

    Args:
        dim: Channels.
        heads: Heads.
        dim_head: Channels of a head.
        dropout: Share of the output's channels that is dropped in training.
        kind: One of `patterns.KINDS`; "full" without a layout sees all, before and after.
        layout: Where text and image stand.
        layer: Number of the layer that makes it, for the drawn blocks of "sparse".

    Raises:
        ValueError: If there is no such kind.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
        kind: str = "full",
        layout: Layout | None = None,
        layer: int = 0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"attention type {kind!r} is none of {', '.join(KINDS)}")
        self.heads, self.kind, self.layer = heads, kind, layer
        self.to_qkv = nn.Linear(dim, heads * dim_head * 3, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = BlockSparse(layout, layer) if kind == "sparse" and layout else None

    def forward(self, x: Tensor, run: Pass, index: int) -> Tensor:
        """Return float [B, n, dim].

        Args:
            x: Float [B, n, dim]. Of an image whole rows, or, after a cache's, one position.
            run: What this pass has in common.
            index: Depth, by which the cache names what it keeps.
        """
        qkv = self.to_qkv(x).unflatten(-1, (3, self.heads, -1))
        if run.turns is not None:
            qkv = turn(qkv, run.turns)
        if run.cache is not None and run.cache.length > 0:
            out = self._next(qkv, run, run.cache, index)
        else:
            if run.cache is not None:
                run.cache.extend(f"key {index}", qkv[:, :, 1])
                run.cache.extend(f"value {index}", qkv[:, :, 2])
            out = self._all(qkv, run)
        return self.dropout(self.to_out(out.flatten(2)))  # type: ignore[no-any-return]

    def _all(self, qkv: Tensor, run: Pass) -> Tensor:
        """Attend within a sequence from its start; [B, n, 3, H, D] to [B, n, H, D]."""
        n = qkv.shape[1]
        if run.layout is None:
            seen = None if run.visible is None else run.visible[:, None, None]
            q, k, v = qkv.unbind(2)
            return attend(q, k, v, seen)
        text = run.layout.text_len
        if self.kind == "sparse":
            assert self.blocks is not None
            q, k, v = qkv.unbind(2)
            if q.is_cuda:
                return self.blocks(q, k, v, run.visible)  # type: ignore[no-any-return]
            return attend(q, k, v, self._seen(run, 0, n, q.device))
        if self.kind == "full" or n <= text:
            return _attend_before(qkv, run)
        # One split, whose gradient is one copy; slices of q, k and v would each make a whole one.
        words, image = torch.split(qkv, [text, n - text], dim=1)
        strips = Strips(self.kind, run.layout, n)
        name = f"{self.kind} {n}"
        if name not in run.masks:
            run.masks[name] = strips.mask(len(qkv), run.visible, qkv)
        q, seen_by_strip = strips.cut(words, image)
        k, v = seen_by_strip.unbind(2)
        picture = strips.together(attend(q, k, v, run.masks[name]))
        return torch.cat([_attend_before(words, run), picture], dim=1)

    def _next(self, qkv: Tensor, run: Pass, cache: Cache, index: int) -> Tensor:
        """Attend from one more position to those in the cache; [B, 1, 3, H, D] to [B, 1, H, D]."""
        at = cache.length
        q, k, v = qkv.unbind(2)
        k, v = cache.extend(f"key {index}", k), cache.extend(f"value {index}", v)
        if self.kind == "full" and run.visible is None:
            return attend(q, k, v)
        return attend(q, k, v, self._seen(run, at, at + 1, q.device))

    def _seen(self, run: Pass, start: int, stop: int, device: torch.device) -> Tensor:
        """Return what positions may see, broadcast to [B, 1, stop - start, stop]; made once."""
        name = f"seen {self.kind} {start} {self.layer if self.kind == 'sparse' else ''}"
        if name not in run.masks:
            assert run.layout is not None
            blocks = None if self.blocks is None else self.blocks.blocks
            seen = pattern_rows(self.kind, run.layout, start, stop, blocks=blocks, device=device)
            run.masks[name] = _visible(seen, run.visible)
        return run.masks[name]


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Return the attention of [B, n, H, D] to [B, m, H, D], as [B, n, H, D].

    The softmax is computed from differences to the largest score, so it is a stable one.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2)


def _attend_before(qkv: Tensor, run: Pass) -> Tensor:
    """Attend to all positions before, and to the position itself."""
    q, k, v = qkv.unbind(2)
    if run.visible is None:
        return attend(q, k, v, causal=True)
    n = q.shape[1]
    name = f"before {n}"
    if name not in run.masks:
        causal = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        run.masks[name] = _visible(causal, run.visible)
    return attend(q, k, v, run.masks[name])


def _visible(seen: Tensor, visible: Tensor | None) -> Tensor:
    """Return ``seen``, bool [n, m], as [B, 1, n, m] without the keys that are not visible."""
    if visible is None:
        return seen
    m = seen.shape[1]
    rest = m - visible.shape[1]
    keys = F.pad(visible, (0, rest), value=True) if rest > 0 else visible[:, :m]
    return seen & keys[:, None, None]

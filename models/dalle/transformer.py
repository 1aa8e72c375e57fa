"""The transformer of DALL-E and of its CLIP."""

from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, Pass
from .cache import Cache
from .layers import FeedForward, Half
from .layout import Layout
from .reversible import run_reversibly
from .rotary import rotary_turns


class Layer(nn.Module):
    """Attention and a feed-forward network."""

    def __init__(self, attention: Half, feed_forward: Half) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward


class Transformer(nn.Module):
    """Layers of attention and feed-forward networks.

    Args:
        dim: Channels.
        depth: Layers.
        layout: Where text and image stand; None for a sequence that sees all of itself.
        heads: Attention heads.
        dim_head: Channels of a head.
        reversible: Keep no layer's activations for the way back (`run_reversibly`).
        attn_dropout: Dropout behind attention.
        ff_dropout: Dropout within feed-forward networks.
        attn_types: Kinds of attention (`patterns.KINDS`), repeated over the layers.
        sandwich_norm: A second norm in each half of a layer.
        shift_tokens: Shift channels from earlier positions.
        rotary_emb: Rotary positions of queries, keys and values.
        shared_attn_ids: A number for each layer, repeated: equal ones share their attention.
        shared_ff_ids: The same for feed-forward networks.

    Raises:
        ValueError: If there is no such kind of attention, or layers of different kinds share one.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        layout: Layout | None = None,
        heads: int = 8,
        dim_head: int = 64,
        reversible: bool = False,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        attn_types: str | Sequence[str] | None = None,
        sandwich_norm: bool = False,
        shift_tokens: bool = False,
        rotary_emb: bool = False,
        shared_attn_ids: Iterable[int] | None = None,
        shared_ff_ids: Iterable[int] | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.reversible = layout, reversible
        kinds = (attn_types,) if isinstance(attn_types, str) else tuple(attn_types or ("full",))
        layers = []
        attentions: dict[int, Attention] = {}
        networks: dict[int, FeedForward] = {}
        attn_ids = islice(
            cycle(range(depth) if shared_attn_ids is None else shared_attn_ids), depth
        )
        ff_ids = islice(cycle(range(depth) if shared_ff_ids is None else shared_ff_ids), depth)
        for i, kind, attn_id, ff_id in zip(
            range(depth), islice(cycle(kinds), depth), attn_ids, ff_ids, strict=True
        ):
            if attn_id not in attentions:
                attentions[attn_id] = Attention(
                    dim,
                    heads=heads,
                    dim_head=dim_head,
                    dropout=attn_dropout,
                    kind=kind,
                    layout=layout,
                    layer=i,
                )
            elif attentions[attn_id].kind != kind:
                raise ValueError(
                    f"layer {i} is {kind!r} and shares attention {attn_id} with a layer that is "
                    f"{attentions[attn_id].kind!r}: give layers of one kind one number"
                )
            if ff_id not in networks:
                networks[ff_id] = FeedForward(dim, ff_dropout)
            halves = [
                Half(inner, dim, layer=i, sandwich=sandwich_norm, shift=shift_tokens)
                for inner in (attentions[attn_id], networks[ff_id])
            ]
            layers.append(Layer(*halves))
        self.layers = nn.ModuleList(layers)
        # No buffer: casting a module to a smaller float must not cast the positions.
        self._turns = (
            rotary_turns(layout.text_len, layout.width, dim_head)
            if (layout is not None and rotary_emb)
            else None
        )

    def forward(
        self, x: Tensor, visible: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Return float [B, n, dim].

        Args:
            x: Float [B, n, dim]: a sequence from its start, or, after a cache's, one position.
            visible: Bool [B, m]: which of the first m positions may be seen; None for all.
            cache: What was seen before; it is extended by ``x``.
        """
        n = x.shape[1]
        run = Pass(self.layout, visible=visible, cache=cache)
        start = 0 if cache is None else cache.length
        if self.layout is not None and start == 0:
            # Strips are whole. What is filled up comes last, so nothing before it sees it.
            x = F.pad(x, (0, 0, 0, self.layout.whole_rows(n) - n))
        if self._turns is not None:
            if self._turns.device != x.device:
                self._turns = self._turns.to(x.device)
            run.turns = self._turns[start : start + x.shape[1]]
        layers = (cast(Layer, layer) for layer in self.layers)
        halves = [(layer.attention, layer.feed_forward) for layer in layers]
        if self.reversible:
            x = run_reversibly(halves, x, run)
        else:
            for attention, feed_forward in halves:
                x = attention.add(x, x, run)
                x = feed_forward.add(x, x, run)
        if cache is not None:
            cache.advance(n)
        return x[:, :n]

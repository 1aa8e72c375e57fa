"""Block-sparse attention by flex_attention."""

from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .layout import Layout
from .patterns import BLOCK, sparse_blocks


class BlockSparse(nn.Module):
    """Attention to the blocks of `sparse_blocks`; on CUDA the others are not computed.

    flex_attention (torch) has no gradient on the CPU, where `Attention` gives the same pattern to
    scaled_dot_product_attention as a mask. It is imported where it is used, for it loads sympy.

    Args:
        layout: Where text and image stand.
        layer: The layer's number, of which the drawn blocks are a function.
    """

    blocks: Tensor

    def __init__(self, layout: Layout, layer: int) -> None:
        super().__init__()
        self.register_buffer("blocks", sparse_blocks(layout, layer), persistent=False)
        self._masks: dict[tuple[int, torch.device], Any] = {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """Return the attention of [B, n, H, D] to itself, as [B, n, H, D].

        Args:
            q: Queries.
            k: Keys.
            v: Values.
            visible: Bool [B, m]: which of the first m positions may be seen; None for all.
        """
        flex: Any = import_module("torch.nn.attention.flex_attention")
        attend = _compiled() if q.is_cuda else flex.flex_attention
        out: Any = attend(
            *(t.transpose(1, 2) for t in (q, k, v)), block_mask=self._mask(q, visible)
        )
        return out.transpose(1, 2)  # type: ignore[no-any-return]

    def _mask(self, q: Tensor, visible: Tensor | None) -> Any:
        create_block_mask = import_module("torch.nn.attention.flex_attention").create_block_mask
        blocks, n, device = self.blocks, q.shape[1], q.device

        def seen(_batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return blocks[row // BLOCK, column // BLOCK] & (row >= column)

        if visible is not None:
            whole = visible.new_ones(len(visible), n)
            whole[:, : visible.shape[1]] = visible[:, :n]

            def masked(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
                return seen(batch, head, row, column) & whole[batch, column]

            return create_block_mask(masked, len(q), None, n, n, device=device)
        if (n, device) not in self._masks:
            self._masks[n, device] = create_block_mask(seen, None, None, n, n, device=device)
        return self._masks[n, device]


@lru_cache(maxsize=1)
def _compiled() -> Any:
    flex: Any = import_module("torch.nn.attention.flex_attention")
    return torch.compile(flex.flex_attention, dynamic=False)

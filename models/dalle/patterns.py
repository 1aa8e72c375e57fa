"""Which positions each kind of causal attention sees, as a whole matrix.

Attention does not compute these matrices for the axial kinds and the convolution-like one, save a
row at a time when it generates; they say what it must be equal to.
"""

import torch
from torch import Tensor

from .layout import Layout

KINDS = ("full", "axial_row", "axial_col", "conv_like", "sparse")
KERNEL = 5
"""Side of the window of ``conv_like``, which ends at the position itself."""
BLOCK = 16
"""Positions of a block of ``sparse``."""
LOCAL_BLOCKS = 4

_MASK = (1 << 64) - 1


def pattern(kind: str, layout: Layout, layer: int = 0) -> Tensor:
    """Return what each position may see: bool [n, n], the row sees the column.

    Args:
        kind: "full": all before; "axial_row", "axial_col": of the image the same row or column;
            "conv_like": of the image the 5 x 5 codes that end at the position; "sparse": blocks
            of 16 positions (see `sparse_blocks`). All see the whole text before them.
        layout: Where the image begins, and its width.
        layer: For "sparse": which blocks are drawn depends on it.

    Raises:
        ValueError: If there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"attention type {kind!r} is none of {', '.join(KINDS)}")
    blocks = sparse_blocks(layout, layer) if kind == "sparse" else None
    return pattern_rows(kind, layout, 0, layout.length, blocks=blocks)


def pattern_rows(
    kind: str,
    layout: Layout,
    start: int,
    stop: int,
    *,
    blocks: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Return what the positions from ``start`` to ``stop`` may see: bool [stop - start, stop].

    Args:
        kind: As of `pattern`.
        layout: Where the image begins, and its width.
        start: First position.
        stop: One behind the last.
        blocks: For "sparse", from `sparse_blocks`.
        device: Where it is made.
    """
    rows = torch.arange(start, stop, device=device)[:, None]
    columns = torch.arange(stop, device=device)
    causal = columns <= rows
    if kind == "full":
        return causal
    if kind == "sparse":
        assert blocks is not None
        return causal & blocks[rows // BLOCK, columns // BLOCK]
    text, width = layout.text_len, layout.width
    down = (rows - text) // width - (columns - text) // width
    right = (rows - text) % width - (columns - text) % width
    if kind == "axial_row":
        image = down == 0
    elif kind == "axial_col":
        image = right == 0
    else:
        image = (down < KERNEL) & (right >= 0) & (right < KERNEL)
    return causal & ((columns < text) | (rows < text) | image)


def sparse_blocks(layout: Layout, layer: int) -> Tensor:
    """Return which blocks see which: bool [m, m], m = ceil(n / 16), causal among blocks.

    A block sees the blocks of the text, those before it in its group of four, and a quarter of all
    blocks at random (Child et al. 2019, arXiv 1904.10509; the numbers are those that dalle-pytorch
    1.6.6 gives to DeepSpeed's VariableSparsityConfig). Drawn there anew in every process, the
    random blocks are a hash of layer, row and column here, so that a checkpoint keeps its meaning.
    """
    count = -(-layout.length // BLOCK)
    index = torch.arange(count)
    seen = (index[:, None] // LOCAL_BLOCKS) == (index // LOCAL_BLOCKS)
    seen |= index < -(-(layout.text_len - 1) // BLOCK)
    draws = (layout.length - 1) // BLOCK // 4
    for row in range(count):
        order = sorted(range(count), key=lambda column: _hash(layer, row, column))
        seen[row, order[:draws]] = True
    return seen.tril()


def _hash(*numbers: int) -> int:
    """Mix integers into one of 64 bits (splitmix64's finaliser, Steele et al. 2014)."""
    z = 0
    for number in numbers:
        z = (z + number + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return z

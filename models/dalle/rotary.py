"""Rotary positions of a text and the image that follows it."""

import math

import torch
from torch import Tensor

TEXT_BASE = 10_000.0
IMAGE_AMONG_TEXT = 8192.0  # image positions stand far behind any text
TEXT_AMONG_IMAGE = -10.0  # and texts far from the image's [-1, 1]


def rotary_turns(text_len: int, width: int, dim_head: int) -> Tensor:
    """Return the turn of each pair of channels at each position, as dalle-pytorch 1.6.6 has them.

    A third of the channels turns with the position in the text, a third with the image's row and a
    third with its column (Su et al. 2021, arXiv 2104.09864; the axial frequencies pi to 5 pi are
    those of rotary-embedding-torch).

    Args:
        text_len: Text positions, the begin included.
        width: Side of the image in codes.
        dim_head: Channels of a head, even.

    Returns:
        complex64 [text_len + width**2, dim_head / 2], all of length 1.

    Raises:
        ValueError: If ``dim_head`` is odd.
    """
    if dim_head % 2:
        raise ValueError(f"rotary positions need an even dim_head, got {dim_head}")
    third = dim_head // 3
    pairs = third // 2
    slow = 1.0 / TEXT_BASE ** (torch.arange(pairs) * 2 / max(third, 1))
    fast = torch.linspace(1.0, 5.0, pairs) * math.pi
    texts = torch.cat([torch.arange(text_len), torch.full((width**2,), IMAGE_AMONG_TEXT)])
    line = torch.linspace(-1, 1, width)[:, None] * fast
    rows = line[:, None].expand(width, width, pairs)
    image = torch.cat([rows, rows.transpose(0, 1)], dim=-1).flatten(0, 1)
    away = (TEXT_AMONG_IMAGE * fast).repeat(2).expand(text_len, -1)
    angles = torch.cat([texts[:, None] * slow, torch.cat([away, image])], dim=-1)
    rest = angles.new_zeros(len(angles), dim_head // 2 - 3 * pairs)  # these do not turn
    return torch.polar(torch.ones(()), torch.cat([angles, rest], dim=-1))


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Return ``x``, float [B, n, K, H, D], turned by ``turns``, complex [n, D / 2]."""
    pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)))
    return torch.view_as_real(pairs * turns[:, None, None]).flatten(-2).type_as(x)

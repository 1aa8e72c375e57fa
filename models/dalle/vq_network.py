"""The encoder and decoder of VQGAN (Esser et al. 2021, arXiv 2012.09841)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VQSizes:
    """Sizes as in the ``ddconfig`` of a taming-transformers configuration.

    Attributes:
        ch: Channels at the full size.
        ch_mult: Their multiples by level, each half as large as the one before.
        num_res_blocks: Residual blocks per level; the decoder has one more.
        attn_resolutions: Sides, in pixels, at which there is attention.
        resolution: Side of the images that it was trained on.
        z_channels: Channels of the smallest size.
        in_channels: Channels of the images.
        out_ch: Channels of the images made.
        double_z: Whether the encoder gives twice ``z_channels``.
    """

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    resolution: int
    z_channels: int
    in_channels: int = 3
    out_ch: int = 3
    double_z: bool = True


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two convolutions beside a straight path."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(n_in), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2, self.conv2 = norm(n_out), nn.Conv2d(n_out, n_out, 3, padding=1)
        if n_in != n_out:
            self.nin_shortcut = nn.Conv2d(n_in, n_out, 1)
        self.straight = n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.straight else self.nin_shortcut(x)) + h  # type: ignore[no-any-return]


class AttnBlock(nn.Module):
    """Attention of one head among all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.v, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.proj_out(torch.unflatten(out, 2, x.shape[2:]))  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Half the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Twice the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class Level(nn.Module):
    """The blocks of one size; the names are those of the checkpoints."""

    def __init__(self, widths: Sequence[int], attend: bool) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList([ResnetBlock(*pair) for pair in pairs])
        self.attn = nn.ModuleList([AttnBlock(out) for _, out in pairs] if attend else [])
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for step in (self.downsample, self.upsample):
            x = x if step is None else step(x)
        return x


class Middle(nn.Module):
    """The blocks of the smallest size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = (
            ResnetBlock(channels, channels),
            ResnetBlock(channels, channels),
        )
        self.attn_1 = AttnBlock(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))  # type: ignore[no-any-return]


class VQEncoder(nn.Module):
    """Images to the smallest size."""

    def __init__(self, sizes: VQSizes) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(sizes.in_channels, sizes.ch, 3, padding=1)
        levels, width, side = [], sizes.ch, sizes.resolution
        for i, mult in enumerate(sizes.ch_mult):
            out = sizes.ch * mult
            level = Level([width] + [out] * sizes.num_res_blocks, side in sizes.attn_resolutions)
            width = out
            if i < len(sizes.ch_mult) - 1:
                level.downsample, side = Downsample(width), side // 2
            levels.append(level)
        self.down, self.mid = nn.ModuleList(levels), Middle(width)
        self.norm_out = norm(width)
        channels = sizes.z_channels * (2 if sizes.double_z else 1)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))  # type: ignore[no-any-return]


class VQDecoder(nn.Module):
    """The smallest size to images."""

    def __init__(self, sizes: VQSizes) -> None:
        super().__init__()
        count = len(sizes.ch_mult)
        width, side = sizes.ch * sizes.ch_mult[-1], sizes.resolution // 2 ** (count - 1)
        self.conv_in, self.mid = nn.Conv2d(sizes.z_channels, width, 3, padding=1), Middle(width)
        levels: list[Level] = []
        for i in reversed(range(count)):
            out = sizes.ch * sizes.ch_mult[i]
            widths = [width] + [out] * (sizes.num_res_blocks + 1)
            level, width = Level(widths, side in sizes.attn_resolutions), out
            if i > 0:
                level.upsample, side = Upsample(width), side * 2
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, sizes.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.mid(self.conv_in(z))
        for level in reversed(list(self.up)):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # type: ignore[no-any-return]


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Return which code, of [V, D], is nearest to each of [B, D, h, w]: int64 [B, h w]."""
    rows = x.flatten(2).transpose(1, 2)
    distance = rows.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
    return torch.argmin(distance - 2 * rows @ codebook.T, dim=-1)

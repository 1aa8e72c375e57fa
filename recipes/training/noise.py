"""Noise and timesteps that are functions of the sample's visit, and of nothing else."""

import math
from collections.abc import Sequence

import torch

from ...pipes.draws import GOLDEN, hash64, hash_text, mix64
from ...pipes.sample import Ref

Refs = torch.Tensor | Sequence[Sequence[int]]
"""A batch's ``__ref__``: int64 [B, 3], a row for each sample."""


class SampleNoise:
    """Draws for each sample of a batch, the same on any rank and in any batch.

    A row's draw is the counter hash of `penstock.pipes`' own draws, of (seed, ref, purpose), so
    there is no random state to save, and a run that is resumed on other ranks draws the same. A
    visit of the sample in another pass has another ref, hence fresh draws. Normals are made of two
    uniforms each pair (Box and Muller, 1958) in float64 on the device itself. A generator would
    have to be torch's on the CPU to give the same on all devices: it would then hold up the GPU,
    and its stream may change between versions.

    Args:
        seed: The run's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(self, refs: Refs, purpose: str) -> torch.Tensor:
        """Return a number in [0, 1) for each row, float64 [B] on the CPU.

        Args:
            refs: int64 [B, 3].
            purpose: What the draw is for: each purpose has draws of its own.
        """
        bits = [mix64(key) >> 11 for key in self._keys(refs, purpose)]
        return torch.tensor([n * 2.0**-53 for n in bits], dtype=torch.float64)

    def normal(
        self,
        refs: Refs,
        shape: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        purpose: str = "noise",
    ) -> torch.Tensor:
        """Return standard normals, ``dtype`` [B, *shape] on the device.

        The bits are the same on every device; the normals are so but for the rounding of its
        logarithm and cosine, which is rarely seen behind the rounding from float64.

        Args:
            refs: int64 [B, 3].
            shape: Of one row.
            device: Where they are made.
            dtype: What they are rounded to.
            purpose: What the draw is for.
        """
        device = torch.device(device)
        makes = torch.device("cpu") if device.type == "mps" else device  # it has no float64
        keys = torch.tensor(
            [_signed(k) for k in self._keys(refs, purpose)], dtype=torch.int64, device=makes
        )
        size = math.prod(shape)
        pairs = -(-size // 2)
        counter = torch.arange(2 * pairs, dtype=torch.int64, device=makes) * _signed(GOLDEN)
        bits = _mix64(keys[:, None] + counter).view(len(keys), pairs, 2)
        u = _unsigned_shift(bits, 11).to(torch.float64)
        radius = torch.sqrt(-2 * torch.log((u[..., 0] + 1) * 2.0**-53))  # of (0, 1]: never log(0)
        angle = u[..., 1] * (2.0**-53 * 2 * math.pi)
        normal = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)
        return normal.flatten(1)[:, :size].reshape(len(keys), *shape).to(device, dtype)

    def _keys(self, refs: Refs, purpose: str) -> list[int]:
        rows = refs.tolist() if isinstance(refs, torch.Tensor) else refs
        code = hash_text(purpose)
        return [mix64(hash64(self.seed, *Ref(*row)) ^ code) for row in rows]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's own generators for one step, for what a model draws itself (dropout).

    Resumed at this step, on the same ranks, the model draws the same.

    Args:
        seed: The run's.
        step: The optimizer step that comes.
        rank: Ranks draw differently.
    """
    torch.manual_seed(hash64(seed, hash_text("step"), step, rank) >> 1)


def _signed(bits: int) -> int:
    """Return the int64 of these 64 bits."""
    return bits - (1 << 64) if bits >> 63 else bits


def _unsigned_shift(z: torch.Tensor, n: int) -> torch.Tensor:
    return (z >> n) & ((1 << (64 - n)) - 1)


def _mix64(z: torch.Tensor) -> torch.Tensor:
    """Return `penstock.pipes.draws.mix64` of int64 bits; products wrap round, as they should."""
    z = (z ^ _unsigned_shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _unsigned_shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _unsigned_shift(z, 31)

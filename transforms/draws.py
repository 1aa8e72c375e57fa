"""Draws of a transform: hashes of its batch's key, the sample's place, and what they are for.

A transform gets the batch's own numpy generator from the pipe, seeded from (seed, ref); one raw
number of its bit generator is the key. Raw numbers are the same in all versions of numpy (NEP 19),
unlike what Generator's methods make of them.
"""

import zlib

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def draw_key(rng: np.random.Generator | None) -> int:
    """Return 64 bits that are the batch's own.

    Raises:
        ValueError: If there is no generator.
    """
    if rng is None:
        raise ValueError(
            "drop= draws for each sample: have the transform called by .transform(), which gives "
            "the draws, or give rng=, a numpy Generator"
        )
    return int(rng.bit_generator.random_raw())


def uniforms(key: int, purpose: str, count: int) -> np.ndarray:
    """Return float64 [count] in [0, 1): number i depends on the key, the purpose and i alone.

    By splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), as
    the pipes' own draws.
    """
    start = (key ^ (zlib.crc32(purpose.encode()) * GOLDEN)) & MASK
    z = _mixed(np.array([start], np.uint64))
    z = _mixed(z + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN))
    found: np.ndarray = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return found


def check_chance(name: str, p: float) -> None:
    """Refuse what is no probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name} must be a probability from 0 to 1, got {p!r}")


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed

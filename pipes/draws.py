"""Random draws that are pure functions of what they are for.

Every draw is a counter hash of integers, built on splitmix64 (Steele, Lea, Flood: Fast Splittable
Pseudorandom Number Generators, OOPSLA 2014). Not `random`, numpy or torch generators: their streams
may change between versions, and a streamed generator would make a sample's crop depend on what was
drawn before it. So a crop or a dropped caption is the same whichever worker makes it, and however
often the run was interrupted.
"""

import random
import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from .sample import Ref

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
T = TypeVar("T")


def mix64(z: int) -> int:
    """Return splitmix64's finaliser of a 64-bit integer: a bijection; its bits look random."""
    z &= MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def hash64(*parts: int) -> int:
    """Return 64 random-looking bits that depend on all ``parts`` and their order."""
    h = 0
    for part in parts:
        h = mix64(h + GOLDEN + (part & MASK))
    return h


def hash_text(text: str) -> int:
    """Return a 64-bit hash of ``text`` that is the same in every process and version."""
    # surrogateescape: names of files that are not UTF-8 are strings like any other.
    data = text.encode("utf-8", "surrogateescape")
    return mix64((zlib.crc32(data) << 32) | zlib.adler32(data))


def permutation(n: int, key: int) -> np.ndarray:
    """Return a permutation of ``range(n)`` drawn from ``key``, int64 [n].

    The elements are sorted by a hash of their number; equal hashes keep their order.
    """
    z = np.arange(n, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(key & MASK)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.argsort(z, kind="stable")


_PURPOSES: dict[str, int] = {}
_VARIANT = hash_text("variant")


class Draws:
    """All random draws of one sample's visit, each named by its purpose.

    Two draws of one purpose are told apart by ``n``. The same (seed, ref, purpose, n) always gives
    the same number.

    Args:
        seed: The graph's seed.
        ref: The visit.
        name: The sample's identity, for `variant`: the base name of its shard, and its key.
    """

    __slots__ = ("_key", "_name", "_nth")

    def __init__(self, seed: int, ref: Ref, name: tuple[str, str] | None = None) -> None:
        self._key = hash64(seed, *ref)
        self._name = name
        self._nth = 0

    def of(self, nth: int) -> "Draws":
        """Return the draws of the nth pipe of a kind: these for 0, others for each other number."""
        if nth == 0:
            return self
        return self._with(hash64(self._key, nth), nth)

    def variant(self, k: int) -> "Draws":
        """Return the draws of the sample's variant ``k``: the same at each visit, with any seed.

        They depend on the sample's name, on ``k`` and on what `of` was given, and on nothing else:
        neither on the shard's number nor on how many variants there are.
        """
        if self._name is None:
            raise ValueError("draws have variants where they are given the sample's name")
        name = map(hash_text, self._name)
        return self._with(hash64(_VARIANT, *name, self._nth, k), self._nth)

    def _with(self, key: int, nth: int) -> "Draws":
        other = Draws.__new__(Draws)
        other._key, other._name, other._nth = key, self._name, nth
        return other

    def bits(self, purpose: str, n: int = 0) -> int:
        """Return 64 random bits."""
        code = _PURPOSES.get(purpose)
        if code is None:
            code = _PURPOSES[purpose] = hash_text(purpose)
        return mix64(mix64(self._key ^ code) + n * GOLDEN)

    def uniform(self, purpose: str, n: int = 0) -> float:
        """Return a float in [0, 1), a multiple of 2**-53."""
        return (self.bits(purpose, n) >> 11) * 2.0**-53

    def below(self, bound: int, purpose: str, n: int = 0) -> int:
        """Return an integer in [0, bound); its bias is below bound / 2**64."""
        return (self.bits(purpose, n) * bound) >> 64

    def shuffled(self, items: Sequence[T], purpose: str) -> list[T]:
        """Return ``items`` in a random order."""
        order = sorted(range(len(items)), key=lambda i: self.bits(purpose, i))
        return [items[i] for i in order]

    def generator(self, purpose: str) -> np.random.Generator:
        """Return a numpy generator for code that wants one; its stream is numpy's to change."""
        return np.random.Generator(np.random.Philox(key=self.bits(purpose)))

    def random(self, purpose: str) -> random.Random:
        """Return a generator of the standard library, for code that wants one."""
        return random.Random(self.bits(purpose))

"""Find keys that several shards have."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np

MOST_KEYS = 10_000_000
"""Keys that are compared, at 8 bytes each; of a larger data set the first ones."""


class KeyCheck:
    """Finds keys that come twice, by their hashes: 8 bytes of memory a key.

    Attributes:
        compared: Number of keys taken in.
        complete: Whether those were all.

    Args:
        most: Keys taken in at most.
    """

    def __init__(self, most: int = MOST_KEYS) -> None:
        self.most = most
        self.compared = 0
        self.complete = True
        self._hashes: list[np.ndarray] = []

    def add(self, keys: list[str]) -> None:
        """Take in the keys of one shard, which are all different."""
        taken = keys[: self.most - self.compared]
        self.complete &= len(taken) == len(keys)
        self.compared += len(taken)
        self._hashes.append(np.fromiter(map(_hash, taken), np.uint64, len(taken)))

    def doubles(self) -> np.ndarray:
        """Return the hashes of the keys that came in more than one shard, sorted, uint64."""
        if not self._hashes:
            return np.empty(0, np.uint64)
        values, counts = np.unique(np.concatenate(self._hashes), return_counts=True)
        return values[counts > 1]


def name_doubles(
    doubles: np.ndarray, shards: Iterable[tuple[str, list[str]]], most: int
) -> Iterator[tuple[str, list[str]]]:
    """Yield the first keys that are double, each with its first two shards.

    Args:
        doubles: What `KeyCheck.doubles` returned.
        shards: (URL, keys) of each shard, in the order in which they were added.
        most: Number of keys to yield.
    """
    wanted = set(doubles.tolist())
    found: dict[str, list[str]] = {}
    for url, keys in shards:
        for key in keys:
            if key in found:
                found[key].append(url)
            elif len(found) < most and _hash(key) in wanted:
                found[key] = [url]
        if len(found) == min(most, len(wanted)) and all(len(at) > 1 for at in found.values()):
            break
    yield from ((key, at[:2]) for key, at in found.items())


def _hash(key: str) -> int:
    data = key.encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")

"""Find the samples of a shard by their keys."""

from bisect import bisect_left

import numpy as np

from .errors import DataError
from .shard_index import ShardIndex


class KeyLookup:
    """Finds a shard's samples by their keys, in O(log n), with 12 bytes a sample.

    A sorted array of the keys' hashes; what has the hash is compared with the key itself, so the
    hashes decide nothing.

    Args:
        index: The shard's index.
        url: The shard, for errors.

    Raises:
        DataError: Two samples have one key.
    """

    def __init__(self, index: ShardIndex, url: str) -> None:
        hashes = np.fromiter(map(hash, index.keys()), np.int64, len(index))
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        self._index = index
        self._hashes = hashes.data
        self._samples = order.astype(np.uint32).data
        self._refuse_twins(hashes, url)

    def _refuse_twins(self, hashes: np.ndarray, url: str) -> None:
        same = np.flatnonzero(hashes[1:] == hashes[:-1]).tolist()
        run: dict[str, int] = {}  # the keys of one hash
        before = -1
        for at in same:
            if at != before:
                run = {self._index.key(self._samples[at]): self._samples[at]}
            before = at + 1
            sample = self._samples[at + 1]
            key = self._index.key(sample)
            if key in run:
                raise DataError(
                    f"{url} has the key {key!r} twice, in samples {run[key]} and {sample}: no "
                    "sample can be joined to it by key; write the shard anew without one of them"
                )
            run[key] = sample

    def find(self, key: str, near: int = 0) -> int | None:
        """Return the number of the sample that has ``key``, or None; ``near`` is tried first."""
        index = self._index
        if near < len(index) and index.key(near) == key:
            return near
        wanted = hash(key)
        at = bisect_left(self._hashes, wanted)
        while at < len(self._hashes) and self._hashes[at] == wanted:
            if index.key(self._samples[at]) == key:
                return self._samples[at]
            at += 1
        return None

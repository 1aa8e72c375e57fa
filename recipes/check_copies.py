"""Find images that are there more than once."""

from array import array
from hashlib import blake2b

import numpy as np

MOST_IMAGES = 10_000_000
"""Images that are compared, at 8 bytes each; of a larger data set the first ones."""


class CopyCheck:
    """Finds images whose bytes an earlier one has, by their hashes: 8 bytes of memory each.

    Args:
        most: Samples taken in at most.
    """

    def __init__(self, most: int = MOST_IMAGES) -> None:
        self.most = most
        self._hashes = array("Q")

    def add(self, digest: int) -> None:
        """Take in the next sample's image, as `digest_of` its bytes; 0 where it has none."""
        if len(self._hashes) < self.most:
            self._hashes.append(digest)

    def copies(self) -> np.ndarray:
        """Return the number of each copy and of the first image with its bytes, int64 [n, 2].

        Samples are numbered in the order in which they were added; copies are in that order.
        """
        hashes = np.frombuffer(self._hashes, np.uint64)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        begins = np.ones(len(order), bool)
        begins[1:] = ordered[1:] != ordered[:-1]
        first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
        again = ~begins & (ordered != 0)
        pairs = sorted(zip(order[again].tolist(), first[again].tolist(), strict=True))
        return np.array(pairs, np.int64).reshape(-1, 2)


def digest_of(data: bytes) -> int:
    """Return 64 bits of a hash of an image's bytes, never 0."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") or 1

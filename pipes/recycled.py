"""Memory for one batch after another, used again as soon as nobody has it any more."""

import sys

import numpy as np
import torch

MOST = 8
"""Pieces of memory that are kept: those of two batches."""

LEAST = 1 << 20
"""Bytes from which on memory is kept. A new piece costs a page fault for each 4 KiB of it, which is
more than the time in which cached latents are read into it; malloc gives large ones back to the
system again and again."""


class Recycled:
    """Gives memory, and gives it again when no tensor, view or array of it is left.

    That is what numpy's count of references to the piece says: tensors hold one of them.
    """

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []

    def empty(self, size: int) -> torch.Tensor:
        """Return uint8 [size] that nobody else has; what it holds is undefined."""
        if size < LEAST:
            return torch.empty(size, dtype=torch.uint8)
        return torch.from_numpy(self._piece(size)[:size])

    def _piece(self, size: int) -> np.ndarray:
        free = [i for i in range(len(self._pieces)) if sys.getrefcount(self._pieces[i]) == _FREE]
        for i in free:
            if size <= self._pieces[i].nbytes <= 2 * size:
                self._pieces.append(self._pieces.pop(i))
                return self._pieces[-1]
        if len(self._pieces) >= MOST:
            self._pieces.pop(free[0] if free else 0)  # one that is in use goes with its last user
        self._pieces.append(np.empty(size, np.uint8))
        return self._pieces[-1]


def _count_of_free() -> int:
    """Return the count of an array that nothing but a list holds, as it is asked for above."""
    pieces = [np.empty(1, np.uint8)]
    counts = [sys.getrefcount(pieces[i]) for i in range(1)]
    return counts[0]


_FREE = _count_of_free()

"""Entries that are kept in memory, or on the device, up to a number of bytes."""

import warnings
from typing import Literal

import torch

from .byte_size import parse_size
from .entry import Tensors

Hold = Literal["memory", "device"] | None
"""Where entries are kept once they were read: in the trainer's memory, on its device, nowhere."""


class Held:
    """Keeps entries of the process that trains. Another process has none: it is not pickled.

    Args:
        hold: Where.
        limit: Most bytes, or such as ``"2GB"``.

    Raises:
        ValueError: ``hold`` or ``limit`` is none.
    """

    def __init__(self, hold: Hold, limit: int | str) -> None:
        if hold not in ("memory", "device", None):
            raise ValueError(f"hold must be 'memory', 'device' or None, got {hold!r}")
        size = parse_size(limit, "limit")
        if size is None:
            raise ValueError("limit is bytes, or such as '2GB'; got None")
        self.hold = hold
        self.limit = size
        self.size = 0
        self._entries: dict[str, Tensors] = {}
        self._told = False

    def __reduce__(self) -> tuple[type["Held"], tuple[Hold, int]]:
        return Held, (self.hold, self.limit)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> Tensors | None:
        """Return the entry held under a name, or None."""
        return self._entries.get(name)

    def put(self, name: str, entry: Tensors, device: torch.device | None) -> None:
        """Hold a copy of an entry, while there is room; the first one without room is told."""
        if self.hold is None or name in self._entries:
            return
        size = sum(value.nbytes for value in entry.values())
        if self.size + size > self.limit:
            self._tell(size)
            return
        where = device if self.hold == "device" and device is not None else torch.device("cpu")
        # A copy: a row of a batch would keep the whole batch.
        self._entries[name] = {k: v.to(where, copy=True) for k, v in entry.items()}
        self.size += size

    def _tell(self, size: int) -> None:
        if not self._told:
            self._told = True
            warnings.warn(
                f"the entries take more than limit={self.limit} bytes: {len(self)} of them are "
                f"held, and the others are read from the store each time; an entry such as the "
                f"next takes {size} bytes",
                stacklevel=6,
            )

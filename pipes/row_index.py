"""Where the rows of a text file lie, kept on disk, so that a large one is scanned once."""

import json
import os
from array import array
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from .local_file import cache_root
from .shard_index import read_npz, replacing

VERSION = 1
"""Version of the file format: a file of another one is passed over."""

KEPT_FROM = 20_000
"""Rows from which on an index is kept: fewer are scanned in a tenth of a second."""


@dataclass
class RowIndex:
    """Where each row is, and a mark of what it was.

    Attributes:
        columns: Names of the columns, in their order.
        known: How many of them were known when it was chosen which are what: rows of JSON may bring
            others later.
        starts: First byte of each row.
        sizes: Its number of bytes.
        lines: The line in which it begins, from 1.
        marks: CRC-32 of what it is.
    """

    columns: list[str]
    known: int
    starts: "array[int]"
    sizes: "array[int]"
    lines: "array[int]"
    marks: "array[int]"

    @property
    def digest(self) -> str:
        """Hash of the marks, 16 hexadecimal digits."""
        plain = np.frombuffer(self.marks, np.uint32).astype("<u4")
        return blake2b(plain.tobytes(), digest_size=8).hexdigest()

    def save(self, path: str, source: tuple[int, int]) -> None:
        """Write the index to ``path``, whole or not at all; where that cannot be, do without.

        Args:
            path: Where to write.
            source: Size and time (ns) of the file that it is of.
        """
        arrays = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        arrays["columns"] = np.frombuffer(json.dumps([self.columns, self.known]).encode(), np.uint8)
        arrays["penstock_rows"] = np.array([VERSION, *source], np.int64)
        with suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with replacing(path) as file:
                np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str, source: tuple[int, int]) -> "RowIndex | None":
        """Return the index in ``path``, or None where there is none of this file, of this time."""
        try:
            with open(path, "rb") as file:
                found = read_npz(file.read())
            if found["penstock_rows"].tolist() != [VERSION, *source]:
                return None
            columns, known = json.loads(found["columns"].tobytes())
            parts = [array(kind, found[n].tobytes()) for n, kind in _ARRAYS.items()]
        except Exception:  # no file, or bytes that break numpy and zipfile in any way
            return None
        same = len({len(part) for part in parts}) == 1
        return cls(columns, known, *parts) if same and parts[0] else None


_ARRAYS = {"starts": "q", "sizes": "I", "lines": "I", "marks": "I"}


def index_path(path: str, how: object, cache: str | None) -> str:
    """Return where the cache keeps the index of a file that is read in a certain way."""
    name = f"{os.path.abspath(path)} {how!r}".encode("utf-8", "surrogateescape")
    digest = blake2b(name, digest_size=16).hexdigest()
    return os.path.join(cache_root(cache), "index", f"{digest}.rows.npz")

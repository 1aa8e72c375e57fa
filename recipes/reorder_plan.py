"""Which rows of which files become which shard's: kept on disk, 8 bytes a row."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..pipes.errors import DataError
from ..pipes.make_once import make_once
from ..pipes.npy import read_npy
from ..pipes.remote import hash_name
from ..pipes.shard_index import read_npz, replacing
from .reorder_input import KeyFile, Pair

VERSION = 1
"""Version of the files: those of another one have another name."""

MOST_DIGITS = 9
"""Digits that an index may have."""


@dataclass(frozen=True)
class Rows:
    """The rows of one pair of files, sorted by shard and index.

    Attributes:
        path: An ``.npy``, uint32 [rows, 2]: the sample's index in its shard, the row.
        shards: Numbers of the shards that have rows here, int64, growing.
        ends: Where each one's rows end in that file, int64.
        shortest: Fewest digits of a key; 0 where keys are stored as numbers.
        longest: Most digits.
    """

    path: str
    shards: np.ndarray
    ends: np.ndarray
    shortest: int
    longest: int

    def read(self, start: int, end: int) -> np.ndarray:
        """Return entries ``start`` to ``end`` (not included), uint32 [entries, 2]."""
        out = np.empty((end - start, 2), np.uint32)
        with open(self.path, "rb") as file:
            read_npy(self.path).read_into(file.fileno(), start, out)
        return out


def sort_rows(folder: Path, pair: Pair, keys: KeyFile, index_width: int) -> Rows:
    """Return the rows of a pair, sorted once by whichever process comes first.

    It holds some 60 bytes in memory for each row of the one file.

    Args:
        folder: Where they are kept.
        pair: The files.
        keys: Those of the pair.
        index_width: How many digits at the end of a key are the index, 1 to `MOST_DIGITS`.

    Raises:
        DataError: A key cannot be read.
    """
    how = (VERSION, os.path.basename(pair.parquet), *keys.version, keys.column, index_width)
    stem = str(folder / f"rows_{pair.number:05d}_{hash_name(repr(how))[:16]}")

    def write(fd: int) -> None:
        numbers, shortest, longest = _read(keys)
        order = np.argsort(numbers, kind="stable")
        shards, index = np.divmod(numbers[order], 10**index_width)
        del numbers
        found, starts = np.unique(shards, return_index=True)
        with replacing(stem + ".npy") as file:
            np.save(file, np.stack([index, order], 1).astype(np.uint32))
        with open(fd, "wb", closefd=False) as out:
            np.savez(
                out,
                shards=found,
                ends=np.append(starts[1:], len(order)).astype(np.int64)[: len(found)],
                lengths=np.array([shortest, longest], np.int64),
            )

    make_once(stem + ".npz", write)
    table = read_npz(Path(stem + ".npz").read_bytes())
    return Rows(stem + ".npy", table["shards"], table["ends"], *table["lengths"].tolist())


def _read(keys: KeyFile) -> tuple[np.ndarray, int, int]:
    numbers = np.empty(len(keys), np.int64)
    if len(numbers) >= 1 << 32:
        raise DataError(f"{keys.url} has {len(numbers):,} rows: more than a file may have")
    shortest, longest = 18, 0
    for part in keys.parts():
        numbers[part.start : part.start + len(part.numbers)] = part.numbers
        shortest, longest = min(shortest, part.shortest), max(longest, part.longest)
    return numbers, shortest, longest


@dataclass(frozen=True)
class Segment:
    """One shard's rows of one pair.

    Attributes:
        pair: Which of the pairs.
        start: Its first entry in that pair's `Rows`.
        end: The entry behind its last.
    """

    pair: int
    start: int
    end: int


class Plan:
    """Which segments make which shard.

    Args:
        rows: Those of each pair, in the order of the pairs.
    """

    def __init__(self, rows: Sequence[Rows]) -> None:
        self.rows = list(rows)
        pairs = [np.full(len(r.shards), i, np.int64) for i, r in enumerate(rows)]
        starts = [np.append(0, r.ends[:-1])[: len(r.shards)] for r in rows]
        shards = np.concatenate([r.shards for r in rows])
        order = np.argsort(shards, kind="stable")
        self._shards = shards[order]
        self._pairs = np.concatenate(pairs)[order]
        self._starts = np.concatenate(starts)[order]
        self._ends = np.concatenate([r.ends for r in rows])[order]
        self.shards: np.ndarray = np.unique(self._shards)

    def segments(self, shard: int) -> list[Segment]:
        """Return the segments of a shard, in the order of the pairs."""
        low, high = np.searchsorted(self._shards, [shard, shard + 1]).tolist()
        columns = (self._pairs, self._starts, self._ends)
        return [
            Segment(*values)
            for values in zip(*(c[low:high].tolist() for c in columns), strict=True)
        ]

    def count(self, shard: int) -> int:
        """Return the number of rows of a shard."""
        return sum(segment.end - segment.start for segment in self.segments(shard))

    def shard_width(self, index_width: int) -> int:
        """Return how many digits the shards' numbers have in the keys.

        Raises:
            ValueError: The keys do not say.
        """
        used = [r for r in self.rows if len(r.shards)]
        shortest = min((r.shortest for r in used), default=0)
        longest = max((r.longest for r in used), default=0)
        width = shortest - index_width
        most = len(str(int(self.shards.max(initial=0))))
        if width < 1 or longest != max(width, most) + index_width:
            raise ValueError(
                "the keys do not say how many digits the numbers of shards have (keys have from "
                f"{shortest} to {longest}): give --shard_width, or the --tars"
            )
        return width

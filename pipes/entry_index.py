"""Which entries a cache has, and where: on disk beside each shard, in memory for all of them."""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .entry_shard import BLOCK, MOST_ABOUT, MOST_DATA, RECORD, Entry, scan_sealed
from .shard_index import replacing

SIDECAR = ".idx.npy"
"""Ending of a shard's index: that of ``0f3c.tar`` is ``0f3c.idx.npy``."""

FEW = 4096
"""Entries that came singly and are looked up in a dict, at least; sorting them in takes longer."""

_MAGIC = int.from_bytes(b"penstock", "big")
_VERSION = 1


class Place(NamedTuple):
    """Where an entry lies: the number of its shard, and its place there."""

    shard: int
    entry: Entry


class EntryIndex:
    """The entries of all shards: sorted arrays, 44 bytes an entry, and a dict of the latest.

    The arrays are not written to once they are made: forked workers share them. Of two entries of
    one name the first counts.
    """

    def __init__(self) -> None:
        self._latest: dict[int, Place] = {}
        self._by_source: tuple[memoryview, np.ndarray] | None = None
        self._keep(np.empty(0, RECORD), np.empty(0, np.uint32))

    def __len__(self) -> int:
        return len(self._high) + len(self._latest)

    @property
    def bytes(self) -> int:
        """Bytes of all entries' tensors."""
        return self._bytes

    def find(self, name: int) -> Place | None:
        """Return the place of an entry, or None."""
        if (place := self._latest.get(name)) is not None:
            return place
        high, low = name >> 64, name & ((1 << 64) - 1)
        # A memoryview and bisect: half the time of numpy's searchsorted of one number.
        i = bisect_left(self._high, high)
        if i == len(self._high) or self._high[i] != high:
            return None
        if self._low[i] != low:
            end = bisect_right(self._high, high, i)
            i = bisect_left(self._low, low, i, end)
            if i == end or self._low[i] != low:
                return None
        return self._place(i)

    def of_source(self, source: int) -> list[Place]:
        """Return the places of all entries of a source."""
        if self._by_source is None:
            order = np.argsort(self._columns["source"], kind="stable")
            self._by_source = self._columns["source"][order].data, order
        values, order = self._by_source
        i, j = bisect_left(values, source), bisect_right(values, source)
        found = [self._place(k) for k in order[i:j].tolist()]
        return found + [p for p in self._latest.values() if p.entry.source == source]

    def names(self) -> Iterator[str]:
        """Yield the names of all entries."""
        pairs = np.empty((len(self._high), 2), ">u8")
        pairs[:, 0], pairs[:, 1] = self._columns["high"], self._columns["low"]
        digits = pairs.tobytes().hex()
        latest = list(self._latest)
        yield from (digits[i : i + 32] for i in range(0, len(digits), 32))
        yield from (f"{name:032x}" for name in latest)

    def put(self, shard: int, entry: Entry) -> None:
        """Take in one entry."""
        if self.find(entry.name) is None:
            self._latest[entry.name] = Place(shard, entry)
            self._bytes += entry.data
            if len(self._latest) > max(FEW, len(self._high) // 8):
                self._sort([])

    def add(self, found: Sequence[tuple[int, np.ndarray]]) -> None:
        """Take in the entries of shards: pairs of a shard's number and `RECORD` [entries]."""
        if sum(len(records) for _, records in found) > max(FEW, len(self._high) // 8):
            self._sort(found)
            return
        for shard, records in found:
            for row in records.tolist():
                self.put(shard, entry_of(row))

    def drop(self, name: int) -> None:
        """Forget one of the latest entries: it is not what its place was said to hold."""
        place = self._latest.pop(name, None)
        if place is not None:
            self._bytes -= place.entry.data

    def _sort(self, found: Sequence[tuple[int, np.ndarray]]) -> None:
        """Make the arrays anew, of what they had, the latest, and ``found``."""
        rows = np.empty(len(self._high), RECORD)
        for name, column in self._columns.items():
            rows[name] = column
        latest = np.array([place.entry.record for place in self._latest.values()], RECORD)
        shards = np.array([place.shard for place in self._latest.values()], np.uint32)
        parts = [(rows, self._shards), (latest, shards)]
        parts += [(records, np.full(len(records), shard, np.uint32)) for shard, records in found]
        rows = np.concatenate([part[0] for part in parts])
        shards = np.concatenate([part[1] for part in parts])
        order = np.lexsort((rows["low"], rows["high"]))  # stable: the first of a name stays first
        rows, shards = rows[order], shards[order]
        first = np.ones(len(rows), bool)
        first[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
        self._latest = {}
        self._keep(rows[first], shards[first])

    def _keep(self, rows: np.ndarray, shards: np.ndarray) -> None:
        self._columns = {name: np.ascontiguousarray(rows[name]) for name in RECORD.names or ()}
        self._high, self._low = self._columns["high"].data, self._columns["low"].data
        self._shards = shards
        self._by_source = None
        self._bytes = int(rows["data"].sum(dtype=np.int64))

    def _place(self, i: int) -> Place:
        row = tuple(int(column[i]) for column in self._columns.values())
        return Place(int(self._shards[i]), entry_of(row))


def entry_of(row: Sequence[int]) -> Entry:
    """Return a row of `RECORD` as an entry."""
    high, low, *rest = row
    return Entry(high << 64 | low, *rest)


def sealed_records(path: str, fd: int) -> np.ndarray:
    """Return the entries of the finished shard ``path``, from its index where there is one.

    An index that is missing, damaged, or of a file of another size or time is made again.

    Raises:
        DataError: The shard is damaged.
        OSError: It cannot be read.
    """
    stat = os.fstat(fd)
    records = _load(path, stat)
    if records is None:
        records = scan_sealed(path, fd)
        try:
            save_records(path, records, stat)
        except OSError:  # a folder that cannot be written: each process scans
            return records
    return records


def save_records(path: str, records: np.ndarray, stat: os.stat_result) -> None:
    """Write the index of a shard beside it, whole or not at all.

    Args:
        path: The shard, a ``.tar``.
        records: Its entries.
        stat: Its size and time: they stand in the first row.
    """
    rows = np.empty(len(records) + 1, RECORD)
    rows[0] = (_MAGIC, _VERSION, stat.st_mtime_ns, stat.st_size, 0, 0)
    rows[1:] = records
    with replacing(sidecar(path)) as file:
        np.save(file, rows, allow_pickle=False)


def sidecar(path: str) -> str:
    """Return the name of a shard's index."""
    return path.removesuffix(".tar") + SIDECAR


def _load(path: str, stat: os.stat_result) -> np.ndarray | None:
    """Return the entries that a shard's index lists, or None where it has none that fits it."""
    try:
        rows = np.load(sidecar(path), allow_pickle=False)
    except OSError:
        return None
    except Exception:  # numpy raises nearly anything at damaged bytes
        return None
    if not isinstance(rows, np.ndarray) or rows.dtype != RECORD or rows.ndim != 1 or not len(rows):
        return None
    if rows[0].tolist() != (_MAGIC, _VERSION, stat.st_mtime_ns, stat.st_size, 0, 0):
        return None
    records: np.ndarray = rows[1:]
    bodies = [records[name].astype(np.uint64) for name in ("about", "data")]
    room = stat.st_size - 2 * BLOCK
    fits = (
        (records["offset"] % BLOCK == 0)
        & (records["offset"] <= room)
        & (bodies[0] <= MOST_ABOUT)
        & (bodies[1] <= MOST_DATA)
        & (records["offset"] + bodies[0] + bodies[1] <= room)
    )
    return records if bool(fits.all()) else None

"""The hashes of image files, remembered: what is in a cache is found without reading the file."""

import os
import time
from contextlib import suppress
from hashlib import blake2b
from typing import Final

import numpy as np

from .file_cache import RemoteFile
from .image_facts import ImageFacts, image_facts
from .read import read_value
from .sample import Extent, Stored

MAGIC: Final = int.from_bytes(b"PSHASH01", "little")

SETTLED: Final = 100_000_000
"""Nanoseconds for which a file's times must have stood still to be trusted: within one tick of the
clock that stamps them, a file may change and keep its times (as git's racily clean entries)."""

_RECORD: Final = np.dtype(
    [
        ("magic", "<u8"),
        ("place", "<u8", 2),
        ("digest", "<u8", 2),
        ("size", "<u4", 2),
        ("flags", "<u8"),
        ("check", "<u8"),
    ]
)

_MERGE: Final = 65_536
"""New records that are kept one by one until they are merged into the arrays."""


class ImageHashes:
    """Remembers what image files say, by where they lie and when they were changed.

    A file's place is its path, offset and size, and of the file itself its inode, size, and both of
    its times; of a URL its version. What has no such mark (URLs without a version, images inside
    tables) is read and hashed each time.

    Kept in memory, 32 to 60 bytes an image, and in a file that all processes append to: records of
    64 bytes with a check each; what was torn by a kill or a full disk is passed over. Without a
    path, in memory alone. A pickle has nothing but the path.

    Args:
        path: The file; None for none. It is made with the first record.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._read_to = 0
        self._places = np.zeros(0, np.uint64)  # the first halves, which are sorted
        self._rows = np.zeros(0, _RECORD)
        self._new: dict[bytes, ImageFacts] = {}

    def __reduce__(self) -> tuple[type["ImageHashes"], tuple[str | None]]:
        return ImageHashes, (self.path,)

    def __len__(self) -> int:
        self.refresh()
        return len(self._rows) + len(self._new)

    def known(self, value: Extent | Stored | bytes) -> ImageFacts | None:
        """Return what the file of a field says, if that is remembered and up to date."""
        place = _place(value)
        return None if place is None else self._find(place)

    def read(self, value: Extent | Stored | bytes) -> tuple[bytes, ImageFacts]:
        """Return a field's bytes and what they say, and remember it.

        Raises:
            DataError: The field cannot be read, or is no image.
            OSError: It cannot be read.
        """
        before = _place(value)
        data = read_value(value)
        facts = image_facts(data)
        if before is not None and self._find(before) != facts and _place(value) == before:
            self._new[before] = facts
            self._append(before, facts)
        return data, facts

    def _find(self, place: bytes) -> ImageFacts | None:
        found = self._new.get(place) or self._stored(place)
        if found is None and self.refresh():  # another process may have seen it
            found = self._new.get(place) or self._stored(place)
        return found

    def _stored(self, place: bytes) -> ImageFacts | None:
        first, second = np.frombuffer(place, "<u8")
        for row in self._rows[np.searchsorted(self._places, first) :]:
            if row["place"][0] != first:
                break
            if row["place"][1] == second:
                return _facts(row)
        return None

    # -- the file -------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Read what was appended since the last time, and return whether there was anything."""
        if self.path is None:
            return False
        try:
            if os.stat(self.path).st_size - self._read_to < _RECORD.itemsize:
                return False
            with open(self.path, "rb") as file:
                file.seek(self._read_to)
                data = file.read()
        except FileNotFoundError:
            return False
        rows, used = _records(data)
        self._read_to += used
        if len(rows) + len(self._new) < _MERGE:
            self._new.update((row["place"].tobytes(), _facts(row)) for row in rows)
        else:
            self._merge(rows)
        return used > 0

    def _merge(self, rows: np.ndarray) -> None:
        """Sort all records by place; of several of a place, the last."""
        mine = np.zeros(len(self._new), _RECORD)
        for i, (place, facts) in enumerate(self._new.items()):
            mine[i] = _row(place, facts)[0]
        joined = np.concatenate([self._rows, mine, rows])
        order = np.lexsort((joined["place"][:, 1], joined["place"][:, 0]))  # stable
        joined = joined[order]
        last = np.ones(len(joined), bool)
        last[:-1] = (joined["place"][1:] != joined["place"][:-1]).any(1)
        self._rows = joined[last]
        self._places = np.ascontiguousarray(self._rows["place"][:, 0])
        self._new = {}

    def _append(self, place: bytes, facts: ImageFacts) -> None:
        if self.path is None:
            return
        # A memory that cannot be written is no reason to stop: the file is hashed again.
        with suppress(OSError):
            os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.write(fd, _row(place, facts).tobytes())
            finally:
                os.close(fd)


def _place(value: Extent | Stored | bytes) -> bytes | None:
    """Return a hash of where a field lies and what tells its versions apart; None without such."""
    if isinstance(value, Extent):
        try:
            stat = os.stat(value.path)
        except OSError:  # a shard that has left the cache is read by ranges
            return None
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < SETTLED:
            return None
        times = stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        parts: tuple[object, ...] = (os.path.abspath(value.path), *value[1:], *times)
    elif isinstance(value, RemoteFile) and value.version:
        parts = value.url, value.version
    else:
        return None
    text = "\n".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return blake2b(text, digest_size=16).digest()


def _row(place: bytes, facts: ImageFacts) -> np.ndarray:
    row = np.zeros(1, _RECORD)
    row["magic"] = MAGIC
    row["place"], row["digest"] = np.frombuffer(place, "<u8"), np.frombuffer(facts.digest, "<u8")
    row["size"] = facts.size
    row["flags"] = int(facts.alpha) | int(facts.profile) << 1
    row["check"] = _checks(row)
    return row


def _facts(row: np.void) -> ImageFacts:
    flags = int(row["flags"])
    height, width = row["size"].tolist()
    return ImageFacts(row["digest"].tobytes(), height, width, bool(flags & 1), bool(flags & 2))


def _checks(rows: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each record but its last number, uint64 [n] (FNV-1a over words)."""
    words = np.ascontiguousarray(rows).view("<u8").reshape(len(rows), -1)
    mixed = np.full(len(rows), 0xCBF29CE484222325, np.uint64)
    for i in range(words.shape[1] - 1):
        mixed = (mixed ^ words[:, i]) * np.uint64(0x100000001B3)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _records(data: bytes) -> tuple[np.ndarray, int]:
    """Return the whole records in a file's bytes, and how many bytes were read of them."""
    size = _RECORD.itemsize
    used = len(data) // size * size
    rows = np.frombuffer(data[:used], _RECORD)
    good = (rows["magic"] == MAGIC) & (rows["check"] == _checks(rows))
    if good.all():
        return rows, used
    # Something is torn: records are looked for wherever one begins.
    found: list[np.ndarray] = []
    magic, used = MAGIC.to_bytes(8, "little"), 0
    at = data.find(magic)
    while 0 <= at <= len(data) - size:
        row = np.frombuffer(data[at : at + size], _RECORD)
        whole = bool(row["check"][0] == _checks(row)[0])
        if whole:
            found.append(row)
            used = at + size
        at = data.find(magic, at + (size if whole else 1))
    return np.concatenate(found) if found else rows[:0], used

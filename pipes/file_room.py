"""The size bound of a folder of very many small files, which processes share."""

import errno
import fcntl
import os
import struct
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from .cache_room import PATIENCE, CacheTooSmall, remove_idle
from .fetch import write_at
from .own_file import OwnFile

SPARE = 10
"""What part of the bound is free after a scan that found too much."""

DRIFT = 5
"""After what part of the bound has been added the sum is corrected by a scan, at the latest."""

FOLDERS = 256
"""Folders that the files lie in, by the first two letters of their names."""

_LEDGER = struct.Struct("<qq")
_NAME = 16  # bytes that a file's name has as a hash, half as many as its letters


@dataclass(frozen=True)
class Scan:
    """What lies in the folder.

    Attributes:
        total: Bytes of all files, with all that unfinished ones will have.
        writing: Bytes of files that others are writing at this moment.
        times: Time of each finished file's last use, int64 [files], nanoseconds.
        sizes: Its bytes, int64 [files].
        names: Its name, as `bytes.fromhex` packs it.
    """

    total: int
    writing: int
    times: np.ndarray
    sizes: np.ndarray
    names: bytearray


@dataclass(frozen=True)
class FileRoom:
    """Makes room among the files ``<folder>/ab/ab…``, of which there may be millions.

    No file is looked at to add one: how much lies there is a sum in ``<folder>.used`` (bytes found
    by the last scan, bytes added since). Where that passes the bound, a scan finds out what is
    really there, and the least recently used go, down to 90 %: of a full folder, one scan for each
    tenth of the bound. A process adds before it writes, so that one that is killed leaves a sum
    that says too much, and never too little. What is read meanwhile may go too: an open file can be
    read to its end.

    Args:
        folder: The folder.
        limit: Most bytes in it; None: as the disk has.
        patience: Seconds to wait for room that other processes' files take while they are written.
    """

    folder: str
    limit: int | None
    patience: float = PATIENCE

    def write(self, fd: int, data: bytes, what: str) -> None:
        """Write a file's bytes, after what was used least recently has made way for it.

        Args:
            fd: The unfinished file, locked, empty.
            data: All of it.
            what: What it is, for errors.

        Raises:
            CacheTooSmall: It is larger than the bound, or with others that are written now.
            OSError: The disk is full, and nothing is left to be removed.
        """
        while True:
            self._take(fd, len(data), what)
            try:
                write_at(fd, data, 0)
                return
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                os.ftruncate(fd, 0)
                if not self._make_way_on_disk(fd):
                    raise OSError(
                        error.errno,
                        f"the disk of {self.folder} is full, and nothing more in this cache can "
                        f"go: no room for {what}; free some, or pass cache=… a folder on another "
                        "disk",
                    ) from error

    def _take(self, fd: int, size: int, what: str) -> None:
        """Make an unfinished file so long, within the bound."""
        deadline = time.monotonic() + self.patience
        while True:
            with self._ledger() as ledger:
                missing, others = self._add(ledger, fd, size)
                if missing <= 0:
                    os.ftruncate(fd, size)  # so that a scan by another counts all of it
                    return
            if missing > others or time.monotonic() > deadline:
                assert self.limit is not None
                raise CacheTooSmall(
                    f"{what} ({size:,} bytes) does not fit into {self.folder}, whose cache_size is "
                    f"{self.limit:,} bytes: it must be at least {self.limit + missing:,}, and for "
                    "speed what all workers' batches hold at once"
                )
            time.sleep(0.05)

    def _add(self, ledger: int, fd: int, size: int) -> tuple[int, int]:
        """Count a file in; return the bytes missing for it, and those that others write."""
        known = os.pread(ledger, _LEDGER.size, 0)
        found, added = _LEDGER.unpack(known) if len(known) == _LEDGER.size else (-1, 0)
        if self.limit is None:
            if found >= 0:  # else there is no sum to keep: who has a bound will scan
                _note(ledger, found, added + size)
            return 0, 0
        if found < 0 or found + added + size > self.limit or (added + size) * DRIFT > self.limit:
            scan = self.scan(fd)
            found, added = scan.total, 0
            if found + size > self.limit:
                goal = max(0, self.limit - self.limit // SPARE - size)
                found -= self._remove(scan, found - goal)
            if found + size > self.limit:
                _note(ledger, found, 0)
                return found + size - self.limit, scan.writing
        _note(ledger, found, added + size)
        return 0, 0

    def scan(self, but: int = -1) -> Scan:
        """Look at all files but the open file ``but``; remove what killed processes left."""
        total = writing = 0
        own = os.fstat(but) if but >= 0 else None
        times, sizes, names = array("q"), array("q"), bytearray()
        for folder in self._folders():
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError, ValueError):
                        stat = entry.stat(follow_symlinks=False)
                        if entry.name.endswith(".part"):
                            if own is not None and os.path.samestat(own, stat):
                                continue
                            if remove_idle(entry.path):
                                continue
                            writing += stat.st_size
                        else:
                            name = bytes.fromhex(entry.name)
                            if len(name) != _NAME:
                                continue
                            names += name
                            times.append(stat.st_mtime_ns)
                            sizes.append(stat.st_size)
                        total += stat.st_size
        return Scan(total, writing, np.array(times), np.array(sizes), names)

    def _folders(self) -> Iterator[str]:
        for i in range(FOLDERS):
            folder = os.path.join(self.folder, f"{i:02x}")
            if os.path.isdir(folder):
                yield folder

    def _remove(self, scan: Scan, count: int) -> int:
        """Remove the least recently used files of at least ``count`` bytes; return their bytes."""
        removed = 0
        for i in np.argsort(scan.times, kind="stable").tolist():
            if removed >= count:
                break
            name = scan.names[_NAME * i : _NAME * (i + 1)].hex()
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, name[:2], name))
            removed += int(scan.sizes[i])
        return removed

    def _make_way_on_disk(self, fd: int) -> bool:
        """Remove a tenth of all, the least recently used; return whether there was anything."""
        with self._ledger() as ledger:
            scan = self.scan(fd)
            removed = self._remove(scan, max(1, int(scan.sizes.sum()) // SPARE))
            _note(ledger, scan.total - removed, 0)
            return removed > 0

    @contextmanager
    def _ledger(self) -> Iterator[int]:
        """Open the sum, and keep all other processes and threads from it meanwhile."""
        with OwnFile(f"{self.folder}.used", os.O_RDWR | os.O_CREAT) as ledger:
            ledger.lock(fcntl.LOCK_EX)
            yield ledger.fd


def _note(ledger: int, found: int, added: int) -> None:
    os.pwrite(ledger, _LEDGER.pack(found, added), 0)

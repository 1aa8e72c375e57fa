"""The shard of entries that a process is writing."""

import errno
import fcntl
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from .entry_index import save_records
from .entry_shard import RECORD, TAIL, Entry, scan_entries
from .own_file import OwnFile

PART = ".part"
"""Ending of a shard's name while it is written, behind ``.tar``."""


class EntryPart:
    """An unfinished shard, which belongs to this process as long as it holds the kernel's lock.

    An entry is one write of whole blocks: it is whole as soon as its bytes are there. A kill leaves
    the file as it is, at the most with a torn entry at its end, for another process to go on with.

    Args:
        path: Its path, ``<stem>.tar.part``.
        file: The open file, locked.
        records: The entries that it has, `RECORD` [entries].
        end: Where they end.
    """

    def __init__(self, path: str, file: OwnFile, records: np.ndarray, end: int) -> None:
        self.path = path
        self.end = end
        self._file = file
        self._rows: list[tuple[int, ...]] = records.tolist()

    @classmethod
    def create(cls, folder: str) -> "EntryPart":
        """Begin a shard in a folder, which is made where there is none."""
        while True:
            os.makedirs(folder, exist_ok=True)
            path = os.path.join(folder, f"{secrets.token_hex(8)}.tar{PART}")
            file = OwnFile(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            # Another process may have adopted it already, or even found it empty and removed it.
            if file.lock(fcntl.LOCK_EX | fcntl.LOCK_NB) and file.is_at(path):
                return cls(path, file, np.empty(0, RECORD), 0)
            file.close()

    @classmethod
    def adopt(cls, path: str) -> "EntryPart | None":
        """Return the part of a process that has ended, its torn end cut off, or None.

        All checksums are looked at, since after a power cut any of its bytes may be missing: at the
        first entry that is not whole it is cut.

        Raises:
            OSError: It cannot be written.
        """
        try:
            file = OwnFile(path, os.O_RDWR)
        except FileNotFoundError:
            return None  # finished meanwhile
        if not file.lock(fcntl.LOCK_EX | fcntl.LOCK_NB) or not file.is_at(path):
            file.close()
            return None
        part = cls(path, file, np.empty(0, RECORD), 0)
        part._take_over()
        return part

    def _take_over(self) -> None:
        """Take in the whole entries behind the last known one, and cut off what is behind them."""
        found = scan_entries(self._file.fd, self.end, verify=True)
        end = min([found.end, *found.damaged])
        self._rows += [row for row in found.records.tolist() if row[3] < end]
        self.end = end
        os.ftruncate(self._file.fd, end)

    @property
    def owned(self) -> bool:
        """Whether it is this process's: not a forked child's whose parent writes it."""
        return self._file.fd >= 0

    @property
    def records(self) -> np.ndarray:
        """Its entries, `RECORD` [entries]."""
        return np.array(self._rows, RECORD)

    def append(self, entry: Entry, blocks: Sequence[bytes]) -> Entry:
        """Write an entry and return it with its place: it is whole when this returns.

        Args:
            entry: The entry, wherever it lay.
            blocks: Its blocks.

        Raises:
            OSError: It cannot be written, as where the disk is full; the part is as it was.
        """
        fd = self._file.fd
        if os.fstat(fd).st_size != self.end:  # an interrupt came between a write and its notice
            self._take_over()
        entry = entry._replace(offset=self.end)
        try:
            written = os.pwritev(fd, blocks, self.end)
            if written < entry.end - entry.offset:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, self.end)
            raise
        self._rows.append(entry.record)
        self.end = entry.end
        return entry

    def seal(self) -> str | None:
        """Finish the shard: return its path, ``<stem>.tar``; None where it held nothing."""
        path = self.path.removesuffix(PART)
        fd = self._file.fd
        if not self._rows:
            os.unlink(self.path)
            self._file.close()
            return None
        os.pwrite(fd, TAIL, self.end)
        os.fsync(fd)
        save_records(path, self.records, os.fstat(fd))
        os.rename(self.path, path)
        _sync_folder(os.path.dirname(path))
        self._file.close()
        return path

    def leave(self) -> None:
        """Give it up as it is, for another process to go on with."""
        self._file.close()


def _sync_folder(folder: str) -> None:
    fd = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

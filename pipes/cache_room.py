"""The size bound of a cache directory: which files go, and when nothing more can."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..transforms.byte_size import parse_size as parse_size
from .own_file import OwnFile

PATIENCE = 60.0
"""Seconds to wait for other processes' fetches where only what they are fetching is in the way."""


class CacheTooSmall(OSError):
    """What is in use at once is more than the cache may hold."""


@dataclass(frozen=True)
class Usage:
    """What lies in a cache directory.

    Attributes:
        total: Bytes of all files, with all that unfinished ones will have.
        idle: (time of the last use in ns, path, bytes) of files, the least recently used first.
        fetching: Bytes of files that others are writing.
    """

    total: int
    idle: list[tuple[int, str, int]]
    fetching: int


@dataclass(frozen=True)
class CacheRoom:
    """Makes room in a cache directory that processes share.

    All that it knows stands in the directory: sizes, times, and the kernel's locks. A finished
    file (``*.tar``) in use has a shared lock, an unfinished one (``*.part``) an exclusive one;
    those of a killed process are gone with it.

    Args:
        folder: The directory.
        limit: Most bytes in it; None: as the disk has.
        patience: Seconds to wait for room that other processes' fetches take.
    """

    folder: str
    limit: int | None
    patience: float = PATIENCE

    def reserve(self, fd: int, size: int, what: str) -> None:
        """Make an unfinished file so long, after what was idle has made way for it.

        Args:
            fd: The file, locked.
            size: Bytes that it will have, or has.
            what: What it is, for the error.

        Raises:
            CacheTooSmall: What is in use leaves no room; the message says how much is needed.
            OSError: The disk is full, and nothing more in the cache is idle.
        """
        deadline = time.monotonic() + self.patience
        while True:
            with self._alone():
                missing, others = self._make_way(fd, size)
                if missing <= 0:
                    self._allocate(fd, size, what)
                    return
            if missing > others or time.monotonic() > deadline:
                assert self.limit is not None
                raise CacheTooSmall(
                    f"{what} ({size:,} bytes) does not fit into {self.folder}: all the rest of its "
                    f"cache_size of {self.limit:,} bytes is in use at once by the processes of "
                    f"this machine; it must be at least {self.limit + missing:,} bytes, and more "
                    "for fetching ahead. Or take a smaller shuffle window, fewer lanes a machine, "
                    "or smaller shards"
                )
            time.sleep(0.05)

    def _make_way(self, fd: int, size: int) -> tuple[int, int]:
        """Remove idle files for the file ``fd``; return the bytes missing, and those on the way."""
        if self.limit is None:
            return 0, 0
        usage = self.usage(fd)
        missing = usage.total + size - self.limit
        for _, path, freed in usage.idle:
            if missing <= 0:
                break
            if remove_idle(path):
                missing -= freed
        return missing, usage.fetching

    def usage(self, but: int = -1) -> Usage:
        """Return what lies in the directory but for the open file ``but``; remove what killed
        processes left unfinished."""
        own = os.fstat(but) if but >= 0 else None
        total, idle, fetching = 0, list[tuple[int, str, int]](), 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if not entry.name.endswith((".tar", ".part")):
                    continue
                with suppress(FileNotFoundError):
                    stat = entry.stat(follow_symlinks=False)
                    if own is not None and os.path.samestat(stat, own):
                        continue
                    if entry.name.endswith(".tar"):
                        idle.append((stat.st_mtime_ns, entry.path, stat.st_size))
                    elif remove_idle(entry.path):
                        continue
                    else:
                        fetching += stat.st_size
                    total += stat.st_size
        return Usage(total, sorted(idle), fetching)

    def _allocate(self, fd: int, size: int, what: str) -> None:
        """Take the disk's room, so that a full one is known before anything is fetched."""
        while True:
            try:
                if size > os.fstat(fd).st_size:
                    _extend(fd, size)
                return
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                os.ftruncate(fd, 0)
                if not self._remove_oldest(fd):
                    raise full_disk(self.folder, what, error) from error

    def make_way_on_disk(self, fd: int) -> bool:
        """Remove the least recently used idle file; return whether there was one."""
        with self._alone():
            return self._remove_oldest(fd)

    def _remove_oldest(self, fd: int) -> bool:
        return any(remove_idle(path) for _, path, _ in self.usage(fd).idle)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from making room meanwhile."""
        with OwnFile(f"{self.folder}.lock", os.O_RDWR | os.O_CREAT) as lock:
            lock.lock(fcntl.LOCK_EX)
            yield


def full_disk(folder: str, what: str, error: OSError) -> OSError:
    """Return the error for a disk that is full, with nothing idle left on it."""
    return OSError(
        error.errno,
        f"the disk of {folder} is full, and nothing in this cache is idle: no room for {what}; "
        "free some, or pass ShardLister(cache=…) a folder on another disk",
    )


def remove_idle(path: str) -> bool:
    """Remove a file that no process has locked; return whether it was removed."""
    try:
        file = OwnFile(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    with file:
        # Where it is not at this path any more, another took its place, or it is gone.
        if not file.lock(fcntl.LOCK_EX | fcntl.LOCK_NB) or not file.is_at(path):
            return False
        os.unlink(path)
        return True


def _extend(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    os.ftruncate(fd, size)  # no such call here, or not on this filesystem

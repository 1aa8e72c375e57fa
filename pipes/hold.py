"""Files of the cache in use: locked, so that no process of the machine removes them."""

import fcntl
import os
import weakref

from .cache_room import is_at
from .remote import Version


class Hold:
    """A file of the cache in use: while this is open, no process of the machine removes it.

    The lock is the kernel's, on an open file of this process: when it dies, its locks are gone.

    Attributes:
        path: The local, uncompressed file.
        version: The version of its source.
        fd: The open file.
        touch: Whether closing it counts as a use.
    """

    def __init__(self, path: str, version: Version, fd: int) -> None:
        self.path = path
        self.version = version
        self.fd = fd
        self.touch = True
        _HOLDS.add(self)

    def close(self) -> None:
        """Let it go; from now on it counts as used lately."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            if self.touch:
                touch(fd)
            os.close(fd)

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


_HOLDS: "weakref.WeakSet[Hold]" = weakref.WeakSet()


def _leave_to_parent() -> None:
    # A child shares its parent's locks until it closes what it inherited.
    for hold in list(_HOLDS):
        fd, hold.fd = hold.fd, -1
        if fd >= 0:
            os.close(fd)


os.register_at_fork(after_in_child=_leave_to_parent)


def touch(fd: int) -> None:
    """Note that a file was used now: the least recently used goes first."""
    os.utime(fd)


def hold_at(path: str, version: Version) -> Hold | None:
    """Return a file of the cache in use, or None where it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        if is_at(fd, path):  # nobody removed it while we waited
            touch(fd)
            hold, fd = Hold(path, version, fd), -1
            return hold
        return None
    finally:
        if fd >= 0:
            os.close(fd)

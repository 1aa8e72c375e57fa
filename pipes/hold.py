"""Files of the cache in use: locked, so that no process of the machine removes them."""

import fcntl
import os

from .own_file import OwnFile
from .remote import Version


class Hold:
    """A file of the cache in use: while this is open, no process of the machine removes it.

    The lock is the kernel's, on an open file of this process: when it dies, its locks are gone.

    Attributes:
        path: The local, uncompressed file.
        version: The version of its source.
        touch: Whether closing it counts as a use.
    """

    def __init__(self, path: str, version: Version, file: OwnFile) -> None:
        self.path = path
        self.version = version
        self.touch = True
        self._file = file

    @property
    def fd(self) -> int:
        """The open file; -1 where it is closed, or was a parent's of this process."""
        return self._file.fd

    def close(self) -> None:
        """Let it go; from now on it counts as used lately."""
        if self.touch and self.fd >= 0:
            os.utime(self.fd)  # the least recently used goes first
        self._file.close()

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hold_at(path: str, version: Version) -> Hold | None:
    """Return a file of the cache in use, or None where it is not there."""
    try:
        file = OwnFile(path)
    except FileNotFoundError:
        return None
    # Whoever has it locked alone is about to be done: it is being removed, or was just made.
    file.lock(fcntl.LOCK_SH)
    if not file.is_at(path):  # it was removed while we waited
        file.close()
        return None
    os.utime(file.fd)
    return Hold(path, version, file)

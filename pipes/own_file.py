"""Open files that no forked child shares, and with them their locks."""

import fcntl
import os
import threading
from typing import NoReturn

_MUTEX = threading.RLock()  # a garbage collection may close a file while this thread opens one


class _Descriptor:
    """The number of an open file; -1 once it is closed."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd


_OPEN: set[_Descriptor] = set()


class OwnFile:
    """An open file of this process alone.

    A lock of the kernel's (``flock``) belongs to the open file, and a forked child has its parent's
    open files: it would go on holding a lock that its parent gave up long ago. So each child closes
    these files as it begins. No other thread can open or close one during a fork: a child closes
    all of them, and never a number that has become another file's.

    Args:
        path: The file.
        flags: As for `os.open`.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: str, flags: int = os.O_RDONLY) -> None:
        with _MUTEX:
            self._descriptor = _Descriptor(os.open(path, flags | os.O_CLOEXEC, 0o666))
            _OPEN.add(self._descriptor)

    @property
    def fd(self) -> int:
        """The open file; -1 where it is closed, or was opened by a parent of this process."""
        return self._descriptor.fd

    def lock(self, kind: int) -> bool:
        """Take a lock (``fcntl.LOCK_SH``, ``LOCK_EX``), waiting for it unless with ``LOCK_NB``.

        Returns whether it is taken.
        """
        try:
            fcntl.flock(self.fd, kind)
        except BlockingIOError:
            return False
        return True

    def is_at(self, path: str) -> bool:
        """Return whether the file still has this name."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close it, and so give up its lock. Closing it once more does nothing."""
        with _MUTEX:
            fd, self._descriptor.fd = self._descriptor.fd, -1
            if fd >= 0:
                _OPEN.discard(self._descriptor)
                os.close(fd)

    def __enter__(self) -> "OwnFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # it was opened
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open file is of one process, and cannot be pickled")


def _close_in_child() -> None:
    for descriptor in _OPEN:
        fd, descriptor.fd = descriptor.fd, -1
        os.close(fd)
    _OPEN.clear()
    _MUTEX.release()


os.register_at_fork(
    before=_MUTEX.acquire, after_in_parent=_MUTEX.release, after_in_child=_close_in_child
)

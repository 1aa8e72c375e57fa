"""Files that several processes want made, and one makes."""

import fcntl
import os
from collections.abc import Callable

from .own_file import OwnFile


def make_once(
    target: str,
    write: Callable[[int], str | object],
    made: Callable[[], bool] | None = None,
    sync: bool = True,
) -> None:
    """Have ``write`` make the file ``target``, unless another process does.

    The lock is on the unfinished file itself, and is the kernel's: that of a killed process is gone
    with it, and what it left is overwritten by the next one.

    Args:
        target: The file; its unfinished form is ``target.part``.
        write: Writes it, to an open file that is empty; where it returns a path, that is the file's
            name instead.
        made: Returns whether the file is there (default: whether ``target`` is).
        sync: Whether it is on the disk before it gets its name. Otherwise it may be damaged after
            a loss of power, and whoever reads it must find that out.
    """
    done = made or (lambda: os.path.exists(target))
    part = target + ".part"
    while not done():
        # Not truncated: what another process is writing must stay.
        with OwnFile(part, os.O_RDWR | os.O_CREAT) as out:
            if not out.lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
                # A shared lock is had as soon as the file is made, though others use it by then.
                out.lock(fcntl.LOCK_SH)
                continue
            if not out.is_at(part):
                continue  # in between it was finished and renamed, or given up
            if done():
                os.unlink(part)
                return
            try:
                os.ftruncate(out.fd, 0)
                name = write(out.fd)
                if sync:
                    os.fsync(out.fd)
                os.replace(part, name if isinstance(name, str) else target)
            except BaseException:
                os.unlink(part)
                raise

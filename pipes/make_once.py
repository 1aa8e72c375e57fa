"""Files that several processes want made, and one makes."""

import fcntl
import os
from collections.abc import Callable
from typing import BinaryIO

from .cache_room import is_at


def make_once(
    target: str,
    write: Callable[[BinaryIO], str | object],
    made: Callable[[], bool] | None = None,
    sync: bool = True,
) -> None:
    """Have ``write`` make the file ``target``, unless another process does.

    The lock is on the unfinished file itself, and is the kernel's: that of a killed process is gone
    with it, and what it left is overwritten by the next one.

    Args:
        target: The file; its unfinished form is ``target.part``.
        write: Writes it; where it returns a path, that is the file's name instead.
        made: Returns whether the file is there (default: whether ``target`` is).
        sync: Whether it is on the disk before it gets its name. Otherwise it may be damaged after
            a loss of power, and whoever reads it must find that out.
    """
    done = made or (lambda: os.path.exists(target))
    part = target + ".part"
    while not done():
        # Not truncated: what another process is writing must stay.
        with open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as out:
            fcntl.flock(out, fcntl.LOCK_EX)
            if not is_at(out.fileno(), part):
                continue  # while we waited it was finished and renamed, or given up
            if done():
                os.unlink(part)
                return
            try:
                out.truncate(0)
                name = write(out)
                out.flush()
                if sync:
                    os.fsync(out.fileno())
                os.replace(part, name if isinstance(name, str) else target)
            except BaseException:
                os.unlink(part)
                raise

"""Single remote files, each fetched once into the cache."""

import fcntl
import os
import time
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, BinaryIO

from fsspec.core import url_to_fs

from .errors import DataError
from .local_file import cache_root
from .read import read_extent
from .sample import Extent, Stored

TRIES = 4
"""How often a file is fetched before its error is raised; half a second apart, then twice that."""

_GONE = (400, 401, 403, 404, 405, 410, 414, 451)
"""Answers of an http server that the next try will get too."""


class RemoteFile(Stored):
    """A field that lies at a URL. The file is fetched when it is first read, and kept.

    It is taken for never changing: what the cache has is not fetched again.

    Args:
        url: Whatever fsspec opens.
        cache: Folder of the cache, see `cache_root`.
        version: What tells the file's versions apart; "" where it never changes.
        options: fsspec's storage options.
    """

    __slots__ = ("cache", "options", "url", "version")

    def __init__(
        self,
        url: str,
        cache: str | None = None,
        version: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.url = url
        self.cache = cache
        self.version = version
        self.options = options

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            DataError: There is no such file, or the server refuses it.
            OSError: It cannot be fetched, or the cache cannot be written.
        """
        path = self.local()
        return read_extent(Extent(path, 0, os.stat(path).st_size))

    def local(self) -> str:
        """Return the path of the file in the cache, fetched if need be; raises as `read`."""
        name = f"{self.url} {self.version}".encode("utf-8", "surrogateescape")
        digest = blake2b(name, digest_size=16).hexdigest()
        folder = os.path.join(cache_root(self.cache), "files", digest[:2])
        target = os.path.join(folder, digest)
        if not os.path.exists(target):
            os.makedirs(folder, exist_ok=True)
            _fetch_once(self.url, target, self.options)
        return target


def _fetch_once(url: str, target: str, options: Mapping[str, Any] | None = None) -> None:
    """Make the file ``target``, unless another process does.

    The lock is on the unfinished file, and is the kernel's: a killed process leaves none behind.
    """
    part = target + ".part"
    while not os.path.exists(target):
        with open(part, "ab") as out:  # "ab": what another process is writing must stay
            fcntl.flock(out, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(out.fileno()), os.stat(part))
            except FileNotFoundError:
                same = False
            if not same:
                continue  # while we waited it was finished and renamed, or given up
            try:
                for attempt in range(TRIES):
                    out.truncate(0)
                    if _fetch(url, out, attempt == TRIES - 1, options):
                        break
                    time.sleep(0.5 * 2**attempt)
                out.flush()
                os.fsync(out.fileno())
                os.replace(part, target)
            except BaseException:
                os.unlink(part)
                raise


def _fetch(url: str, out: BinaryIO, last: bool, options: Mapping[str, Any] | None = None) -> bool:
    """Write the file at ``url`` to ``out``; return False where another try may help."""
    try:
        fs, inside = url_to_fs(url, **(options or {}))
        # Not open(): of an http server's every fault it says that there is no such file.
        out.write(fs.cat_file(inside))
        return True
    except FileNotFoundError as error:
        raise DataError(f"there is no file at {url}") from error
    except Exception as error:
        status = getattr(error, "status", None)
        if status in _GONE or isinstance(error, PermissionError):
            raise DataError(f"{url} is refused: {error}") from error
        if not last:
            return False
        raise OSError(f"{url} cannot be fetched: {type(error).__name__}: {error}") from error

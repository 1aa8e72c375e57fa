"""Single remote files, each fetched once into a cache that all processes of a machine share."""

import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import fsspec

from .errors import DataError
from .file_room import FileRoom
from .get_file import get_file
from .make_once import make_once
from .remote import Remote, hash_name
from .sample import Stored
from .shard_cache import cache_root
from .urls import local_path

T = TypeVar("T")

_SEAL = struct.Struct("<II")
"""What stands behind a file's bytes: their CRC-32, and their number."""


@dataclass(frozen=True)
class FileCache:
    """Keeps the files of URLs in ``<root>/files``, up to a bound.

    Whole or not at all: a file is fetched under a temporary name, checked against the size that the
    server tells, and renamed. A seal behind its bytes tells whether a loss of power has damaged it:
    to wait until each small file is on the disk would take longer than to fetch it. Of the
    processes and threads that want one at once, one fetches it. The least recently used go first. A
    file is taken for never changing: what is there is not asked for again. Holds nothing but its
    arguments: may be pickled and forked.

    Args:
        root: The cache's folder, see `cache_root`.
        limit: Most bytes of its files; None: no bound.
        remote: How remote files are reached.
    """

    root: str | None = None
    limit: int | None = None
    remote: Remote = field(default_factory=Remote)

    @property
    def folder(self) -> str:
        """Where the files lie, in folders by the first letters of their names."""
        return os.path.join(cache_root(self.root), "files")

    def path(self, url: str) -> str:
        """Return where the file of a URL lies, when the cache has it."""
        name = hash_name(f"{url} {_endpoint(self.remote)}")
        return os.path.join(self.folder, name[:2], name)

    def has(self, url: str) -> bool:
        """Return whether the cache has a file at this moment."""
        return os.path.exists(self.path(url))

    def read(self, url: str) -> bytes:
        """Return a file's bytes; it is fetched where it is not there.

        Raises:
            DataError: There is no such file, or the server refuses it.
            CacheTooSmall: It is larger than the bound.
            OSError: It cannot be fetched, or the cache cannot be written.
        """
        path = self.path(url)
        while True:
            # No lock, as a shard has: what another process removes now can be read to its end.
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                data = self._fetch(url, path)
                if data is not None:
                    return data
                continue  # another process has fetched it; it may be gone again
            with open(fd, "rb", buffering=0) as file:
                os.utime(fd)  # the least recently used goes first
                found = _unsealed(file.readall())
            if found is not None:
                return found
            with suppress(FileNotFoundError):
                os.unlink(path)

    def fetch(self, url: str) -> None:
        """Have the cache hold a file; raises as `read`."""
        path = self.path(url)
        if not os.path.exists(path):
            self._fetch(url, path)

    def _fetch(self, url: str, path: str) -> bytes | None:
        """Have the file be there; return its bytes where no other has fetched it meanwhile."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        data: bytes | None = None

        def write(fd: int) -> None:
            nonlocal data
            data = get_file(self.remote, url)
            FileRoom(self.folder, self.limit).write(fd, data + _seal(data), url)

        make_once(path, write, sync=False)
        return data

    def parallel(self, url: str) -> bool:
        """Return whether several threads can fetch at once what lies where this URL does.

        A filesystem that is not asynchronous may not be made for threads.
        """
        try:
            kind = fsspec.get_filesystem_class(url.partition("://")[0].partition("::")[0])
        except (ImportError, ValueError):
            return False  # said when it is fetched
        return bool(kind.async_impl)


class RemoteFile(Stored):
    """A field that lies at a URL. The file is fetched when it is read, or ahead of that, and kept.

    Args:
        url: Whatever fsspec opens.
        cache: Keeps it.
        where: Words for the row that names it, such as ``/data/train.csv, line 7``.
    """

    __slots__ = ("cache", "url", "where")

    def __init__(self, url: str, cache: FileCache | None = None, where: str = "") -> None:
        self.url = url
        self.cache = cache or FileCache()
        self.where = where

    @property
    def far(self) -> bool:
        return self.cache.parallel(self.url) and not self.cache.has(self.url)

    def fetch(self) -> None:
        self._named(self.cache.fetch)

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            DataError: There is no such file, or the server refuses it.
            OSError: It cannot be fetched, or the cache cannot be written.
        """
        return self._named(self.cache.read)

    def _named(self, get: Callable[[str], T]) -> T:
        """Return ``get(url)``; its errors say which row wants the file."""
        try:
            return get(self.url)
        except DataError as error:
            if not self.where:
                raise
            raise DataError(f"{self.where}: {error}") from error
        except OSError as error:
            if self.where:
                error.add_note(f"wanted by {self.where}")
            raise


def _seal(data: bytes) -> bytes:
    return _SEAL.pack(zlib.crc32(data), len(data) & 0xFFFFFFFF)


def _unsealed(found: bytes) -> bytes | None:
    """Return a file's bytes without their seal; None where it does not fit them."""
    data = found[: -_SEAL.size]
    return data if found[-_SEAL.size :] == _seal(data) else None


def takes_options(manifest: str, url: str) -> bool:
    """Return whether the storage options are for a URL in a manifest: an S3 key is not for http."""
    if local_path(manifest) is not None:
        return True
    one, other = (place.partition("://")[0].removesuffix("s") for place in (manifest, url))
    return one == other


def _endpoint(remote: Remote) -> str:
    """Return the server where the options name one: elsewhere, a bucket's name is another's."""
    options = remote.options or {}
    inner = options.get("client_kwargs")
    inner = inner.get("endpoint_url") if isinstance(inner, dict) else None
    return str(options.get("endpoint_url") or inner or "")

"""The cache of shards: each a local, uncompressed file, fetched once for all processes."""

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import file_digest
from io import BufferedReader
from typing import BinaryIO

from .cache_room import PATIENCE, CacheRoom, full_disk
from .fetch import fetch, write_at
from .hold import Hold, hold_at
from .make_once import make_once
from .own_file import OwnFile
from .remote import Info, Remote, ShardReplaced, Version, hash_name
from .unpack import is_packed, unpack
from .urls import local_path

SOON = 600 * 10**9
"""Nanoseconds by which the use of a shard fetched ahead is dated forward."""


def cache_root(cache: str | None = None) -> str:
    """Return the folder that holds indexes and fetched shards.

    It is ``cache``, else ``$PENSTOCK_CACHE``, else ``$XDG_CACHE_HOME/penstock``, else
    ``~/.cache/penstock``; absolute, not necessarily there.
    """
    given = cache or os.environ.get("PENSTOCK_CACHE")
    if given:
        return os.path.abspath(os.path.expanduser(given))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(os.path.abspath(base), "penstock")


@dataclass(frozen=True)
class ShardCache:
    """Keeps remote shards, and compressed ones unpacked, in ``<root>/shards``, up to a bound.

    Whole or not at all: a shard is fetched into a file of a temporary name, checked against the
    remote size and ETag, and renamed. Of the processes of a machine that want one at once, one
    fetches it. The least recently used goes first, never one in use. Holds nothing but its
    arguments: may be pickled and forked.

    Args:
        root: The cache's folder, see `cache_root`.
        limit: Most bytes of its shards; None: no bound.
        remote: How remote files are reached.
        max_unpacked: Most bytes that a shard may have unpacked: the limit to decompression bombs.
        patience: Seconds to wait for room that other processes' fetches take.
    """

    root: str | None = None
    limit: int | None = None
    remote: Remote = field(default_factory=Remote)
    max_unpacked: int = 1 << 40
    patience: float = PATIENCE

    @property
    def folder(self) -> str:
        """Where the shards lie."""
        return os.path.join(cache_root(self.root), "shards")

    def info(self, url: str) -> Info:
        """Return what is there now of a source; nothing is fetched.

        Raises:
            FileNotFoundError: If there is no such shard.
        """
        path = local_path(url)
        if path is None:
            return self.remote.info(url)
        try:
            stat = os.stat(path)
        except FileNotFoundError as err:
            raise FileNotFoundError(f"no such shard: {url}") from err
        return Info(Version(stat.st_size, stat.st_mtime_ns))

    def version(self, url: str) -> Version:
        """Return the version of a source: the one last fetched where a server does not tell.

        Raises:
            FileNotFoundError: If there is no such shard.
        """
        return self.version_of(url, self.info(url))

    def version_of(self, url: str, info: Info) -> Version:
        """Return the version of a source of which this is known: see `version`."""
        if not info.version.known and local_path(url) is None:
            return self._recorded(url) or info.version
        return info.version

    def path(self, url: str, version: Version) -> str:
        """Return where a version of a shard lies, when the cache has it."""
        name = hash_name(f"{local_path(url) or url} {version.size} {version.mark}")
        return os.path.join(self.folder, f"{name}.tar")

    def has(self, url: str, version: Version) -> bool:
        """Return whether the cache has a version of a shard at this moment."""
        return os.path.exists(self.path(url, version))

    def hold(self, url: str, version: Version | None = None, info: Info | None = None) -> Hold:
        """Return a shard's file in the cache, in use; it is fetched where it is not there.

        Args:
            url: The shard: remote, or a compressed local file.
            version: The version that it must have; None: the present one.
            info: What the server said of that version, where it was asked.

        Raises:
            FileNotFoundError: If there is no such shard.
            ShardReplaced: It has another version.
            DataError: If its compressed data is damaged, or too large.
            CacheTooSmall: There is no room for it.
            OSError: If it cannot be fetched whole, or the cache cannot be written.
        """
        expected = version
        while True:
            if version is None:
                info = self.info(url)
                version = self.version_of(url, info)
            path = self.path(url, version)
            if version.known and (hold := hold_at(path, version)):
                return hold
            version, info = self._fetch_once(url, expected, info), None

    def fetch_ahead(self, url: str, version: Version | None) -> Version:
        """Fetch a shard that will be needed soon, where it is not there and there is room for it.

        It is not in use yet, but goes after all that are not either. Returns its version.

        Raises:
            Exception: As `hold`; what is wrong will be so when the shard is needed.
        """
        if version is not None and version.known and self.has(url, version):
            return version
        with replace(self, patience=0.0).hold(url, version) as hold:
            os.utime(hold.fd, ns=(0, time.time_ns() + SOON))
            hold.touch = False
            return hold.version

    def _fetch_once(self, url: str, expected: Version | None, info: Info | None) -> Version:
        """Have the cache hold a shard, by this process or another, and return its version.

        ``info`` is what the server has just said of it, where it was asked.
        """
        info = info or self.info(url)
        told = info.version.known or local_path(url) is not None
        if told and expected is not None and info.version != expected:
            raise ShardReplaced.of(url)
        os.makedirs(self.folder, exist_ok=True)

        def made() -> bool:
            version = info.version if told else self._recorded(url)
            return version is not None and self.has(url, version)

        def write(fd: int) -> str:
            version = self._write(url, info, told, fd)
            if expected is not None and version != expected:
                raise ShardReplaced.of(url)
            if not told:
                self._record(url, version)
            return self.path(url, version)

        target = self.path(url, info.version)  # of an untold version: a name to meet at
        while True:
            try:
                make_once(target, write, made)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
                    raise
                if not self._room.make_way_on_disk(-1):
                    raise full_disk(self.folder, url, error) from error
                continue
            version = info.version if told else self._recorded(url)
            assert version is not None
            return version

    @property
    def _room(self) -> CacheRoom:
        return CacheRoom(self.folder, self.limit, self.patience)

    def _write(self, url: str, info: Info, told: bool, fd: int) -> Version:
        """Write a shard, unpacked, to ``fd``; return its version."""
        local = local_path(url)
        if local is not None:
            with open(local, "rb") as source:
                self._unpack(url, source, fd)
            return info.version
        self._room.reserve(fd, max(0, info.version.size), url)
        fetch(self.remote, url, info, fd)
        version = info.version
        if not told:
            with _reading(fd) as file:
                digest = file_digest(file, "blake2b")
            size = os.fstat(fd).st_size
            version = Version(size, int.from_bytes(digest.digest()[:7], "big") or 1)
            self._room.reserve(fd, size, url)
        if is_packed(os.pread(fd, 4, 0)):
            with self._moved_aside(fd) as source:
                self._unpack(url, source, fd)
        return version

    def _unpack(self, url: str, source: BinaryIO, fd: int) -> None:
        unpack(url, source, fd, self.max_unpacked)
        self._room.reserve(fd, os.fstat(fd).st_size, f"{url}, unpacked,")

    @contextmanager
    def _moved_aside(self, fd: int) -> Iterator[BinaryIO]:
        """Yield a file with what ``fd`` holds, which becomes empty."""
        aside = f"{self.folder}/{hash_name(str(os.fstat(fd).st_ino))}-packed.part"
        with OwnFile(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as packed:
            packed.lock(fcntl.LOCK_EX)
            try:
                at = 0
                while chunk := os.pread(fd, 1 << 20, at):
                    write_at(packed.fd, chunk, at)
                    at += len(chunk)
                os.ftruncate(fd, 0)
                with _reading(packed.fd) as source:
                    yield source
            finally:
                os.unlink(aside)

    def _record_path(self, url: str) -> str:
        return os.path.join(cache_root(self.root), "index", f"{hash_name(url)}.version")

    def _recorded(self, url: str) -> Version | None:
        """Return the version last fetched of a source that tells none."""
        try:
            with open(self._record_path(url), encoding="ascii") as file:
                size, mark = json.load(file)
            return Version(int(size), int(mark))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _record(self, url: str, version: Version) -> None:
        path = self._record_path(url)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        new = f"{path}.{os.getpid()}.tmp"
        with open(new, "w", encoding="ascii") as file:
            json.dump(list(version), file)
        os.replace(new, path)


@contextmanager
def _reading(fd: int) -> Iterator[BufferedReader]:
    """Yield what an open file has, from its byte 0; it stays open."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        yield file

"""Every shard as a local, uncompressed file: read in place, or fetched and unpacked once."""

import fcntl
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO

from fsspec.core import url_to_fs

from .errors import DataError
from .urls import local_path

CHUNK = 1 << 20
"""Bytes that are read, or unpacked, at once."""

# No name of a tar's first member begins so: neither is UTF-8.
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"

# What tells versions of a remote file apart, as the filesystems of fsspec call it, the best first.
_VERSIONS = (
    *("ETag", "etag", "generation", "md5Hash", "Content-MD5", "Digest", "blob_id", "sha256"),
    *("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified", "created"),
)


@dataclass(frozen=True)
class LocalFile:
    """Where a shard can be read, and what tells its source's versions apart.

    Attributes:
        path: The local, uncompressed file.
        size: Size of the source in bytes, packed as it is; -1 where a server does not tell.
        mtime_ns: Time of the source in nanoseconds; of a remote one, a number made from its ETag,
            or else from its time (0 where it has neither: it is then taken for never changing).
    """

    path: str
    size: int
    mtime_ns: int


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


def local_file(url: str, cache: str | None = None, *, max_unpacked: int = 1 << 40) -> LocalFile:
    """Return the shard at ``url`` as a local, uncompressed file.

    A local tar is returned as it lies. A remote one is fetched whole, and one whose first bytes are
    gzip's or Zstandard's, whatever its name, is unpacked, into ``<cache>/shards``: once for each
    version of the source, also where several processes ask at once.

    Args:
        url: Path, or URL that fsspec opens.
        cache: See `cache_root`.
        max_unpacked: Most bytes that a shard may have unpacked: the limit to decompression bombs.

    Raises:
        FileNotFoundError: If there is no such shard.
        DataError: If its compressed data is damaged, or larger than ``max_unpacked``.
        OSError: If it cannot be fetched whole, or the cache cannot be written.
    """
    size, mtime_ns = source_version(url)
    path = local_path(url)
    if path is not None and not _is_compressed(path):
        return LocalFile(path, size, mtime_ns)
    target = cached_path(url, size, mtime_ns, cache)
    if not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _make_once(target, lambda out: _fetch(url, size, max_unpacked, out))
    return LocalFile(target, size, mtime_ns)


def source_version(url: str) -> tuple[int, int]:
    """Return the size and the time of a shard's source, as in `LocalFile`; nothing is fetched.

    Raises:
        FileNotFoundError: If there is no such shard.
    """
    path = local_path(url)
    try:
        if path is not None:
            stat = os.stat(path)
            return stat.st_size, stat.st_mtime_ns
        fs, inside = url_to_fs(url)
        info: dict[str, Any] = fs.info(inside)
    except FileNotFoundError as err:
        raise FileNotFoundError(f"no such shard: {url}") from err
    size = info.get("size")
    mark = next((f"{name}={info[name]}" for name in _VERSIONS if info.get(name)), None)
    version = 0 if mark is None else int(_hash(mark)[:15], 16)
    return -1 if size is None else int(size), version


def cached_path(url: str, size: int, mtime_ns: int, cache: str | None = None) -> str:
    """Return where the cache keeps a shard's version, fetched and unpacked, when it has it."""
    name = _hash(f"{local_path(url) or url} {size} {mtime_ns}")
    return os.path.join(cache_root(cache), "shards", f"{name}.tar")


def _hash(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _is_compressed(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4).startswith((_GZIP, _ZSTD))


def _make_once(target: str, write: Callable[[BinaryIO], None]) -> None:
    """Have ``write`` make the file ``target``, unless another process does.

    The lock is on the unfinished file itself, and is the kernel's: that of a killed process is gone
    with it, and what it left is overwritten by the next one.
    """
    part = target + ".part"
    while not os.path.exists(target):
        with open(part, "ab") as out:  # "ab": what another process is writing must stay
            fcntl.flock(out, fcntl.LOCK_EX)
            if not _is_at(out, part):
                continue  # while we waited it was finished and renamed, or given up
            if os.path.exists(target):
                os.unlink(part)
                return
            try:
                out.truncate(0)
                write(out)
                out.flush()
                os.fsync(out.fileno())
                os.replace(part, target)
            except BaseException:
                os.unlink(part)
                raise


def _is_at(file: BinaryIO, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


class _Input:
    """A file that is read in order: counts its bytes, and lets one look at the first ones."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._head = b""
        self.count = 0

    def peek(self, size: int) -> bytes:
        while len(self._head) < size and (more := self._file.read(size - len(self._head))):
            self._head += more
        return self._head

    def read(self, size: int = CHUNK) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        data = data or self._file.read(size)
        self.count += len(data)
        return data


def _fetch(url: str, size: int, limit: int, out: BinaryIO) -> None:
    """Write the shard at ``url``, unpacked, to ``out``."""
    # Opened here and closed here: neither files nor filesystems survive a fork.
    fs, inside = url_to_fs(local_path(url) or url)
    with fs.open(inside, "rb") as file:
        source = _Input(file)
        head = source.peek(4)
        unpacked = _unpacked(source, head)
        written = 0
        try:
            for chunk in unpacked:
                written += len(chunk)
                if written > limit:
                    raise DataError(
                        f"{url}: unpacks to more than {limit:,} bytes; if it is no decompression "
                        "bomb, raise max_unpacked"
                    )
                out.write(chunk)
        except _BadData as err:
            while source.read():
                pass
            _check_whole(url, source.count, size)
            raise DataError(f"{url}: its compressed data is damaged or truncated: {err}") from err
        _check_whole(url, source.count, size)


class _BadData(Exception):
    """Compressed data that cannot be unpacked."""


def _check_whole(url: str, count: int, size: int) -> None:
    if size >= 0 and count != size:
        raise OSError(f"{url}: got {count:,} bytes of {size:,}")


def _unpacked(source: _Input, head: bytes) -> Iterator[bytes]:
    if head.startswith(_GZIP):
        return _gunzip(source)
    return _unzstd(source) if head == _ZSTD else iter(source.read, b"")


def _gunzip(source: _Input) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=source) as file:  # type: ignore[call-overload]
            while chunk := file.read(CHUNK):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as err:
        raise _BadData(err) from err


def _unzstd(source: _Input) -> Iterator[bytes]:
    """Yield the content of all frames; `stream_reader` would take a truncated one for its end."""
    import zstandard

    # One block of at least 4 bytes may unpack to 128 KiB, all of it at once: 1 KiB to 32 MiB.
    step = 1024
    frame = None
    try:
        while packed := source.read():
            for start in range(0, len(packed), step):
                rest = packed[start : start + step]
                while rest:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(rest)
                    rest = b""
                    if frame.eof:
                        rest, frame = frame.unused_data, None
    except zstandard.ZstdError as err:
        raise _BadData(err) from err
    if frame is not None:
        raise _BadData("it ends inside a frame")

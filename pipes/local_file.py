"""Every shard as a local, uncompressed file: read in place, or fetched and unpacked once."""

from dataclasses import dataclass

from .remote import Version
from .shard_cache import ShardCache, cache_root
from .unpack import is_packed
from .urls import local_path


@dataclass(frozen=True)
class LocalFile:
    """Where a shard can be read, and what tells its source's versions apart.

    Attributes:
        path: The local, uncompressed file.
        size: Size of the source in bytes, packed as it is; -1 where a server does not tell.
        mtime_ns: Time of the source in nanoseconds; of a remote one, a number made from its ETag,
            or else from its time, or from its content where it has neither.
    """

    path: str
    size: int
    mtime_ns: int


def local_file(url: str, cache: str | None = None, *, max_unpacked: int = 1 << 40) -> LocalFile:
    """Return the shard at ``url`` as a local, uncompressed file.

    A local tar is returned as it lies. A remote one is fetched whole, and one whose first bytes are
    gzip's or Zstandard's, whatever its name, is unpacked, into ``<cache>/shards``: once for each
    version of the source, also where several processes ask at once. Processes that bound the cache
    may remove the file: `ShardCache.hold` keeps it.

    Args:
        url: Path, or URL that fsspec opens.
        cache: See `cache_root`.
        max_unpacked: Most bytes that a shard may have unpacked: the limit to decompression bombs.

    Raises:
        FileNotFoundError: If there is no such shard.
        DataError: If its compressed data is damaged, or larger than ``max_unpacked``.
        OSError: If it cannot be fetched whole, or the cache cannot be written.
    """
    store = ShardCache(cache, max_unpacked=max_unpacked)
    if in_place(url):
        version = store.version(url)
        return LocalFile(local_path(url) or url, *version)
    with store.hold(url) as hold:
        return LocalFile(hold.path, *hold.version)


def in_place(url: str) -> bool:
    """Return whether a shard is a local, uncompressed file.

    Raises:
        FileNotFoundError: If there is no such shard.
    """
    path = local_path(url)
    if path is None:
        return False
    try:
        with open(path, "rb") as file:
            return not is_packed(file.read(4))
    except FileNotFoundError as err:
        raise FileNotFoundError(f"no such shard: {url}") from err


def source_version(url: str) -> tuple[int, int]:
    """Return the size and the time of a shard's source, as in `LocalFile`; nothing is fetched.

    Where a server tells neither, they are those last fetched, or -1 and 0.

    Raises:
        FileNotFoundError: If there is no such shard.
    """
    version = ShardCache().version(url)
    return version.size, version.mark


def cached_path(url: str, size: int, mtime_ns: int, cache: str | None = None) -> str:
    """Return where the cache keeps a shard's version, fetched and unpacked, when it has it."""
    return ShardCache(cache).path(url, Version(size, mtime_ns))


__all__ = ["LocalFile", "cache_root", "cached_path", "in_place", "local_file", "source_version"]

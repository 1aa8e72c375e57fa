"""Indexes of shards, each scanned once and kept."""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from .beside import SIDECAR, index_beside, successes_beside
from .cached_shard import CachedShard
from .entry_field import entry_size
from .errors import DataError
from .image_size import read_image_size
from .local_file import cache_root, in_place
from .remote import Remote, Version
from .sample import Extent
from .scan_tar import scan_tar
from .shard_cache import ShardCache
from .shard_index import ShardIndex
from .urls import local_path


@dataclass(frozen=True)
class IndexStore:
    """Opens the indexes of shards, from where they are kept, or by a scan.

    An index is kept in a sidecar beside a shard (`write_sidecar`), and in ``<cache>/index``. It is
    used only while the size and the time in it are the shard's, so that none is ever stale. Holds
    nothing but its arguments: what is opened is the caller's to keep.

    Args:
        cache: Folder of the cache, see `cache_root`.
        limit: Most bytes of the shards in the cache; None: no bound.
        remote: How remote files are reached.
    """

    cache: str | None = None
    limit: int | None = None
    remote: Remote = field(default_factory=Remote)

    @property
    def shards(self) -> ShardCache:
        """The shards in the same cache."""
        return ShardCache(self.cache, self.limit, self.remote)

    def open(self, url: str, *, image_sizes: bool = False) -> tuple[str, ShardIndex]:
        """Return the local file of a shard and its index.

        A remote shard is fetched, a compressed one unpacked, once. A new index is kept in the
        cache; where that cannot be written, a warning says so once.

        Args:
            url: The shard.
            image_sizes: Whether the index must know the sizes of the images: the header of every
                image is read where it does not.

        Raises:
            FileNotFoundError: If there is no such shard.
            DataError: If the shard is damaged.
        """
        with self._file(url) as (path, version):
            found = self._on_hand(url, version, image_sizes)
            return path, self._complete(url, path, version, found, image_sizes)

    @contextmanager
    def _file(self, url: str) -> Iterator[tuple[str, Version]]:
        """Yield a shard's local file, which stays meanwhile, and its version."""
        path = local_path(url)
        if path is not None and in_place(url):
            yield path, self.shards.version(url)
            return
        with self.shards.hold(url) as hold:
            yield hold.path, hold.version

    def index(self, shard: CachedShard, *, image_sizes: bool = False) -> ShardIndex:
        """Return the index of a shard of the cache, fetching the shard only where that must be.

        Args:
            shard: The shard.
            image_sizes: As in `open`.

        Raises:
            OSError: The shard cannot be fetched.
            DataError: The shard is damaged.
        """
        found = self.find(shard.url, shard.version, image_sizes=image_sizes)
        if found is not None and (not image_sizes or found.image_sizes is not None):
            return found
        shard.acquire()
        try:
            return self._complete(shard.url, shard.path, shard.version, found, image_sizes)
        finally:
            shard.release()

    def find(self, url: str, version: Version, *, image_sizes: bool = False) -> ShardIndex | None:
        """Return the kept index of a version of a shard, or None; the shard is not read.

        Args:
            url: The shard.
            version: Its version.
            image_sizes: Whether one with image sizes is preferred.
        """
        index = self._on_hand(url, version, image_sizes)
        if index is None and local_path(url) is None and not self.shards.has(url, version):
            index = index_beside(self.remote, url, version)
            if index is not None:
                self._keep(url, version, index)
        return index

    def count(self, url: str, *, fetch: bool = True) -> int:
        """Return the number of samples in a shard.

        It is that of its index where there is one. A remote shard that has not been fetched yet has
        the number of "successes" in img2dataset's ``<stem>_stats.json`` beside it, where there is
        one. Else the shard is fetched and scanned.

        Args:
            url: The shard.
            fetch: Whether a remote shard may be fetched for it.

        Raises:
            FileNotFoundError: If there is no such shard.
            DataError: If the shard is damaged.
            LookupError: If the number is not to be had without fetching, and ``fetch`` is False.
        """
        return self.counted(url, fetch=fetch)[0]

    def counted(self, url: str, *, fetch: bool = True) -> tuple[int, Version]:
        """Return the number of samples in a shard, as `count`, and the version that has so many."""
        version = self.shards.version(url)
        index = self.find(url, version)
        if index is not None:
            return len(index), version
        remote = local_path(url) is None
        if remote and not self.shards.has(url, version):
            successes = successes_beside(self.remote, url)
            if successes is not None:
                return successes, version
            if not fetch:
                raise LookupError(
                    f"the number of samples in {url} is not known before it is fetched: it has "
                    f"neither an index in the cache nor a {SIDECAR} or a _stats.json beside it"
                )
        return len(self.open(url)[1]), version

    def write_sidecar(self, url: str) -> str:
        """Write the index of a shard, with image sizes, beside it, and return its path.

        Returns at once where it is up to date. A remote shard's index goes into the cache.

        Raises:
            FileNotFoundError: If there is no such shard.
            DataError: If the shard is damaged.
            OSError: If its folder cannot be written.
        """
        path = _sidecar(url) or self._path(url)
        kept = _load(path, self.shards.version(url))
        if kept is None or kept.image_sizes is None:
            with self._file(url) as (file, version):
                index = _made(url, file, self._on_hand(url, version, image_sizes=True), True)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            index.save(path, source_size=version.size, source_mtime_ns=version.mark)
        return path

    def _path(self, url: str) -> str:
        """Return where the cache keeps the index."""
        name = (local_path(url) or url).encode("utf-8", "surrogateescape")
        name_hash = blake2b(name, digest_size=16).hexdigest()
        return os.path.join(cache_root(self.cache), "index", f"{name_hash}.npz")

    def _on_hand(self, url: str, version: Version, image_sizes: bool) -> ShardIndex | None:
        """Return a kept index of this version, if possible one with image sizes where asked."""
        found = None
        for path in self._kept(url):
            index = _load(path, version)
            if index is not None and (not image_sizes or index.image_sizes is not None):
                return index
            found = index if found is None else found  # an empty one is false
        return found

    def _kept(self, url: str) -> Iterator[str]:
        sidecar = _sidecar(url)
        if sidecar is not None:
            yield sidecar
        yield self._path(url)

    def _complete(
        self, url: str, path: str, version: Version, index: ShardIndex | None, image_sizes: bool
    ) -> ShardIndex:
        """Return ``index``, or what it lacks made and kept."""
        made = _made(url, path, index, image_sizes)
        if made is not index:
            self._keep(url, version, made)
        return made

    def _keep(self, url: str, version: Version, index: ShardIndex) -> None:
        path = self._path(url)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            index.save(path, source_size=version.size, source_mtime_ns=version.mark)
        except OSError as err:
            _warn_once(os.path.dirname(path), err.strerror or type(err).__name__)


def _sidecar(url: str) -> str | None:
    path = local_path(url)
    return None if path is None else path + SIDECAR


def _load(path: str, version: Version) -> ShardIndex | None:
    """Return the index in ``path``, or None where there is none of this version of the shard."""
    try:
        index, *found = ShardIndex.load(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except ValueError as err:
        warnings.warn(f"{err}; the shard is scanned instead", RuntimeWarning, stacklevel=2)
        return None
    return index if found == list(version) else None


def _made(url: str, path: str, index: ShardIndex | None, image_sizes: bool) -> ShardIndex:
    """Return ``index``; it is made where there is none, and measured where it lacks that."""
    index = scan_tar(path, url) if index is None else index
    if image_sizes and index.image_sizes is None:
        index = _measure(index, path)
    return index


def _measure(index: ShardIndex, path: str) -> ShardIndex:
    """Return ``index`` with the sizes of all images, read from their headers.

    An entry of a cache, where there is no image, has the size of the pixels that it was made of.
    """
    sizes = np.zeros((len(index), 2), dtype=np.int32)
    errors: dict[int, str] = {}
    fd = os.open(path, os.O_RDONLY)
    try:
        for i in range(len(index)):
            image = index.image_extent(i)
            entry = index.entry_extent(i) if image is None else None
            try:
                if image is not None:
                    sizes[i] = read_image_size(Extent(path, image[1], image[2]), fd)
                elif entry is not None:
                    sizes[i] = entry_size(Extent(path, *entry), fd) or 0
            except DataError as err:
                sizes[i] = -1
                errors[i] = str(err)
    finally:
        os.close(fd)
    return index.with_image_sizes(sizes, errors)


@functools.cache
def _warn_once(folder: str, cause: str) -> None:
    warnings.warn(
        f"indexes cannot be kept in {folder} ({cause}): each run scans the shards anew; set "
        "PENSTOCK_CACHE, or cache=, to a folder that can be written",
        RuntimeWarning,
        stacklevel=2,
    )


__all__ = ["SIDECAR", "IndexStore"]

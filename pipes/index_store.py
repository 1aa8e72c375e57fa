"""Indexes of shards, each scanned once and kept."""

import functools
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from fsspec.core import url_to_fs

from .errors import DataError
from .image_size import read_image_size
from .local_file import LocalFile, cache_root, cached_path, local_file, source_version
from .sample import Extent
from .scan_tar import scan_tar
from .shard_index import ShardIndex
from .urls import TAR_ENDINGS, local_path

SIDECAR = ".index.npz"
"""Ending of a sidecar's name: that of ``00000.tar`` is ``00000.tar.index.npz``."""


@dataclass(frozen=True)
class IndexStore:
    """Opens the indexes of shards, from where they are kept, or by a scan.

    An index is kept in a sidecar beside a local shard (`write_sidecar`), and in
    ``<cache>/index``. It is used only while the size and the time in it are the shard's, so that
    none is ever stale. Holds nothing but its arguments: what is opened is the caller's to keep.

    Args:
        cache: Folder of the cache, see `cache_root`.
    """

    cache: str | None = None

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
        shard = local_file(url, self.cache)
        index = self._on_hand(url, shard.size, shard.mtime_ns, image_sizes)
        if index is None:
            index = scan_tar(shard.path, url)
        elif not image_sizes or index.image_sizes is not None:
            return shard.path, index
        if image_sizes:
            index = _measure(index, shard.path)
        self._keep(url, shard, index)
        return shard.path, index

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
        size, mtime_ns = source_version(url)
        index = self._on_hand(url, size, mtime_ns, image_sizes=False)
        if index is not None:
            return len(index)
        remote = local_path(url) is None
        if remote and not os.path.exists(cached_path(url, size, mtime_ns, self.cache)):
            successes = _successes(url)
            if successes is not None:
                return successes
            if not fetch:
                raise LookupError(
                    f"the number of samples in {url} is not known before it is fetched: it has "
                    "neither an index in the cache nor a _stats.json beside it"
                )
        return len(self.open(url)[1])

    def write_sidecar(self, url: str) -> str:
        """Write the index of a shard, with image sizes, beside it, and return its path.

        Returns at once where it is up to date. A remote shard's index goes into the cache.

        Raises:
            FileNotFoundError: If there is no such shard.
            DataError: If the shard is damaged.
            OSError: If its folder cannot be written.
        """
        path = _sidecar(url) or self._path(url)
        version = source_version(url)
        kept = _load(path, *version)
        if kept is None or kept.image_sizes is None:
            shard = local_file(url, self.cache)
            index = self._on_hand(url, shard.size, shard.mtime_ns, image_sizes=True)
            if index is None:
                index = scan_tar(shard.path, url)
            if index.image_sizes is None:
                index = _measure(index, shard.path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            index.save(path, source_size=shard.size, source_mtime_ns=shard.mtime_ns)
        return path

    def _path(self, url: str) -> str:
        """Return where the cache keeps the index."""
        name = (local_path(url) or url).encode("utf-8", "surrogateescape")
        name_hash = blake2b(name, digest_size=16).hexdigest()
        return os.path.join(cache_root(self.cache), "index", f"{name_hash}.npz")

    def _on_hand(self, url: str, size: int, mtime_ns: int, image_sizes: bool) -> ShardIndex | None:
        """Return a kept index of this version, if possible one with image sizes where asked."""
        found = None
        for path in self._kept(url):
            index = _load(path, size, mtime_ns)
            if index is not None and (not image_sizes or index.image_sizes is not None):
                return index
            found = index if found is None else found  # an empty one is false
        return found

    def _kept(self, url: str) -> Iterator[str]:
        sidecar = _sidecar(url)
        if sidecar is not None:
            yield sidecar
        yield self._path(url)

    def _keep(self, url: str, shard: LocalFile, index: ShardIndex) -> None:
        path = self._path(url)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            index.save(path, source_size=shard.size, source_mtime_ns=shard.mtime_ns)
        except OSError as err:
            _warn_once(os.path.dirname(path), err.strerror or type(err).__name__)


def _sidecar(url: str) -> str | None:
    path = local_path(url)
    return None if path is None else path + SIDECAR


def _load(path: str, size: int, mtime_ns: int) -> ShardIndex | None:
    """Return the index in ``path``, or None where there is none of this version of the shard."""
    try:
        index, *version = ShardIndex.load(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except ValueError as err:
        warnings.warn(f"{err}; the shard is scanned instead", RuntimeWarning, stacklevel=2)
        return None
    return index if version == [size, mtime_ns] else None


def _measure(index: ShardIndex, path: str) -> ShardIndex:
    """Return ``index`` with the sizes of all images, read from their headers."""
    sizes = np.zeros((len(index), 2), dtype=np.int32)
    errors: dict[int, str] = {}
    fd = os.open(path, os.O_RDONLY)
    try:
        for i in range(len(index)):
            found = index.image_extent(i)
            if found is None:
                continue
            try:
                sizes[i] = read_image_size(Extent(path, found[1], found[2]), fd)
            except DataError as err:
                sizes[i] = -1
                errors[i] = str(err)
    finally:
        os.close(fd)
    return index.with_image_sizes(sizes, errors)


def _successes(url: str) -> int | None:
    """Return the number of samples in img2dataset's statistics of a shard, or None without any."""
    ending = next((e for e in sorted(TAR_ENDINGS, key=len, reverse=True) if url.endswith(e)), "")
    stats = url[: len(url) - len(ending)] + "_stats.json"
    try:
        fs, inside = url_to_fs(stats)
        successes = json.loads(fs.cat_file(inside))["successes"]
    except (FileNotFoundError, PermissionError, ValueError, KeyError, TypeError):
        return None  # S3 refuses, rather than misses, what may not be listed
    return successes if isinstance(successes, int) and successes >= 0 else None


@functools.cache
def _warn_once(folder: str, cause: str) -> None:
    warnings.warn(
        f"indexes cannot be kept in {folder} ({cause}): each run scans the shards anew; set "
        "PENSTOCK_CACHE, or cache=, to a folder that can be written",
        RuntimeWarning,
        stacklevel=2,
    )

"""The samples of tar shards, by shard and number."""

from collections import OrderedDict
from typing import Any

import numpy as np

from .cached_shard import CachedShard
from .errors import DataError
from .index_store import IndexStore
from .key_lookup import KeyLookup
from .local_file import in_place
from .read import forget, read_through
from .read_ahead import ReadAhead
from .remote import Version
from .sample import IMAGE_SIZE, KEY, URL, Extent, Sample
from .shard_index import ShardIndex
from .sources import Source
from .urls import local_path


class TarSource(Source):
    """The open tar shards of one process.

    Indexes are kept in memory up to a number of samples; the store has them all on disk.

    Args:
        urls: The shards.
        store: Their indexes.
        image_sizes: Whether samples know their image's size.
        versions: The versions that the shards must have, int64 [shards, 2], where they are known.
        sizes: The numbers of samples that they must have, int64 [shards], where they were counted.
    """

    MOST_SAMPLES = 2_000_000

    def __init__(
        self,
        urls: list[str],
        store: IndexStore,
        image_sizes: bool,
        versions: np.ndarray | None = None,
        sizes: np.ndarray | None = None,
    ) -> None:
        self._urls = urls
        self._store = store
        self._image_sizes = image_sizes
        self._versions = versions
        self._sizes = sizes
        self._open: OrderedDict[int, tuple[str, ShardIndex]] = OrderedDict()
        self._prints: dict[int, int] = {}  # outlives an index: refs wait long in rare buckets
        self._lookups: dict[int, KeyLookup] = {}  # of shards that are open
        self._held = 0
        self._files: dict[int, CachedShard | None] = {}
        self._bad: dict[int, str] = {}  # shards whose compressed data is damaged
        self._ahead = ReadAhead()
        self.holds = any(local_path(url) is None or not url.endswith(".tar") for url in urls)

    def _file(self, shard: int) -> CachedShard | None:
        """Return the shard where its file lies in the cache; None where it is read in place."""
        if shard not in self._files:
            url = self._urls[shard]
            self._files[shard] = None if in_place(url) else self._cached(shard)
        return self._files[shard]

    def _cached(self, shard: int) -> CachedShard:
        version = None
        if self._versions is not None:
            size, mark = self._versions[shard].tolist()
            version = Version(size, mark) if mark else None
        return CachedShard(self._store.shards, self._urls[shard], version)

    def hold(self, shard: int) -> None:
        file = self._file(shard)
        if file is not None:
            try:
                file.acquire()
            except DataError as error:  # it comes again, in the order half, with each sample
                self._bad[shard] = str(error)

    def release(self, shard: int) -> None:
        file = self._file(shard)
        if file is not None and shard not in self._bad:
            file.release()

    def ahead(self, shard: int) -> None:
        file = self._file(shard)
        if file is not None:
            self._ahead.fetch(file)

    def _shard(self, shard: int) -> tuple[str, ShardIndex]:
        entry = self._open.get(shard)
        if entry is not None:
            self._open.move_to_end(shard)
            return entry
        if shard in self._bad:
            raise DataError(self._bad[shard])
        file = self._file(shard)
        if file is None:
            entry = self._store.open(self._urls[shard], image_sizes=self._image_sizes)
            forget(entry[0])
        else:
            entry = file.path, self._store.index(file, image_sizes=self._image_sizes)
        self._check_size(shard, len(entry[1]))
        self._open[shard] = entry
        self._held += len(entry[1])
        while self._held > self.MOST_SAMPLES and len(self._open) > 1:
            oldest, (_, index) = self._open.popitem(last=False)
            self._held -= len(index)
            self._lookups.pop(oldest, None)
        return entry

    def _check_size(self, shard: int, size: int) -> None:
        """Refuse a shard that has other samples than were counted: lanes divide by that number.

        Where too few were counted, the others would never come, and nobody would know.
        """
        counted = size if self._sizes is None else int(self._sizes[shard])
        if counted == size:
            return
        url = self._urls[shard]
        cause = "it was replaced under the run; start the run anew"
        if local_path(url) is None:
            cause = (
                "img2dataset's _stats.json beside it is wrong, as where the json of its samples "
                "could not be written; write indexes with python -m penstock.recipes.index, which "
                'count for more, or choose .lanes(n, by="shards"), which needs no numbers'
            )
        raise RuntimeError(f"{url} has {size} samples, and {counted} were counted before: {cause}")

    def _at(self, shard: int, index: int) -> tuple[str, ShardIndex]:
        """Return a shard's path and index, which must have a sample ``index``."""
        entry = self._shard(shard)
        if index >= len(entry[1]):
            raise RuntimeError(
                f"{self._urls[shard]} has {len(entry[1])} samples and had more when this run "
                "began: it was replaced under the run; start the run anew"
            )
        return entry

    def size(self, shard: int) -> int:
        return len(self._shard(shard)[1])

    def sample(self, shard: int, index: int) -> Sample:
        path, shard_index = self._at(shard, index)
        file = self._files[shard]
        if file is not None:
            read_through(path, file)
        sample: dict[str, Any] = {KEY: shard_index.key(index), URL: self._urls[shard]}
        for field, offset, size in shard_index.members(index):
            sample[field] = Extent(path, offset, size)
        if self._image_sizes:
            size_or_error = self.image_size(shard, index)
            if size_or_error is not None:
                sample[IMAGE_SIZE] = size_or_error
        return sample

    def image_size(self, shard: int, index: int) -> tuple[int, int] | str | None:
        _, shard_index = self._at(shard, index)
        if shard_index.image_sizes is None:
            return None
        height, width = shard_index.image_sizes[index].tolist()
        if height < 0:
            return shard_index.image_error(index) or "its header is unreadable"
        return (height, width) if height else None

    def name(self, shard: int, index: int) -> tuple[str, str]:
        return self._urls[shard], self._shard(shard)[1].key(index)

    def keys(self, shard: int) -> list[str]:
        return self._shard(shard)[1].keys()

    def find(self, shard: int, key: str, near: int = 0) -> int | None:
        index = self._shard(shard)[1]
        lookup = self._lookups.get(shard)
        if lookup is None:
            lookup = self._lookups[shard] = KeyLookup(index, self._urls[shard])
        return lookup.find(key, near)

    def url(self, shard: int) -> str:
        return self._urls[shard]

    def fingerprint(self, shard: int) -> int:
        mark = self._prints.get(shard)
        if mark is None:
            mark = self._prints[shard] = self._shard(shard)[1].fingerprint
        return mark

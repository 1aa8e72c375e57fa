"""Samples of tar shards."""

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

from .errors import DataError
from .filter import FilterOrder
from .index_store import IndexStore
from .order import Item, Lane, Order
from .passes import PassOrder
from .read import forget
from .sample import IMAGE_SIZE, KEY, URL, Extent, Sample
from .shard_index import ShardIndex
from .shards import ShardLister
from .sources import Source, SourcePipe


class TarReader(SourcePipe):
    """Yields the samples of webdataset tars, unmodified (``.read_tar()``).

    ustar, GNU and pax tars; samples may span any extensions and are grouped by key as webdataset
    does it. Compressed tars are unpacked once into the cache. A shard's index is one scan of its
    headers, kept in the cache and checked against the file's size and time.

    Args:
        source: The shards.
    """

    def __init__(self, source: ShardLister) -> None:
        if not isinstance(source, ShardLister):
            raise TypeError(f"read_tar reads from a ShardLister, got {type(source).__name__}")
        self.source: ShardLister = source
        self.seed = source.seed
        self.resample = source.resample
        self.shuffle_shards = source.shuffle_shards
        # Counted once, in the main process; workers get the numbers with the graph.
        self._sizes: np.ndarray | None = None
        self._damaged = False  # whether a shard was passed over in counting

    def shard_count(self) -> int:
        return len(self.source.urls)

    def shard_sizes(self, skip: bool) -> np.ndarray:
        if self._sizes is not None and (skip or not self._damaged):
            return self._sizes
        store = IndexStore(self.source.cache)
        sizes = np.zeros(len(self.source.urls), dtype=np.int64)
        for i, url in enumerate(self.source.urls):
            try:
                sizes[i] = store.count(url)
            except DataError as error:
                if not skip:
                    raise
                self._damaged = True
                warnings.warn(f"passing over a shard: {error}", stacklevel=2)
        self._sizes = sizes
        return sizes

    def splits_samples(self) -> bool:
        return self.source.sample_split is not None

    def image_sizes(self) -> Iterator[np.ndarray]:
        store = IndexStore(self.source.cache)
        for i, url in enumerate(self.source.urls):
            if self._sizes is not None and not self._sizes[i]:  # maybe damaged, and passed over
                yield np.empty((0, 2), np.int32)
                continue
            sizes = store.open(url, image_sizes=True)[1].image_sizes
            assert sizes is not None
            yield sizes

    def open(self, image_sizes: bool) -> "TarSource":
        return TarSource(self.source.urls, IndexStore(self.source.cache), image_sizes)

    def _order(self, lane: Lane) -> Order[Item]:
        order: Order[Item] = PassOrder(self, lane)
        split = self.source.sample_split
        if split is None:
            return order
        words = f"ShardLister(split={self.source.split!r})"
        return FilterOrder(order, lane, lambda sample: sample[KEY] in split, words)


class TarSource(Source):
    """The open tar shards of one process.

    Indexes are kept in memory up to a number of samples; the store has them all on disk.
    """

    MOST_SAMPLES = 2_000_000

    def __init__(self, urls: list[str], store: IndexStore, image_sizes: bool) -> None:
        self._urls = urls
        self._store = store
        self._image_sizes = image_sizes
        self._open: OrderedDict[int, tuple[str, ShardIndex]] = OrderedDict()
        self._prints: dict[int, int] = {}  # outlives an index: refs wait long in rare buckets
        self._held = 0

    def _shard(self, shard: int) -> tuple[str, ShardIndex]:
        entry = self._open.get(shard)
        if entry is not None:
            self._open.move_to_end(shard)
            return entry
        entry = self._store.open(self._urls[shard], image_sizes=self._image_sizes)
        forget(entry[0])
        self._open[shard] = entry
        self._held += len(entry[1])
        while self._held > self.MOST_SAMPLES and len(self._open) > 1:
            self._held -= len(self._open.popitem(last=False)[1][1])
        return entry

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

    def url(self, shard: int) -> str:
        return self._urls[shard]

    def fingerprint(self, shard: int) -> int:
        mark = self._prints.get(shard)
        if mark is None:
            mark = self._prints[shard] = self._shard(shard)[1].fingerprint
        return mark

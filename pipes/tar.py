"""Samples of tar shards."""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .errors import DataError
from .filter import FilterOrder
from .index_store import IndexStore
from .order import Item, Lane, Order
from .passes import PassOrder
from .sample import KEY
from .shards import ShardLister
from .sources import SourcePipe
from .tar_source import TarSource
from .urls import local_path

AT_ONCE = 16
"""Number of remote shards whose samples are counted at once."""


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
        self._versions: np.ndarray | None = None  # size and mark of each

    def shard_count(self) -> int:
        return len(self.source.urls)

    def shard_sizes(self, skip: bool) -> np.ndarray:
        if self._sizes is not None and (skip or not self._damaged):
            return self._sizes
        found = np.zeros((len(self.source.urls), 3), dtype=np.int64)
        for i, counted in enumerate(_counted(self.source.urls, self.source.store())):
            if not isinstance(counted, DataError):
                found[i] = counted
            elif skip:
                self._damaged = True
                warnings.warn(f"passing over a shard: {counted}", stacklevel=2)
            else:
                raise counted
        self._sizes, self._versions = found[:, 0], found[:, 1:]
        return self._sizes

    def splits_samples(self) -> bool:
        return self.source.sample_split is not None

    def image_sizes(self) -> Iterator[np.ndarray]:
        store = self.source.store()
        for i, url in enumerate(self.source.urls):
            if self._sizes is not None and not self._sizes[i]:  # maybe damaged, and passed over
                yield np.empty((0, 2), np.int32)
                continue
            if local_path(url) is None:
                index = store.find(url, store.shards.version(url), image_sizes=True)
                if index is None or index.image_sizes is None:
                    raise LookupError(f"the image sizes of {url} are not known unfetched")
            else:
                index = store.open(url, image_sizes=True)[1]
            sizes = index.image_sizes
            assert sizes is not None
            yield sizes

    def open(self, image_sizes: bool) -> "TarSource":
        urls, store = self.source.urls, self.source.store()
        return TarSource(urls, store, image_sizes, self._versions, self._sizes)

    def _order(self, lane: Lane) -> Order[Item]:
        order: Order[Item] = PassOrder(self, lane)
        split = self.source.sample_split
        if split is None:
            return order
        words = f"ShardLister(split={self.source.split!r})"
        return FilterOrder(order, lane, lambda sample: sample[KEY] in split, words)


def _counted(urls: list[str], store: IndexStore) -> Iterator[tuple[int, int, int] | DataError]:
    """Yield each shard's (samples, size, mark), or what is wrong with it."""

    def count(url: str) -> tuple[int, int, int] | DataError:
        try:
            number, version = store.counted(url, fetch=local_path(url) is not None)
        except DataError as error:
            return error
        except LookupError as error:
            raise ValueError(
                f'{error}. Choose .lanes(n, by="shards"), which needs no numbers, or write '
                "indexes once with python -m penstock.recipes.index"
            ) from None
        return number, version.size, version.mark

    if all(local_path(url) is not None for url in urls):
        yield from map(count, urls)
        return
    with ThreadPoolExecutor(AT_ONCE) as threads:  # each shard costs a request or two
        yield from threads.map(count, urls)

"""Check the samples of tar shards."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import accumulate, islice
from typing import Any

from ..pipes import DataError
from ..pipes.draws import hash64, permutation
from ..pipes.index_store import IndexStore
from ..pipes.sample import Extent
from ..pipes.shard_index import ShardIndex
from .check_keys import KeyCheck, name_doubles
from .tally import AT_ONCE, Fault, Tally


class ShardCheck:
    """Looks at the samples of shards, one shard after the other.

    Attributes:
        opened: Number of shards looked at.
        taken: The shards that could be read, and how many samples of each were looked at.
        keys: The keys, to be compared.

    Args:
        urls: The shards.
        limit: Samples to look at, in shards taken in a random order; None: all of them, in the
            order of the shards.
        cache: Folder of the indexes.
        seed: Seed of the order of the shards.
    """

    def __init__(
        self, urls: Sequence[str], limit: int | None, cache: str | None = None, seed: int = 0
    ) -> None:
        self.urls = urls
        self.opened = 0
        self.taken: list[tuple[str, int]] = []
        self.keys = KeyCheck()
        self._limit = limit
        self._store = IndexStore(cache)
        n = len(urls)
        self._order = range(n) if limit is None else permutation(n, hash64(seed)).tolist()

    def __len__(self) -> int:
        """Return the number of samples looked at."""
        return sum(count for _, count in self.taken)

    def run(self, tally: Tally, pool: Executor) -> Iterator[int]:
        """Look at all samples; yield, after each, how many there will be as far as is known."""
        for url in (self.urls[i] for i in self._order):
            done = len(self)
            if self._limit is not None and done >= self._limit:
                break
            self.opened += 1
            try:
                path, index = self._store.open(url, image_sizes=True)
            except (DataError, OSError) as error:
                tally.findings.add("damaged_shard", url, "", str(error))
                continue
            count = len(index) if self._limit is None else min(len(index), self._limit - done)
            self.taken.append((url, count))
            self.keys.add(index.keys()[:count])
            assert index.image_sizes is not None
            tally.sizes.add(index.image_sizes[:count], partial(_name, url, index))
            for _ in _look(tally, pool, url, path, index, count):
                yield self._expected()
        self._note_doubles(tally)

    def _expected(self) -> int:
        """Return how many samples there will be, if all shards are like those that were opened."""
        likely = round(len(self) / self.opened * len(self.urls))
        return likely if self._limit is None else min(self._limit, likely)

    def name(self, i: int) -> tuple[str, str]:
        """Return URL and key of the ``i``-th sample that was looked at."""
        ends = list(accumulate(count for _, count in self.taken))
        shard = bisect_right(ends, i)
        url, count = self.taken[shard]
        return url, self._store.open(url)[1].key(i - ends[shard] + count)

    def _note_doubles(self, tally: Tally) -> None:
        doubles = self.keys.doubles()
        tally.findings.counts["duplicate_key"] = len(doubles)
        if len(doubles):
            shards = ((url, self._store.open(url)[1].keys()[:n]) for url, n in self.taken)
            for key, (first, second) in name_doubles(doubles, shards, tally.findings.most):
                tally.findings.example("duplicate_key", first, key, f"also in {second}")


def _name(url: str, index: ShardIndex, i: int) -> tuple[str, str]:
    return url, index.key(i)


def _look(
    tally: Tally, pool: Executor, url: str, path: str, index: ShardIndex, count: int
) -> Iterator[None]:
    """Look at the samples of one shard; yield after each."""
    fd = os.open(path, os.O_RDONLY)
    try:
        numbers = iter(range(count))
        while some := list(islice(numbers, AT_ONCE)):
            images = pool.map(lambda i: image_fault(tally, fd, index, i), some)
            for i, (digest, fault) in zip(some, images, strict=True):
                fields: dict[str, Any] = {n: Extent(path, at, s) for n, at, s in index.members(i)}
                tally.add(url, index.key(i), digest, fault, tally.caption_fault(fields))
                yield
    finally:
        os.close(fd)


def image_fault(tally: Tally, fd: int, index: ShardIndex, i: int) -> tuple[int, Fault | None]:
    """Return the hash of a sample's image (0 without one), and what is wrong with it."""
    extent = index.image_extent(i)
    if extent is None:
        fields = ", ".join(name for name, _, _ in index.members(i))
        return 0, ("no_image", f"its fields are: {fields}")
    field, offset, size = extent
    return tally.look(field, os.pread(fd, size, offset))

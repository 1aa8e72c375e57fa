"""A source of samples that have names and image sizes and no data: the order half alone."""

from collections.abc import Iterator

import numpy as np

from penstock.pipes.order import Item, Lane, Order
from penstock.pipes.passes import PassOrder
from penstock.pipes.sample import IMAGE_SIZE, KEY, URL, Sample
from penstock.pipes.sources import Source, SourcePipe


class FakeReader(SourcePipe):
    """``shards`` shards of ``size`` samples each."""

    def __init__(self, shards: int, size: int, seed: int = 0) -> None:
        self.shards = shards
        self.size = size
        self.seed = seed
        self.shuffle_shards = True
        self.resample = False

    def shard_count(self) -> int:
        return self.shards

    def shard_sizes(self, skip: bool) -> np.ndarray:
        return np.full(self.shards, self.size, np.int64)

    def image_sizes(self) -> Iterator[np.ndarray]:
        raise TypeError("not needed here")

    def open(self, image_sizes: bool) -> "FakeSource":
        return FakeSource(self.size)

    def _order(self, lane: Lane) -> Order[Item]:
        return PassOrder(self, lane)


class FakeSource(Source):
    def __init__(self, shard_size: int) -> None:
        self._size = shard_size

    def size(self, shard: int) -> int:
        return self._size

    def sample(self, shard: int, index: int) -> Sample:
        size = self.image_size(shard, index)
        return {KEY: f"{index:06d}", URL: f"{shard:05d}.tar", IMAGE_SIZE: size}

    def image_size(self, shard: int, index: int) -> tuple[int, int]:
        bits = (shard * 7919 + index * 2654435761) & 0xFFFFFFFFFFFF
        return 256 + bits % 700, 256 + (bits >> 17) % 700

    def name(self, shard: int, index: int) -> tuple[str, str]:
        return f"{shard:05d}.tar", f"{index:06d}"

    def url(self, shard: int) -> str:
        return f"{shard:05d}.tar"

    def fingerprint(self, shard: int) -> int:
        return shard * 2654435761

"""The samples of shards, as far as embeddings are concerned: their keys, and the rows of those."""

from dataclasses import dataclass

import numpy as np

from ..pipes.index_store import IndexStore
from ..pipes.urls import local_path
from .embedding_rows import index_rows
from .index import index_shard


@dataclass(frozen=True)
class ShardKeys:
    """Opens the indexes of shards for their keys.

    Args:
        index_width: See `index_rows`.
        cache: Folder of the cache.
    """

    index_width: int | None = None
    cache: str | None = None

    def read(self, url: str) -> tuple[list[str], np.ndarray]:
        """Return the keys of a shard's samples, and the row of each, int64.

        A remote shard without an index is fetched for it, and not kept.

        Raises:
            DataError: The shard is damaged, or a key has no index.
            OSError: It cannot be read.
        """
        store = IndexStore(self.cache)
        if local_path(url) is not None:
            index = store.open(url)[1]
        else:
            index_shard(url, self.cache)
            found = store.find(url, store.shards.version(url))
            if found is None:
                raise OSError(f"{url} was replaced while it was indexed: start anew")
            index = found
        keys = index.keys()
        return keys, index_rows(url, keys, self.index_width)

    def least_rows(self, url: str) -> int:
        """Return how many rows a shard's samples need; 0 where a remote one has no index.

        Raises:
            DataError: The shard is damaged, or a key has no index.
            OSError: It cannot be read.
        """
        if local_path(url) is None:
            store = IndexStore(self.cache)
            index = store.find(url, store.shards.version(url))
            if index is None:
                return 0
            rows = index_rows(url, index.keys(), self.index_width)
        else:
            rows = self.read(url)[1]
        return int(rows.max(initial=-1)) + 1

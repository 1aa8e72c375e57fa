"""Which shards there are."""

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .cache_room import parse_size
from .draws import hash_text
from .index_store import IndexStore
from .pipe import Pipe
from .remote import Remote
from .splits import SampleSplit, split_shards
from .urls import base_name, expand_urls


class ShardLister(Pipe):
    """Lists the shards of a data set (``ShardLister(urls).read_tar()``).

    Each pass visits the shards in an order drawn anew from (seed, pass), which does not depend on
    ranks or workers. Nothing is opened until a loader is made.

    Args:
        urls: A pattern or several: braces (``{00000..00999}``), globs, lists, directories, files of
            URLs (``.txt``, ``.list`` or ``@file``), on any fsspec filesystem.
        seed: Seed of the shard order and of every other random draw of the graph. Of several mixed
            graphs, the first one's seed holds for the work half.
        shuffle: Whether shards come in a random order; otherwise in the order listed.
        start: First shard, by the number in its name (inclusive).
        end: Last shard, by the number in its name (inclusive).
        split: Which of ``splits`` to take.
        splits: Name to fraction, such as ``{"train": 0.75, "val": 0.15, "test": 0.1}``.
        split_by: ``"shard"`` deals whole shards out; ``"sample"`` splits by a hash of (seed, key),
            for data of few shards: adding data then moves nothing.
        resample: Draw shards with replacement, without end.
        cache: Directory for indexes, unpacked and fetched shards (default: ``$PENSTOCK_CACHE``,
            else ``~/.cache/penstock``), shared by all processes of the machine.
        cache_size: Most that the shards in it may take: bytes, or such as ``"100GB"``; None: no
            bound. The least recently used goes first, never one in use.
        storage_options: What fsspec's filesystem takes: keys, endpoints. Never in a checkpoint.
        allow_pipe: Whether ``pipe:`` URLs may be given, whose shell command writes a shard.

    Raises:
        ValueError: Nothing matches, a URL comes twice, or a split is empty.
    """

    def __init__(
        self,
        urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        seed: int = 0,
        shuffle: bool = True,
        start: int | None = None,
        end: int | None = None,
        split: str | None = None,
        splits: Mapping[str, float] | None = None,
        split_by: Literal["shard", "sample"] = "shard",
        resample: bool = False,
        cache: str | None = None,
        cache_size: str | int | None = "100GB",
        storage_options: Mapping[str, Any] | None = None,
        allow_pipe: bool = False,
    ) -> None:
        if (split is None) != (splits is None):
            raise ValueError(
                f"split={split!r} and splits={splits!r}: give both or neither, such as "
                "split='train', splits={'train': 0.9, 'val': 0.1}"
            )
        if split_by not in ("shard", "sample"):
            raise ValueError(f"split_by must be 'shard' or 'sample', got {split_by!r}")
        if resample and not shuffle:
            raise ValueError("resample=True draws shards at random; it needs shuffle=True")
        self.seed = _whole(seed)
        self.shuffle_shards = shuffle
        self.start = start
        self.end = end
        self.split = split
        self.splits = None if splits is None else dict(splits)
        self.split_by = split_by
        self.resample = resample
        self.cache = cache
        self.cache_size = parse_size(cache_size)
        self.storage_options = None if storage_options is None else dict(storage_options)
        self.allow_pipe = allow_pipe
        self.urls = expand_urls(
            urls, start=start, end=end, options=self.storage_options, allow_pipe=allow_pipe
        )
        self.sample_split: SampleSplit | None = None
        if split is not None and splits is not None:
            if split_by == "shard":
                self.urls = split_shards(self.urls, splits, split, seed)
            else:
                self.sample_split = SampleSplit(dict(splits), split, seed)

    def store(self) -> IndexStore:
        """Return the indexes of the shards, and the cache that they lie in."""
        remote = Remote(self.storage_options, self.allow_pipe)
        return IndexStore(self.cache, self.cache_size, remote)

    def read_tar(self) -> Pipe:
        """Read the shards as webdataset tars: samples whose fields are extents, no bytes yet."""
        from .tar import TarReader

        return TarReader(self)

    def arguments(self) -> dict[str, Any]:
        # Where the shards lie, and by which pattern they were found, is no difference.
        names = [base_name(url) for url in self.urls]
        return {
            "shards": {
                "count": len(names),
                "names": f"{hash_text('/'.join(names)):016x}",
                "first": names[0],
                "last": names[-1],
            },
            "seed": self.seed,
            "shuffle": self.shuffle_shards,
            "split": self.split,
            "splits": self.splits,
            "split_by": self.split_by,
            "resample": self.resample,
        }


def _whole(seed: int) -> int:
    """Return a seed as Python's own integer, which hashes and JSON take."""
    try:
        return operator.index(seed)
    except TypeError:
        raise TypeError(f"seed is a whole number, got {seed!r}") from None

"""How a data set is gone through to fill its caches, and what is said of it meanwhile."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal

import torch
from tqdm import tqdm

from ..pipes import Pipe
from ..pipes.graph import Graph
from ..transforms import estimate
from ..transforms.cache import Cache
from .image_data import ImageData, Split

MEASURED = 3
"""Batches after the first one that the estimate is made of; a model's first call is slow."""


@dataclass
class Filled:
    """What was done for one cache.

    Attributes:
        made: Entries that were computed.
        there: Entries asked for that were there, or came from another process.
        seconds: It took.
        skipped: Samples that could not be read.
        error: What float8 loses, relative.
        names: Of all entries that were asked for.
    """

    made: int = 0
    there: int = 0
    seconds: float = 0.0
    skipped: int = 0
    error: float | None = None
    names: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Walk:
    """How the data set is gone through.

    Attributes:
        num_workers: Worker processes that read and decode.
        device: Where the models run.
        on_error: What a sample that cannot be read does.
        quarantine: Where it is named.
        rank: Number of this process.
        world_size: Of so many.
    """

    num_workers: int
    device: torch.device
    on_error: Literal["raise", "skip"]
    quarantine: str | PathLike[str]
    rank: int
    world_size: int

    def batches(self, pipe: Pipe, function: Any) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield this process's batches, gone through ``function`` on the device, and skips."""
        loader = pipe.loader(
            self.num_workers,
            rank=self.rank,
            world_size=self.world_size,
            on_error=self.on_error,
            quarantine=self.quarantine,
        )
        before = 0
        with closing(loader.on_device(self.device, function)) as batches:
            for batch in batches:
                yield batch, loader.skipped - before
                before = loader.skipped


class Progress:
    """A progress bar, and an estimate once enough batches were measured.

    Args:
        name: What is computed.
        total: Samples of all processes.
        unit: Of the bar.
        how: Which process this is.
        caches: That are filled.
    """

    def __init__(self, name: str, total: int, unit: str, how: Walk, caches: list[Any]) -> None:
        self._name, self._caches, self._world = name, caches, how.world_size
        self._total = total
        share = -(-total // how.world_size)
        self._bar = tqdm(
            total=share, unit=unit, desc=f"{name}, rank {how.rank}", disable=how.rank > 0
        )
        self._began = self._mark = time.perf_counter()
        self._batches = self._seen = self._made = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, count: int) -> None:
        """Count what a batch had."""
        self._bar.update(count)
        made = sum(cache.misses for cache in self._caches)
        self._bar.set_postfix_str(f"{made:,} computed")
        self._batches += 1
        if self._batches == 1:
            self._mark, self._made = time.perf_counter(), made
            return
        self._seen += count
        if self._batches == MEASURED + 1 and made > self._made:
            self._tell(time.perf_counter() - self._mark)

    def _tell(self, seconds: float) -> None:
        if self._bar.disable:
            return
        for cache in self._caches:
            entries, size = cache.store.sizes()
            found = estimate(
                cache.kind,
                max(self._total, entries),
                size / max(entries, 1),
                there=entries,
                measured=(self._seen, seconds),
                processes=self._world,
            )
            tqdm.write(str(found), file=sys.stderr)

    def close_into(self, done: Filled, cache: Cache) -> Filled:
        """Finish the cache's shard, and say what was done."""
        cache.store.close()  # type: ignore[attr-defined]
        done.made, done.there = cache.misses, cache.hits
        done.seconds = time.perf_counter() - self._began
        cache.filling = False
        return done


def splits_of(data: ImageData) -> list[Split]:
    """Return the parts that data has."""
    return ["train", "validation"] if data.validation else ["train"]


def samples_of(pipe: Pipe) -> int:
    """Return the number of a graph's samples; 0 where it is not known."""
    counts = Graph.of(pipe).sample_counts()
    return 0 if counts is None else int(counts["total"])

"""Deal the order half out to lanes."""

from typing import Any, Literal

from .order import Lane, Order
from .pipe import Pipe


class Lanes(Pipe):
    """Says in how many lanes the order half runs (``.lanes(n)``); it holds for all of it.

    Each lane has its own part of every pass, its own shuffle window and its own buckets. Global
    batch g is the next batch of lane g mod n. So the sequence of batches depends on the data, the
    seed and n alone, and every change of ranks and workers continues it. What lanes buy is
    locality: with n a multiple of the ranks, a rank reads only its own lanes' shards. One lane (the
    default) for one machine; with more machines and remote shards, the largest number of ranks.

    Args:
        source: A pipe of the order half.
        n: Number of lanes.
        by: ``"samples"`` deals each pass out in equal ranges of samples, for which every shard's
            number of samples must be known; ``"shards"`` deals every n-th shard, and needs no
            counts.
        repeat: Whether passes follow each other without end. ``False``, for evaluation: one pass,
            each sample exactly once.
    """

    @property
    def makes_batches(self) -> bool:  # type: ignore[override]
        return self.source.makes_batches

    def __init__(
        self,
        source: Pipe,
        n: int = 1,
        by: Literal["samples", "shards"] = "samples",
        repeat: bool = True,
    ) -> None:
        if n < 1:
            raise ValueError(f"a graph has at least 1 lane, got {n}")
        if by not in ("samples", "shards"):
            raise ValueError(f"by must be 'samples' or 'shards', got {by!r}")
        self.source: Pipe = source
        self.n = n
        self.by = by
        self.repeat = repeat

    def _order(self, lane: Lane) -> Order[Any]:
        return self.source._order(lane)

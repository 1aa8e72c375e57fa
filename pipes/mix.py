"""Draw from several graphs by weight."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from .order import Item, Lane, Order, State
from .pipe import Pipe
from .sample import Ref, Sample
from .sources import source_pipes


class Mixer(Pipe):
    """Yields samples of several graphs in proportion to their weights (``.mix(other, weights=…)``).

    In each lane the source with the largest accumulated weight gives the next sample (smooth
    weighted round robin), so every stretch of the sequence has the proportions asked for. Each
    source has its own passes. It stands before the batcher or the bucketer; shuffle each source
    before mixing, since a pass then comes to its end. With ``repeat=False`` a source that has ended
    leaves the mix.

    Args:
        sources: Pipes of samples.
        weights: One positive number for each source; equal where None.
    """

    def __init__(self, sources: Sequence[Pipe], weights: Sequence[float] | None = None) -> None:
        if len(sources) < 2:
            raise ValueError("mix needs at least two graphs")
        weights = [1.0] * len(sources) if weights is None else [float(w) for w in weights]
        if len(weights) != len(sources):
            raise ValueError(f"{len(sources)} graphs are mixed, and {len(weights)} weights given")
        if not all(math.isfinite(w) and w > 0 for w in weights):
            raise ValueError(f"weights must be positive numbers, got {weights}")
        self._sources = tuple(sources)
        self.weights = weights

    @property
    def sources(self) -> tuple[Pipe, ...]:
        return self._sources

    def arguments(self) -> dict[str, Any]:
        return {"weights": self.weights}

    @property
    def passes_end(self) -> bool:
        return False

    def _order(self, lane: Lane) -> Order[Item]:
        ends = []
        for branch in self._sources:
            root = source_pipes(branch)[-1]
            ends.append(lane.sources.of(root)[1] + root.shard_count())
        return MixOrder([s._order(lane) for s in self._sources], self.weights, ends)

    def __repr__(self) -> str:
        return f"Mixer([{', '.join(map(repr, self._sources))}], weights={self.weights})"


class MixOrder(Order[Item]):
    """Smooth weighted round robin. Its state: the accumulated weights, each source's state."""

    def __init__(self, sources: list[Order[Item]], weights: list[float], ends: list[int]) -> None:
        self.sources = sources
        self.weights = weights
        self._ends = ends  # the number after each source's last shard: whose a ref is
        self._owed = [0.0] * len(sources)
        self._ended = [False] * len(sources)

    def next(self) -> Item:
        while not all(self._ended):
            live = [i for i, ended in enumerate(self._ended) if not ended]
            owed = [self._owed[i] + self.weights[i] for i in live]
            best = max(range(len(live)), key=lambda j: (owed[j], -j))
            try:
                item = self.sources[live[best]].next()
            except StopIteration:
                self._ended[live[best]] = True
                self._owed[live[best]] = 0.0
                continue
            owed[best] -= sum(self.weights[i] for i in live)
            for i, value in zip(live, owed, strict=True):
                self._owed[i] = value
            return item
        raise StopIteration

    def state(self) -> State:
        return [list(self._owed), list(self._ended), [s.state() for s in self.sources]]

    def load(self, state: State) -> None:
        owed, ended, states = state
        self._owed, self._ended = list(owed), list(ended)
        for source, own in zip(self.sources, states, strict=True):
            source.load(own)

    def resolve(self, ref: Ref) -> Sample:
        return self.sources[bisect_right(self._ends, ref.shard)].resolve(ref)

    @property
    def laps(self) -> int:
        return min(s.laps for s in self.sources)

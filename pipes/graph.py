"""A chain of pipes, read as a whole: where its data comes from, its order half, its work half."""

import dataclasses
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from .bucket import AspectRatioBucketer
from .lanes import Lanes
from .order import Batch, Lane, Order
from .pipe import Pipe
from .sources import SourcePipe, Sources, source_pipes
from .work import Decoding, WorkPipe


class Graph:
    """What a loader and its workers need to know of a pipe.

    Args:
        pipe: The last pipe of the chain.

    Raises:
        ValueError: The pipes stand in an order that means nothing.
    """

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.skip = False  # whether shards whose data is bad count as empty
        self.work: list[WorkPipe] = []
        top = pipe
        while isinstance(top, WorkPipe):
            self.work.insert(0, top)
            top = top.source
        self.top = top
        self.steps = _steps(top)
        self.sources: list[SourcePipe] = source_pipes(top)
        if not self.sources:
            raise ValueError(f"{type(top).__name__} gives no samples: read them, with .read_tar()")
        self.lanes = self._only_lanes()
        self._check()

    @classmethod
    def of(cls, pipe: Pipe) -> "Graph":
        """Return the graph that ends in ``pipe``."""
        return cls(pipe)

    def _only_lanes(self) -> Lanes:
        found = [step for step in self.steps if isinstance(step, Lanes)]
        if len(found) > 1:
            raise ValueError(
                f".lanes() stands {len(found)} times in the graph; it holds for all of it"
            )
        if not found:
            return Lanes(self.top)
        below = found[0]
        outer = self.top
        while outer is not below:
            if len(outer.sources) != 1:
                raise ValueError("put .lanes() behind .mix(): it holds for the whole order half")
            outer = outer.sources[0]
        return below

    def _check(self) -> None:
        if len({id(s) for s in self.sources}) < len(self.sources):
            raise ValueError("one source stands twice in a mix; make a second ShardLister for it")
        if not self.lanes.repeat and any(source.resample for source in self.sources):
            raise ValueError(
                "resample=True draws without end: it goes with .lanes(repeat=True) only"
            )
        for step in self.steps:
            if isinstance(step, WorkPipe):
                raise ValueError(
                    f"{type(step).__name__} does work and stands before {type(self.top).__name__}, "
                    "which decides the order: put it behind"
                )
            if any(behind.makes_batches for behind in step.sources) and not isinstance(step, Lanes):
                raise ValueError(f"{type(step).__name__} takes samples: put it before the batches")
        for before, after in zip(self.work, self.work[1:], strict=False):
            if isinstance(after, Decoding):
                raise ValueError("the work half begins once: one .decode() or .load()")
            if before.per == "batch" and after.per == "sample":
                raise ValueError(
                    f"{type(after).__name__} works on samples and stands behind "
                    f"{type(before).__name__}, which works on batches: put it before"
                )
        if self.work and not isinstance(self.work[0], Decoding):
            raise ValueError(
                f"{type(self.work[0]).__name__} needs loaded samples: put .decode() or .load() "
                "before it"
            )

    def check_loadable(self) -> None:
        """Refuse a graph that a loader cannot run, and say what it lacks."""
        if not any(step.makes_batches for step in self.steps):
            raise ValueError(
                "nothing makes batches: put .batch(n) or .bucket_by_aspect_ratio(…) first"
            )
        if not self.work:
            raise ValueError(
                "nothing loads the samples: put .decode() or .load() behind the order half"
            )
        first = self.work[0]
        assert isinstance(first, Decoding)
        first.check(any(isinstance(step, AspectRatioBucketer) for step in self.steps))

    def sample_counts(self) -> dict[str, Any] | None:
        """Return how many samples there are and a hash of each shard's number; None by shards."""
        if self.lanes.by == "shards":
            return None
        sizes = np.concatenate([source.shard_sizes(self.skip) for source in self.sources])
        digest = blake2b(sizes.astype("<i8").tobytes(), digest_size=8)
        return {"total": int(sizes.sum()), "hash": digest.hexdigest()}

    def held_samples(self) -> int:
        """Return how many samples full buckets of one lane hold; 0 without a bucketer."""
        return sum(
            sum(step.batch_sizes()) for step in self.steps if isinstance(step, AspectRatioBucketer)
        )

    @property
    def seed(self) -> int:
        """The seed of all draws but the shard orders: the first source's."""
        return self.sources[0].seed

    def open(self) -> Sources:
        """Return this process's open shards."""
        return Sources(self.sources, any(step.needs_image_size for step in self.steps))

    def lane(
        self,
        number: int,
        sources: Sources,
        on_error: Literal["raise", "skip"],
        repeat: bool | None = None,
    ) -> Lane:
        """Return what the orders of lane ``number`` need to know."""
        if not 0 <= number < self.lanes.n:
            raise ValueError(f"there is no lane {number}: the graph has {self.lanes.n}, from 0")
        return Lane(
            number=number,
            count=self.lanes.n,
            by=self.lanes.by,
            repeat=self.lanes.repeat if repeat is None else repeat,
            seed=self.seed,
            on_error=on_error,
            sources=sources,
        )

    def order(self, lane: int = 0) -> Order[Any]:
        """Return one lane's live order, with open shards of its own."""
        return self.top._order(self.lane(lane, self.open(), "raise"))

    def describe_order(self) -> list[dict[str, Any]]:
        """Return the order half's pipes with their arguments, as JSON holds them."""
        steps = [s for s in self.steps if not isinstance(s, Lanes)]
        return [{"pipe": type(s).__name__, **_plain(s.arguments())} for s in steps]

    def describe_work(self) -> list[dict[str, Any]]:
        """Return the work half's pipes with their arguments, as JSON holds them."""
        return [{"pipe": type(s).__name__, **_plain(s.arguments())} for s in self.work]


def _steps(pipe: Pipe) -> list[Pipe]:
    """Return the pipes up to and with ``pipe``, sources first."""
    return [step for source in pipe.sources for step in _steps(source)] + [pipe]


def _plain(value: Any) -> Any:
    """Return an argument as JSON holds it: functions and objects by their qualified names."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    inner = getattr(value, "func", None)
    if inner is not None:  # functools.partial
        return [_plain(inner), _plain(value.args), _plain(value.keywords)]
    named = value if hasattr(value, "__qualname__") else type(value)
    name = f"{named.__module__}.{named.__qualname__}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [name, {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}]
    return name


def preview(pipe: Pipe) -> Iterator[Any]:
    """Yield what comes out of ``pipe`` in lane 0: samples, batches of refs, or finished batches."""
    from .shards import ShardLister
    from .stream import LaneWalker

    if isinstance(pipe, ShardLister):
        yield from pipe.urls
        return
    graph = Graph.of(pipe)
    if graph.work:
        graph.check_loadable()
        walker, g = LaneWalker(graph, "raise"), 0
        while (made := walker.make(g)).batch is not None:
            yield made.batch
            g += graph.lanes.n
        return
    sources = graph.open()
    order = graph.top._order(graph.lane(0, sources, "raise"))
    while True:
        try:
            item = order.next()
        except StopIteration:
            return
        if isinstance(item, Batch):
            yield item
        else:
            yield item.sample if item.sample is not None else order.resolve(item.ref)

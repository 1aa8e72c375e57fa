"""What a worker runs: its steps, each a global batch of some lane."""

import json
from math import gcd
from typing import Any, Literal, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info

from .graph import Graph
from .order import Batch, Lane, Order, Skipped
from .work import Workshop

LaneStates = dict[int, tuple[int, str]]
"""Lane to (number of batches that have left it, its state after them as JSON text or "")."""


class Made(NamedTuple):
    """A finished global batch, with the state of its lane right after it.

    ``batch`` is None where the lane has ended (``repeat=False``): a marker that the loader drops,
    so that the order of batches does not depend on which worker ends first.
    """

    g: int
    lane: int
    state: str
    batch: dict[str, Any] | None
    skipped: list[Skipped]


class LaneWalker:
    """Walks lanes and makes their batches, in one process.

    Args:
        graph: The graph.
        on_error: What a sample's bad data does.
        states: Where lanes stand; one that is not named stands at its start.
        repeat: Overrides the graph's own ``repeat`` where not None.
        shared: Make tensors in shared memory.
    """

    def __init__(
        self,
        graph: Graph,
        on_error: Literal["raise", "skip"],
        states: LaneStates | None = None,
        *,
        repeat: bool | None = None,
        shared: bool = False,
    ) -> None:
        self.graph = graph
        self.on_error = on_error
        self.states = states or {}
        self.repeat = repeat
        self.sources = graph.open()
        self.workshop = Workshop(graph.work, graph.seed, on_error, shared) if graph.work else None
        self._lanes: dict[int, tuple[Lane, Order[Batch]]] = {}
        self._left: dict[int, int] = {}
        self.ended: set[int] = set()

    def _lane(self, number: int) -> tuple[Lane, Order[Batch]]:
        if number not in self._lanes:
            lane = self.graph.lane(number, self.sources, self.on_error, self.repeat)
            order = self.graph.top._order(lane)
            left, state = self.states.get(number, (0, ""))
            if state:
                order.load(json.loads(state))
            self._lanes[number] = lane, order
            self._left[number] = left
        return self._lanes[number]

    def order_batch(self, g: int) -> Batch | None:
        """Return the refs of global batch ``g``, or None where its lane has ended.

        The lane is walked forward to it: batches on the way are other consumers'.
        """
        number, place = g % self.graph.lanes.n, g // self.graph.lanes.n
        lane, order = self._lane(number)
        if self._left[number] > place:
            raise ValueError(f"batch {g} has left lane {number} before the state that was given")
        while True:
            lane.skipped.clear()
            try:
                batch = order.next()
            except StopIteration:
                self.ended.add(number)
                if self._left[number] < place:  # what was passed over last is another's to report
                    lane.skipped.clear()
                return None
            self._left[number] += 1
            if self._left[number] > place:
                return batch

    def make(self, g: int) -> Made:
        """Return global batch ``g``, made."""
        number = g % self.graph.lanes.n
        batch = self.order_batch(g)
        lane, order = self._lanes[number]
        if batch is None:
            return Made(g, number, "", None, list(lane.skipped))
        assert self.workshop is not None
        made, skipped = self.workshop.run(g, batch, order.resolve, self.sources.name)
        state = json.dumps(order.state(), separators=(",", ":"))
        return Made(g, number, state, made, [*lane.skipped, *skipped])

    def accuse(self, g: int, dead: str) -> str:
        """Return the words for global batch ``g`` having killed its workers again and again."""
        batch = self.order_batch(g)
        refs = batch.refs if batch is not None else []
        names = ["{}: {}".format(*self.sources.name(ref)) for ref in refs]
        return (
            f"batch {g} could not be made: workers died each time, last {dead}. Its samples are "
            f"{', '.join(names)}. Look for a decoder or a mapped function that crashes, or for a "
            f"lack of memory; pipe.loader(num_workers=0).batch_at({g}) makes it in one process"
        )


class Stream(IterableDataset[Made]):
    """The dataset behind the loader: it has no end where lanes repeat, and no state of its own.

    Args:
        graph: The graph.
        rank: This consumer's rank.
        world_size: Number of ranks.
        on_error: What a sample's bad data does.
    """

    def __init__(
        self, graph: Graph, rank: int, world_size: int, on_error: Literal["raise", "skip"]
    ) -> None:
        self.graph = graph
        self.rank = rank
        self.world_size = world_size
        self.on_error = on_error
        self.position = 0
        self.states: LaneStates = {}

    def start_at(self, position: int, states: LaneStates) -> None:
        """Have the next iterator begin at global batch ``position`` (rank 0's)."""
        self.position = position
        self.states = dict(states)

    def __iter__(self) -> "Steps":
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        walker = LaneWalker(self.graph, self.on_error, self.states, shared=info is not None)
        first = self.position + worker * self.world_size + self.rank
        return Steps(walker, first, self.world_size * workers)


class Steps:
    """One worker's batches: global batches ``first``, ``first + stride``, …"""

    def __init__(self, walker: LaneWalker, first: int, stride: int) -> None:
        self.walker = walker
        self.g = first
        self.stride = stride
        lanes = walker.graph.lanes.n
        # The lanes that these steps ever come to.
        self.lanes = set(range(first % gcd(stride, lanes), lanes, gcd(stride, lanes)))

    def __iter__(self) -> "Steps":
        return self

    def __next__(self) -> Made:
        if self.lanes <= self.walker.ended:
            raise StopIteration
        made = self.walker.make(self.g)
        self.g += self.stride
        return made


def replay(
    graph: Graph, on_error: Literal["raise", "skip"], g: int, known: list[LaneStates]
) -> dict[str, Any]:
    """Return global batch ``g``, reached from the nearest state before it, or from the seed.

    Raises:
        IndexError: There is no such batch.
    """
    if g < 0:
        raise IndexError(f"batches are numbered from 0; got {g}")
    lane, place = g % graph.lanes.n, g // graph.lanes.n
    entries = [(0, ""), *(states[lane] for states in known if lane in states)]
    nearest = max(entry for entry in entries if entry[0] <= place)
    made = LaneWalker(graph, on_error, {lane: nearest}).make(g)
    if made.batch is None:
        raise IndexError(f"there is no batch {g}: lane {lane} ends before it")
    return made.batch

"""The order half's live objects: which samples come, in which order, in which batches.

A pipe is a description and holds no position; ``pipe.order(lane)`` makes an `Order`, a plain object
with ``next()``, ``state()`` and ``load()``. It handles refs and metadata, never pixels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from .errors import DataError, name_sample
from .sample import KEY, URL, Ref, Sample

if TYPE_CHECKING:
    from .sources import Sources

T_co = TypeVar("T_co", covariant=True)

State = Any
"""What JSON can hold: small nested lists of integers, floats and strings."""


class Item(NamedTuple):
    """A sample on its way through the order half.

    ``sample`` is there while per-sample pipes pass it on; a pipe that holds items back keeps the
    bare ref, and whoever needs the sample then makes it again with ``Order.resolve``.
    """

    ref: Ref
    sample: Sample | None = None


class Batch(NamedTuple):
    """What leaves the order half: the refs of one batch and the size that its images get.

    Attributes:
        refs: The samples, in order.
        size: (height, width) in pixels of the bucket; None where no bucketer stands in the graph.
    """

    refs: list[Ref]
    size: tuple[int, int] | None = None


class Skipped(NamedTuple):
    """A sample that was passed over, and why."""

    url: str
    key: str
    reason: str


@dataclass
class Lane:
    """What an order needs to know of the lane that it walks.

    Attributes:
        number: Which lane, from 0.
        count: Number of lanes, L.
        by: Lanes deal out equal ranges of samples, or every L-th shard.
        repeat: Whether passes follow each other without end.
        seed: The graph's seed.
        on_error: What a sample's bad data does.
        sources: The open shards of this process, shared by its lanes.
        skipped: What was passed over since the last batch left (``on_error="skip"``).
    """

    number: int
    count: int
    by: Literal["samples", "shards"]
    repeat: bool
    seed: int
    on_error: Literal["raise", "skip"]
    sources: "Sources"
    skipped: list[Skipped] = field(default_factory=list)

    def fail(self, url: str, key: str, error: DataError) -> None:
        """Pass a bad sample over and note it, or raise its error with its name."""
        name, reason = f"{name_sample(url, key)}: ", str(error)
        if self.on_error == "raise":
            raise DataError(name + reason.removeprefix(name)) from error
        self.skipped.append(Skipped(url, key, reason.removeprefix(name)))


class Order(ABC, Generic[T_co]):
    """One lane's walk through a pipe; a class, since an exception would kill a generator."""

    @abstractmethod
    def next(self) -> T_co:
        """Return the next item.

        Raises:
            StopIteration: The lane has ended (only with ``repeat=False``).
            DataError: A sample's data is bad and ``on_error`` is ``"raise"``.
        """

    @abstractmethod
    def state(self) -> State:
        """Return the position after the item last returned, as small JSON."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Take the position of a `state`."""

    @abstractmethod
    def resolve(self, ref: Ref) -> Sample:
        """Return the sample that ``ref`` names, made by the per-sample pipes up to here."""

    @property
    @abstractmethod
    def laps(self) -> int:
        """Number of whole passes that the source behind has begun, counted from 0."""


class Through(Order[Item]):
    """Base of per-sample orders: all but ``next`` is the source's."""

    def __init__(self, source: Order[Item], lane: Lane) -> None:
        self.source = source
        self.lane = lane

    def state(self) -> State:
        return self.source.state()

    def load(self, state: State) -> None:
        self.source.load(state)

    def resolve(self, ref: Ref) -> Sample:
        return self.source.resolve(ref)

    @property
    def laps(self) -> int:
        return self.source.laps

    def sample(self, item: Item) -> Sample:
        """Return the item's sample, made again from its ref where a pipe has kept only that."""
        return item.sample if item.sample is not None else self.source.resolve(item.ref)

    def fail(self, ref: Ref, error: DataError) -> None:
        """Pass the sample of ``ref`` over, or raise its error."""
        url, key = self.lane.sources.name(ref)
        self.lane.fail(url, key, error)


__all__ = ["KEY", "URL", "Batch", "Item", "Lane", "Order", "Skipped", "State", "Through"]

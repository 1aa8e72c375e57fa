"""What every pipe is: a description."""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

from torch.utils.data import IterDataPipe

from .order import Lane, Order

if TYPE_CHECKING:
    from .pipe import Pipe


class Node(IterDataPipe[Any]):
    """A description of a step: its arguments and its source, and no position.

    Iterating it is a preview of lane 0; training takes ``.loader()``.

    Every constructor argument is kept in an attribute of the same name: a checkpoint lists them.
    """

    source: "Pipe | None" = None
    half: Literal["order", "work"] = "order"
    needs_image_size = False
    makes_batches = False
    filters = False
    """Whether an unknown number of samples is turned down."""
    # torch's hooks look for this on every item, and it is 5 times slower to miss it.
    _is_child_datapipe = False

    @property
    def sources(self) -> "tuple[Pipe, ...]":
        """The pipes that this one reads from."""
        return () if self.source is None else (self.source,)

    @property
    def passes_end(self) -> bool:
        """Whether samples come in passes that end, each before the next begins."""
        return all(source.passes_end for source in self.sources)

    def _order(self, lane: Lane) -> Order[Any]:
        """Return this pipe's live object for one lane; `order` is the public face."""
        raise TypeError(f"{type(self).__name__} does not order samples")

    def order(self, lane: int = 0) -> Order[Any]:
        """Return one lane's live order, an object with ``next()``, ``state()`` and ``load()``.

        Args:
            lane: Number of the lane, below the graph's number of lanes.

        Raises:
            ValueError: There is no such lane.
        """
        from .graph import Graph

        return Graph.of(cast("Pipe", self)).order(lane)

    def __iter__(self) -> Iterator[Any]:
        from .graph import preview

        return preview(cast("Pipe", self))

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments but its sources, as a checkpoint lists them."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {n: getattr(self, n) for n in names if n not in ("source", "sources", "others")}

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={v!r}" for k, v in self.arguments().items())
        own = f"{type(self).__name__}({args})"
        return own if self.source is None else f"{self.source!r} -> {own}"

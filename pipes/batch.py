"""Batch samples in the order in which they come."""

from .order import Batch, Item, Lane, Order, State
from .pipe import Pipe
from .sample import Ref, Sample


class Batcher(Pipe):
    """Yields batches of ``batch_size`` samples (``.batch(n)``).

    Where lanes repeat, batches run on over the ends of passes and all have the full size. With
    ``repeat=False`` a lane's last batch may be short.

    Args:
        source: Pipe of samples.
        batch_size: Samples per batch.
        drop_last: Leave a short last batch out.
    """

    makes_batches = True

    def __init__(self, source: Pipe, batch_size: int, *, drop_last: bool = False) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.source: Pipe = source
        self.batch_size = batch_size
        self.drop_last = drop_last

    def _order(self, lane: Lane) -> Order[Batch]:
        return BatchOrder(self.source._order(lane), self.batch_size, self.drop_last)


class BatchOrder(Order[Batch]):
    """Collects refs. Between batches it holds none, so its state is the source's."""

    def __init__(self, source: Order[Item], size: int, drop_last: bool) -> None:
        self.source = source
        self.size = size
        self.drop_last = drop_last

    def next(self) -> Batch:
        refs: list[Ref] = []
        try:
            while len(refs) < self.size:
                refs.append(self.source.next().ref)
        except StopIteration:
            if not refs or self.drop_last:
                raise
        return Batch(refs)

    def state(self) -> State:
        return self.source.state()

    def load(self, state: State) -> None:
        self.source.load(state)

    def resolve(self, ref: Ref) -> Sample:
        return self.source.resolve(ref)

    @property
    def laps(self) -> int:
        return self.source.laps

"""Batch samples whose images have nearly the same shape."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from .buckets import Buckets
from .errors import DataError
from .filter import PATIENCE, sample_image_size
from .order import Batch, Item, Lane, Order, State
from .pack import pack_refs, unpack_refs
from .pipe import Pipe
from .sample import Ref, Sample


class AspectRatioBucketer(Pipe):
    """Yields batches whose images all get one size (``.bucket_by_aspect_ratio(…)``).

    The image's size is read from its header, never decoded. Each sample goes to the bucket nearest
    in log aspect ratio; a full bucket leaves as a batch. Where lanes repeat, leftovers stay in
    their bucket, and nothing is dropped. With ``repeat=False`` they come out last, as short
    batches, or are dropped.

    Args:
        source: Pipe of samples with an image.
        resolution: Side in pixels of the square whose area the buckets have; several: an image goes
            to the largest that it fills without being enlarged.
        batch_size: Samples per batch.
        pixels: Pixels per batch instead: a bucket's batch has ``pixels // (height * width)``
            samples, at least one, so that every batch is about the same work.
        step: Buckets' sides are multiples of it, in pixels (64; 16 and 32 are common).
        max_ratio: Largest ratio of the longer side to the shorter.
        min_gap: Buckets whose log aspect ratios are nearer than this are thinned out.
        sizes: The buckets' sizes (height, width) themselves, instead of ``resolution``.
        upscale: Whether images may be enlarged to fill a bucket; a number is the largest
            enlargement. An image that fits no bucket is passed over.
        drop_last: With ``repeat=False``, drop leftovers.

    Raises:
        ValueError: The arguments allow no bucket, or neither or both of ``batch_size`` and
            ``pixels`` are given.
    """

    needs_image_size = True
    makes_batches = True

    def __init__(
        self,
        source: Pipe,
        resolution: int | Sequence[int] = 512,
        batch_size: int | None = None,
        *,
        pixels: int | None = None,
        step: int = 64,
        max_ratio: float = 2.5,
        min_gap: float = 0.05,
        sizes: Sequence[tuple[int, int]] | None = None,
        upscale: bool | float = True,
        drop_last: bool = False,
    ) -> None:
        if (batch_size is None) == (pixels is None):
            raise ValueError(f"give batch_size or pixels, got {batch_size=} and {pixels=}")
        for name, value in (("batch_size", batch_size), ("pixels", pixels)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.source: Pipe = source
        self.resolution = resolution
        self.batch_size = batch_size
        self.pixels = pixels
        self.step = step
        self.max_ratio = max_ratio
        self.min_gap = min_gap
        self.sizes = None if sizes is None else [(int(h), int(w)) for h, w in sizes]
        self.upscale = upscale
        self.drop_last = drop_last
        self.buckets = Buckets.make(
            None if sizes is not None else resolution,
            step=step,
            max_ratio=max_ratio,
            min_gap=min_gap,
            sizes=self.sizes,
            upscale=upscale,
        )

    def batch_sizes(self) -> list[int]:
        """Return the number of samples in a batch of each bucket."""
        count = len(self.buckets.sizes)
        return [
            self.buckets.batch_size(i, batch_size=self.batch_size, pixels=self.pixels)
            for i in range(count)
        ]

    def _order(self, lane: Lane) -> Order[Batch]:
        return BucketOrder(self.source._order(lane), lane, self)


class BucketOrder(Order[Batch]):
    """The buckets of one lane: flat arrays of refs, and the samples they name nowhere."""

    def __init__(self, source: Order[Item], lane: Lane, pipe: AspectRatioBucketer) -> None:
        self.source = source
        self.lane = lane
        self.assign = pipe.buckets.assign
        self.sizes = pipe.buckets.sizes
        self.full = [3 * n for n in pipe.batch_sizes()]
        self.drop_last = pipe.drop_last
        self.bins = [array("q") for _ in self.sizes]
        self.words = repr(pipe.arguments())

    def next(self) -> Batch:
        first_lap = turned_down = 0
        while True:
            try:
                ref = self.source.next().ref
            except StopIteration:
                return self._leftover()
            i = self._bucket(ref)
            if i >= 0:
                held = self.bins[i]
                held.extend(ref)
                if len(held) >= self.full[i]:
                    return self._leave(i)
                turned_down = 0
                continue
            if not turned_down:
                first_lap = self.source.laps
            turned_down += 1
            if turned_down >= PATIENCE and self.source.laps - first_lap > 2 * self.lane.count:
                raise ValueError(
                    f"no image fits a bucket in {self.source.laps - first_lap} passes of lane "
                    f"{self.lane.number}: AspectRatioBucketer({self.words})"
                )

    def _bucket(self, ref: Ref) -> int:
        """Return the sample's bucket, or -1 where it is passed over."""
        size = self.lane.sources.image_size(ref)
        if isinstance(size, tuple):
            return self.assign(*size)
        try:
            return self.assign(*sample_image_size(self.source.resolve(ref)))
        except DataError as error:
            self.lane.fail(*self.lane.sources.name(ref), error)
            return -1

    def _leave(self, i: int) -> Batch:
        held = self.bins[i]
        self.bins[i] = array("q")
        return Batch(list(_refs(held)), self.sizes[i])

    def _leftover(self) -> Batch:
        if not self.drop_last:
            for i, held in enumerate(self.bins):
                if held:
                    return self._leave(i)
        raise StopIteration

    def state(self) -> State:
        return [self.source.state(), pack_refs(self.bins, self.lane.sources)]

    def load(self, state: State) -> None:
        source, packed = state
        self.source.load(source)
        self.bins = unpack_refs(packed, len(self.sizes), self.lane.sources)

    def resolve(self, ref: Ref) -> Sample:
        return self.source.resolve(ref)

    @property
    def laps(self) -> int:
        return self.source.laps


def _refs(flat: "array[int]") -> Iterable[Ref]:
    numbers: Any = iter(flat)
    return (Ref(*three) for three in zip(numbers, numbers, numbers, strict=True))

"""The base of all pipes: descriptions that chain."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch.utils.data import IterDataPipe

from .order import Lane, Order

if TYPE_CHECKING:
    from .loader import ElasticDataLoader


class Pipe(IterDataPipe[Any]):
    """A description of a step: its arguments and its source, and no position.

    Pipes chain by methods. Up to ``.decode()`` (or ``.load()``) they decide the order; from there on
    they do the work. Iterating a pipe is a preview of lane 0; training takes ``.loader()``.

    Every constructor argument is kept in an attribute of the same name: a checkpoint lists them.
    """

    source: "Pipe | None" = None
    half: Literal["order", "work"] = "order"
    needs_image_size = False
    makes_batches = False
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

        return Graph.of(self).order(lane)

    def __iter__(self) -> Iterator[Any]:
        from .graph import preview

        return preview(self)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments but its sources, as a checkpoint lists them."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {n: getattr(self, n) for n in names if n not in ("source", "sources", "others")}

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={v!r}" for k, v in self.arguments().items())
        own = f"{type(self).__name__}({args})"
        return own if self.source is None else f"{self.source!r} -> {own}"

    # -- the order half -------------------------------------------------------------------------

    def filter(self, predicate: Callable[[dict[str, Any]], bool]) -> "Pipe":
        """Keep the samples for which ``predicate(sample)`` is true.

        Fields are extents here; ``sample["txt"].read()`` gives a field's bytes.
        """
        from .filter import Filter

        return Filter(self, predicate)

    def filter_size(
        self,
        *,
        min_side: int = 0,
        max_side: int | None = None,
        min_pixels: int = 0,
        max_pixels: int | None = None,
        max_ratio: float | None = None,
    ) -> "Pipe":
        """Keep the samples whose image has the right size, read from its header.

        Args:
            min_side: Least shorter side, pixels.
            max_side: Largest longer side, pixels.
            min_pixels: Least area.
            max_pixels: Largest area.
            max_ratio: Largest ratio of the longer side to the shorter.
        """
        from .filter import SizeFilter

        return SizeFilter(
            self,
            min_side=min_side,
            max_side=max_side,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            max_ratio=max_ratio,
        )

    def filter_caption(
        self, *, min_length: int = 1, max_length: int | None = None, field: str = "txt"
    ) -> "Pipe":
        """Keep the samples whose text field has from ``min_length`` to ``max_length`` characters."""
        from .filter import CaptionFilter

        return CaptionFilter(self, min_length=min_length, max_length=max_length, field=field)

    def select(self, *fields: str) -> "Pipe":
        """Keep only these fields of each sample, and those whose names begin with ``__``."""
        from .fields import Selector

        return Selector(self, fields)

    def rename(self, **new_to_old: str) -> "Pipe":
        """Rename fields: ``rename(caption="txt")``. Names with dots go in as ``**{"a.b": "c"}``."""
        from .fields import Renamer

        return Renamer(self, new_to_old)

    def shuffle(self, buffer_size: int) -> "Pipe":
        """Shuffle in a window of ``buffer_size`` samples, which holds refs and no data."""
        from .shuffle import Shuffler

        return Shuffler(self, buffer_size)

    def mix(self, *others: "Pipe", weights: Sequence[float] | None = None) -> "Pipe":
        """Draw from this graph and ``others`` in proportion to ``weights`` (equal where None)."""
        from .mix import Mixer

        return Mixer((self, *others), weights)

    def batch(self, batch_size: int, *, drop_last: bool = False) -> "Pipe":
        """Batch ``batch_size`` samples in the order in which they come."""
        from .batch import Batcher

        return Batcher(self, batch_size, drop_last=drop_last)

    def bucket_by_aspect_ratio(
        self,
        resolution: int | Sequence[int] = 512,
        batch_size: int | None = None,
        *,
        pixels: int | None = None,
        step: int = 64,
        max_ratio: float = 2.0,
        sizes: Sequence[tuple[int, int]] | None = None,
        upscale: bool | float = True,
        drop_last: bool = False,
    ) -> "Pipe":
        """Batch samples whose images have nearly the same shape; see `AspectRatioBucketer`."""
        from .bucket import AspectRatioBucketer

        return AspectRatioBucketer(
            self,
            resolution,
            batch_size,
            pixels=pixels,
            step=step,
            max_ratio=max_ratio,
            sizes=sizes,
            upscale=upscale,
            drop_last=drop_last,
        )

    def lanes(
        self, n: int = 1, by: Literal["samples", "shards"] = "samples", repeat: bool = True
    ) -> "Pipe":
        """Deal the whole order half out to ``n`` lanes; see `Lanes`."""
        from .lanes import Lanes

        return Lanes(self, n, by, repeat)

    # -- the work half --------------------------------------------------------------------------

    def load(self) -> "Pipe":
        """Begin the work half without decoding: each field's bytes are read."""
        from .load import FieldLoader

        return FieldLoader(self)

    def decode(self, size: int | tuple[int, int] | None = None, **options: Any) -> "Pipe":
        """Begin the work half: images to uint8 tensors, texts to str; see `Decoder` for the options."""
        from .decode import Decoder

        return Decoder(self, size, **options)

    def shuffle_caption(self, *, separator: str = ",", keep: int = 0, p: float = 1.0) -> "Pipe":
        """Shuffle the parts of each caption but the first ``keep``, with probability ``p``."""
        from .caption import CaptionShuffler

        return CaptionShuffler(self, separator=separator, keep=keep, p=p)

    def drop_caption(
        self, p: float = 0.1, *, parts: float = 0.0, separator: str = ",", keep: int = 0
    ) -> "Pipe":
        """Empty whole captions with probability ``p``, and single parts with probability ``parts``."""
        from .caption import CaptionDropper

        return CaptionDropper(self, p, parts=parts, separator=separator, keep=keep)

    def affix_caption(self, *, prefix: str = "", suffix: str = "", trigger: str = "") -> "Pipe":
        """Put a prefix, a suffix or a trigger phrase to each caption."""
        from .caption import CaptionAffixer

        return CaptionAffixer(self, prefix=prefix, suffix=suffix, trigger=trigger)

    def map(self, fn: Callable[..., dict[str, Any]]) -> "Pipe":
        """Apply ``fn`` to each SAMPLE (for whole batches: ``transform``); see `Mapper`."""
        from .map import Mapper

        return Mapper(self, fn)

    def transform(self, t: Callable[..., Any]) -> "Pipe":
        """Apply ``t`` to each BATCH (for single samples: ``map``); see `Transformer`."""
        from .map import Transformer

        return Transformer(self, t)

    def loader(self, num_workers: int = 0, **options: Any) -> "ElasticDataLoader":
        """Return the graph's loader, a torchdata StatefulDataLoader; see `ElasticDataLoader`."""
        from .loader import ElasticDataLoader

        return ElasticDataLoader(self, num_workers, **options)


__all__ = ["Pipe"]

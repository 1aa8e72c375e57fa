"""Keep some samples."""

from collections.abc import Callable
from typing import Any

from .captions import CAPTIONS, caption_candidates, decode_text, parse_json, read_json_field
from .decode_fields import find_field
from .errors import DataError, MissingData
from .order import Item, Lane, Order, Through
from .pipe import Pipe
from .read import read_value
from .sample import IMAGE_SIZE, UNLOADED, Sample

PATIENCE = 10_000
"""Samples that are turned down in a row, at least, before a pipe says that it keeps nothing. Of few
samples, a lane may miss the only good one for many passes: it has other parts of them each time."""


class FilterOrder(Through):
    """Passes on the items whose sample satisfies a predicate."""

    def __init__(
        self, source: Order[Item], lane: Lane, predicate: Callable[[Sample], bool], words: str
    ) -> None:
        super().__init__(source, lane)
        self.predicate = predicate
        self.words = words

    def next(self) -> Item:
        first_lap = turned_down = 0
        while True:
            passed = self.passed(self.source.next())
            if passed is not None:
                return passed
            if not turned_down:
                first_lap = self.source.laps
            turned_down += 1
            if turned_down >= PATIENCE and self.source.laps - first_lap > 2 * self.lane.count:
                raise ValueError(
                    f"{self.words} let no sample through in {self.source.laps - first_lap} passes "
                    f"of lane {self.lane.number}: loosen it, or look at what it is given"
                )

    def passed(self, item: Item) -> Item | None:
        """Return the item with its sample, or None where it is turned down."""
        try:
            sample = self.sample(item)
            if self.predicate(sample):
                return Item(item.ref, sample)
        except DataError as error:
            self.fail(item.ref, error)
        return None


class Filter(Pipe):
    """Yields the samples for which a predicate is true (``.filter(predicate)``).

    Args:
        source: Pipe of samples.
        predicate: A pure function of the sample. Fields are extents: ``sample["txt"].read()``.
            It may raise `DataError`, which ``on_error="skip"`` passes over.
    """

    filters = True

    def __init__(self, source: Pipe, predicate: Callable[[Sample], bool]) -> None:
        if not callable(predicate):
            raise TypeError(f"predicate must be a function, got {type(predicate).__name__}")
        self.source: Pipe = source
        self.predicate = predicate

    def _order(self, lane: Lane) -> Order[Item]:
        return FilterOrder(self.source._order(lane), lane, self.predicate, _words(self))


class SizeFilter(Pipe):
    """Yields the samples whose image has the right size (``.filter_size(...)``).

    The size is read from the image's header, EXIF orientation counted. A sample without an image
    is bad data.

    Args:
        source: Pipe of samples.
        min_side: Least shorter side, pixels.
        max_side: Largest longer side, pixels.
        min_pixels: Least area.
        max_pixels: Largest area.
        max_ratio: Largest ratio of the longer side to the shorter.
    """

    filters = True

    def __init__(
        self,
        source: Pipe,
        *,
        min_side: int = 0,
        max_side: int | None = None,
        min_pixels: int = 0,
        max_pixels: int | None = None,
        max_ratio: float | None = None,
    ) -> None:
        if max_ratio is not None and max_ratio < 1:
            raise ValueError(
                f"max_ratio is longer side / shorter side, at least 1; got {max_ratio}"
            )
        _check_limits("side", min_side, max_side)
        _check_limits("pixels", min_pixels, max_pixels)
        self.source: Pipe = source
        self.min_side = min_side
        self.max_side = max_side
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.max_ratio = max_ratio

    needs_image_size = True

    def keeps(self, sample: Sample) -> bool:
        """Return whether the sample's image has the right size."""
        height, width = sample_image_size(sample)
        short, long, area = min(height, width), max(height, width), height * width
        return (
            short >= self.min_side
            and area >= self.min_pixels
            and (self.max_side is None or long <= self.max_side)
            and (self.max_pixels is None or area <= self.max_pixels)
            and (self.max_ratio is None or long <= self.max_ratio * short)
        )

    def _order(self, lane: Lane) -> Order[Item]:
        return FilterOrder(self.source._order(lane), lane, self.keeps, _words(self))


class CaptionFilter(Pipe):
    """Yields the samples whose text has the right length (``.filter_caption(...)``).

    Args:
        source: Pipe of samples.
        min_length: Least number of characters, surrounding white space left out.
        max_length: Largest number of characters.
        field: The text field, or such as ``json.text``, as in `Decoder` (default: the first of
            ``caption``, ``txt``, ``text`` that a sample has). A sample without it is left out where
            ``min_length`` is above 0. Of several captions the longest counts.
    """

    filters = True

    def __init__(
        self,
        source: Pipe,
        *,
        min_length: int = 1,
        max_length: int | None = None,
        field: str | None = None,
    ) -> None:
        _check_limits("length", min_length, max_length)
        self.source: Pipe = source
        self.min_length = min_length
        self.max_length = max_length
        self.field = field

    def keeps(self, sample: Sample) -> bool:
        """Return whether the sample's text has the right length."""
        name = self.field or next((name for name in CAPTIONS if name in sample), "")
        field, inner = find_field(name, sample)
        try:
            length = 0 if field is None else _text_length(sample[field], inner)
        except MissingData:
            length = 0
        except DataError as error:
            raise DataError(f"field {field!r}: {error}") from error
        return length >= self.min_length and (self.max_length is None or length <= self.max_length)

    def _order(self, lane: Lane) -> Order[Item]:
        return FilterOrder(self.source._order(lane), lane, self.keeps, _words(self))


def sample_image_size(sample: Sample) -> tuple[int, int]:
    """Return (height, width) of the sample's image.

    Raises:
        DataError: It has no image, or the image's header cannot be read.
    """
    size: Any = sample.get(IMAGE_SIZE)
    if size is None:
        fields = ", ".join(f for f in sample if not f.startswith("__"))
        raise DataError(f"has no image; its fields are: {fields or 'none'}")
    if isinstance(size, str):
        raise DataError(size)
    height, width = size
    return height, width


def _text_length(value: Any, inner: str | None) -> int:
    """Return the number of characters of a field that holds a text, or of its longest caption.

    Where ``inner`` is given, the field holds a JSON object, and the text is what has that name.
    """
    if value is None:
        return 0
    if isinstance(value, UNLOADED):
        value = decode_text(read_value(value))
    if inner is not None:
        record = parse_json(value)
        value = read_json_field(record, inner) if inner in record else ""
    return max((len(text) for text in caption_candidates(value)), default=0)


def _check_limits(name: str, least: int, most: int | None) -> None:
    if most is not None and least > most:
        raise ValueError(f"min_{name}={least} is above max_{name}={most}: nothing would be kept")


def _words(pipe: Pipe) -> str:
    arguments = ", ".join(f"{k}={v!r}" for k, v in pipe.arguments().items() if v is not None)
    return f"{type(pipe).__name__}({arguments})"

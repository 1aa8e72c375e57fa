"""What a training tells of itself: numbers, pictures and words, to whatever keeps or shows them."""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from PIL import Image

from .picture import Picture, to_pil

TRAIN_LOSS, VAL_LOSS = "train/loss", "val/loss"
IMAGES_PER_SECOND = "images_per_second"

NAME = re.compile(r"[^\s/\x00-\x1f\x7f][^\x00-\x1f\x7f]*")


class Tracker(Protocol):
    """Keeps or shows what a training tells.

    Attributes:
        required: Whether the training ends when the tracker fails; one that is not required is
            left out from then on, with a warning.
    """

    required: bool

    def progress(self, step: int) -> None:
        """Take in that a step is done: called after each one, so it must be quick."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take in numbers of a step; they may be infinite or no number."""

    def images(
        self, step: int, name: str, pictures: Sequence[Image.Image], captions: Sequence[str]
    ) -> None:
        """Take in pictures that belong together, each RGB and with its caption ("" for none)."""

    def text(self, step: int, name: str, words: str) -> None:
        """Take in words."""

    def close(self, *, failed: bool = False) -> None:
        """Finish what was begun; nothing is told afterwards."""


class Trackers:
    """Tells several trackers the same, in order.

    A value's name may begin with ``train/`` or ``val/``: a report draws ``train/loss`` and
    ``val/loss`` in one chart. What follows a further slash is one curve of many:
    ``val/loss_at/0.1`` and ``val/loss_at/0.5`` share a chart as well.

    All of a step is to be logged before its checkpoint is saved: a training that goes on from a
    checkpoint drops what was logged of later steps, and logs it again.

    Args:
        trackers: Whom to tell: none on other ranks than 0 (`open_trackers` sees to that).
    """

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = list(trackers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)

    def progress(self, step: int) -> None:
        """Tell that step ``step`` is done: the first one is 1. Call it after each step."""
        self._tell(lambda tracker: tracker.progress(step))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell the numbers of a step.

        Args:
            step: Optimizer steps done so far.
            values: Numbers by name; what ``float`` takes, so also tensors of one element.

        Raises:
            ValueError: If the step is negative, or a name is empty, begins with a slash or a space,
                or has line breaks.
        """
        _check(step, *values)
        numbers = {name: float(value) for name, value in values.items()}
        self._tell(lambda tracker: tracker.log(step, numbers))

    def image(self, step: int, name: str, picture: Picture, caption: str = "") -> None:
        """Tell one picture, as `images` tells several."""
        self.images(step, name, [picture], [caption])

    def images(
        self, step: int, name: str, pictures: Sequence[Picture], captions: Sequence[str] = ()
    ) -> None:
        """Tell pictures that belong together, such as those of all validation prompts.

        Args:
            step: Optimizer steps done so far.
            name: The same at every step: a report shows how the pictures of a name change.
            pictures: PIL images, arrays uint8 [H, W, 3], or tensors uint8 [3, H, W].
            captions: One for each picture, or none at all.

        Raises:
            TypeError: If an array is not uint8.
            ValueError: If there are no pictures, or not as many captions; and as `log`.
        """
        _check(step, name)
        captions = list(captions) or [""] * len(pictures)
        if not len(pictures) or len(captions) != len(pictures):
            raise ValueError(
                f"{name!r} has {len(pictures)} pictures and {len(captions)} captions: give at "
                "least one picture, and a caption for each or for none"
            )
        if not self._trackers:
            return
        converted = [to_pil(picture) for picture in pictures]
        self._tell(lambda tracker: tracker.images(step, name, converted, captions))

    def text(self, step: int, name: str, words: str) -> None:
        """Tell words, such as where a checkpoint was saved."""
        _check(step, name)
        self._tell(lambda tracker: tracker.text(step, name, words))

    def close(self, *, failed: bool = False) -> None:
        """Finish all; again does nothing.

        Args:
            failed: Whether the training ended by an error.
        """
        trackers, self._trackers = self._trackers, []
        errors = []
        for tracker in reversed(trackers):  # the console last begun is the first to give way
            try:
                tracker.close(failed=failed)
            except Exception as error:
                if tracker.required:
                    errors.append(error)
                else:
                    _warn(tracker, error)
        if errors:
            raise errors[0]

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                # Hours of training are worth more than a curve on somebody's server.
                if tracker.required:
                    raise
                self._trackers.remove(tracker)
                _warn(tracker, error)


def short_name(name: str) -> str:
    """Return how a value is called in a line: ``train/loss`` is plainly the loss."""
    if name == IMAGES_PER_SECOND:
        return "images/s"
    return name.removeprefix("train/")


def short_number(value: float) -> str:
    """Return a number in four significant digits: ``0.4132``, ``1,234``, ``1e-05``."""
    if math.isfinite(value) and 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _warn(tracker: Tracker, error: Exception) -> None:
    kind = type(tracker).__name__
    warnings.warn(
        f"{kind} failed and is told nothing more ({type(error).__name__}: {error}); the training "
        "goes on, and log.jsonl has everything",
        RuntimeWarning,
        stacklevel=4,
    )


def _check(step: int, *names: str) -> None:
    if step < 0:
        raise ValueError(f"a step must be at least 0, got {step}")
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"a name must not be empty, begin with a slash or space, or have line breaks, "
                f"got {name!r}"
            )

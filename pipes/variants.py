"""All captions and crops that a graph may make of a sample, with their probabilities.

A cache of latents or embeddings is filled with them beforehand, and then every visit is a hit; each
comes as often as it would without a cache.
"""

from typing import NamedTuple

from .caption import CaptionPipe
from .decode import Decoder
from .draws import Draws
from .errors import DataError, name_sample
from .geometry import Crop
from .map import Mapper
from .outcomes import Outcomes, merged
from .pipe import Pipe
from .sample import KEY, URL, Ref, Sample
from .urls import base_name
from .work import WorkPipe, numbered


class CaptionVariant(NamedTuple):
    """A caption that a sample may get.

    Attributes:
        weight: Probability that a visit has it.
        caption: The caption.
    """

    weight: float
    caption: str


class ImageVariant(NamedTuple):
    """A crop and flip that a sample's image may get.

    Attributes:
        weight: Probability that a visit has it.
        variant: Number of the crop, for `Decoder.at_variant`; None where it is no choice.
        flip: Whether it is mirrored.
        crop: The region of the upright original.
    """

    weight: float
    variant: int | None
    flip: bool
    crop: Crop


def caption_variants(pipe: Pipe, sample: Sample) -> list[CaptionVariant]:
    """Return all captions that ``pipe`` may give a sample, equal ones together.

    They are what stands in ``caption`` when all work on samples is done: picked by ``.decode()``,
    then affixed, shuffled and dropped in the graph's order. What a ``.transform()`` does to a whole
    batch is not counted.

    Example: "a, b, c" behind ``.shuffle_caption(keep=1).drop_caption(0.5)`` gives
    (0.5, ""), (0.25, "a, b, c") and (0.25, "a, c, b").

    Args:
        pipe: A graph with a work half, which begins with ``.decode()``.
        sample: One of its samples, as the order half gives it: fields are not loaded.

    Returns:
        The captions, whose weights sum to 1 but for rounding.

    Raises:
        DataError: The sample has no caption, or a bad one.
        ValueError: The captions cannot be listed: a shuffle or drop has too many outcomes and no
            ``variants=``, or a ``.map()`` may change captions. The message says what to do.
    """
    steps = _work(pipe)
    draws = _draws(sample)
    try:
        found = _decoder(steps).captions.outcomes(sample)
        if found is None:
            raise DataError(
                "has no caption: name its field in .decode(caption=…), or give caption_default=''"
            )
        for step, nth in numbered(steps)[1:]:
            found = _changed(step, found, draws.of(nth))
    except DataError as error:
        raise DataError(f"{name_sample(sample[URL], sample[KEY])}: {error}") from error
    return [CaptionVariant(float(weight), caption) for weight, caption in merged(found)]


def image_variants(
    pipe: Pipe, sample: Sample, original: tuple[int, int], target: tuple[int, int]
) -> list[ImageVariant]:
    """Return all crops and flips that ``pipe`` may make of a sample's image.

    `Decoder.at_variant` makes each. Crops that are the same region, as where nothing is cut off,
    are listed once.

    Args:
        pipe: A graph with a work half, which begins with ``.decode()``.
        sample: One of its samples; only its key and URL are looked at.
        original: (height, width) of the upright original.
        target: (height, width) that it gets: its bucket's, or ``size`` of ``.decode()``.

    Returns:
        The variants, whose weights sum to 1 but for rounding.

    Raises:
        ValueError: Crops are random and ``.decode()`` has no ``variants=``.
    """
    found = _decoder(_work(pipe)).crops.outcomes(original, target, _draws(sample))
    return [ImageVariant(float(weight), *variant) for weight, variant in found]


def count_image_variants(pipe: Pipe) -> int:
    """Return how many crops and flips ``pipe`` may make of one image, at most.

    Raises:
        ValueError: As `image_variants`.
    """
    return len(_decoder(_work(pipe)).crops.choices())


def _work(pipe: Pipe) -> list[WorkPipe]:
    """Return the pipes of the work half, in order."""
    steps: list[WorkPipe] = []
    while isinstance(pipe, WorkPipe):
        steps.insert(0, pipe)
        pipe = pipe.source
    return steps


def _decoder(steps: list[WorkPipe]) -> Decoder:
    if not steps or not isinstance(steps[0], Decoder):
        found = f"it begins with {type(steps[0]).__name__}" if steps else "it has none"
        raise ValueError(f"variants are of a work half that begins with .decode(); {found}")
    return steps[0]


def _draws(sample: Sample) -> Draws:
    """Return draws of which the sample's variants alone mean something."""
    return Draws(0, Ref(0, 0, 0), (base_name(sample[URL]), sample[KEY]))


def _changed(step: WorkPipe, captions: Outcomes[str], draws: Draws) -> Outcomes[str]:
    """Return what a pipe makes of captions, each with its weight."""
    if step.per == "batch" or (isinstance(step, Mapper) and step.keeps_caption):
        return captions
    if isinstance(step, CaptionPipe):
        return merged(
            (weight * share, found)
            for weight, caption in captions
            for share, found in step.outcomes(caption, draws)
        )
    if isinstance(step, Mapper):
        name = getattr(step.fn, "__qualname__", type(step.fn).__qualname__)
        raise ValueError(
            f".map({name}) may change captions, so they cannot be listed: if it leaves them as "
            "they are, say .map(…, keeps_caption=True); otherwise change them in the data set"
        )
    raise ValueError(
        f"{type(step).__name__} may change captions, so they cannot be listed: make it a "
        "CaptionPipe with outcomes()"
    )

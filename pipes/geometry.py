"""Which region of an image becomes the output. Pure geometry, height before width, in pixels.

original (upright)              output
+---------------------------+
|      left                 |
|top +-------------+        |   +----------+
|    |  height x   |  --->  |   | target   |
|    |  width      |        |   +----------+
|    +-------------+        |
+---------------------------+
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

TRIES = 10
"""Draws of a region before the central one is taken, as in torchvision."""


@dataclass(frozen=True)
class Crop:
    """A region of the upright original, in its pixels: what becomes the output, resized."""

    top: float
    left: float
    height: float
    width: float


def cover_crop(
    original: tuple[int, int], target: tuple[int, int], *, anchor: tuple[float, float]
) -> Crop:
    """Return the largest region of ``original`` that has the aspect ratio of ``target``.

    Resizing it to ``target`` is the same as resizing the whole image until it covers ``target`` and
    cutting off what stands over. One axis is always whole.

    Example: of a 600 x 400 original, a target of 512 x 512 gets the 400 x 400 region at top 100,
    left 0 with the anchor (0.5, 0.5), and at top 200 with the anchor (1, 0).

    Args:
        original: (height, width) of the upright original.
        target: (height, width) of the output.
        anchor: Where on the free (vertical, horizontal) axis the region lies, from 0 (top, left) to
            1 (bottom, right): (0.5, 0.5) is the centre, two uniform draws make a random crop.
    """
    (height, width), (target_height, target_width) = original, target
    if height * target_width >= width * target_height:  # the original is the taller one
        kept = width * target_height / target_width
        return Crop((height - kept) * anchor[0], 0.0, kept, float(width))
    kept = height * target_width / target_height
    return Crop(0.0, (width - kept) * anchor[1], float(height), kept)


def resized_crop(
    original: tuple[int, int],
    target: tuple[int, int],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] | None,
    draws: Callable[[int], float],
) -> Crop:
    """Return a region of random area and aspect ratio, as torchvision's RandomResizedCrop draws it.

    Ten tries to fit a region of whole pixels into the original; after them the largest central
    region whose ratio is within bounds. The region is stretched to ``target`` where ratios differ.

    Args:
        original: (height, width) of the upright original.
        target: (height, width) of the output.
        scale: Least and largest share of the original's area.
        ratio: Least and largest **width / height** of the region, as torchvision has it, drawn
            evenly in its logarithm. None means the target's own: nothing is stretched but for the
            rounding to whole pixels.
        draws: Gives the n-th uniform number in [0, 1); try k takes 4k to 4k + 3.
    """
    height, width = original
    low, high = ratio or (target[1] / target[0],) * 2
    log_low, log_high = math.log(low), math.log(high)
    for n in range(0, 4 * TRIES, 4):
        area = height * width * (scale[0] + draws(n) * (scale[1] - scale[0]))
        aspect = math.exp(log_low + draws(n + 1) * (log_high - log_low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(draws(n + 2) * (height - h + 1))
            left = int(draws(n + 3) * (width - w + 1))
            return Crop(top, left, h, w)
    h, w = height, width
    if width / height < low:
        h = max(1, round(width / low))
    elif width / height > high:
        w = max(1, round(height * high))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def crop_top_left(
    crop: Crop, original: tuple[int, int], target: tuple[int, int], flipped: bool
) -> tuple[int, int]:
    """Return the (top, left) of the crop in pixels of the image as resized to cover the target.

    This is the crop conditioning of SDXL (arXiv 2307.01952, section 2.2), for the crop that was
    really made: the pixels cut off above and to the left of the output, in the output's own pixels.
    A flipped output is a cut of the flipped image, so ``left`` is then measured in that one, as in
    diffusers' SDXL training script, which flips first and cuts then: what was cut off on the right
    is now on the left.

    Example: the centre 400 x 400 of a 400 x 600 original at 512 x 512: the whole would be 512 x 768
    pixels, and 128 of them are cut off on the left: (0, 128).

    Args:
        crop: The region of the upright, unflipped original.
        original: (height, width) of the upright original.
        target: (height, width) of the output.
        flipped: Whether the output is mirrored from left to right.
    """
    left = original[1] - crop.left - crop.width if flipped else crop.left
    top_pixels = round(crop.top * target[0] / crop.height)
    left_pixels = round(left * target[1] / crop.width)
    return max(0, top_pixels), max(0, left_pixels)


def stored_crop(crop: Crop, original: tuple[int, int], orientation: int) -> Crop:
    """Return the region of the pixels as stored that is ``crop`` of the upright image.

    Args:
        crop: The region of the upright original.
        original: (height, width) of the upright original.
        orientation: EXIF's, 1 to 8: how the stored pixels are to be turned. 2 mirrors left and
            right, 4 top and bottom, 3 both; 5 to 8 are 1, 4, 3, 2 in this sense, then transposed.
    """
    top, left, height, width = crop.top, crop.left, crop.height, crop.width
    full_height, full_width = original
    if orientation >= 5:
        top, left, height, width = left, top, width, height
        full_height, full_width = full_width, full_height
    upside_down, mirrored = stored_flips(orientation)
    if upside_down:
        top = full_height - top - height
    if mirrored:
        left = full_width - left - width
    return Crop(top, left, height, width)


def stored_flips(orientation: int) -> tuple[bool, bool]:
    """Return whether the stored rows, and the stored columns, run backwards (EXIF orientation)."""
    return orientation in (3, 4, 6, 7), orientation in (2, 3, 7, 8)


def check_inside(crop: Crop, original: tuple[int, int]) -> None:
    """Raise ValueError if ``crop`` is empty or not inside (height, width); floats' errors pass."""
    slack = 1e-6 * max(original)
    bottom, right = crop.top + crop.height, crop.left + crop.width
    inside = min(crop.top, crop.left) >= -slack and min(crop.height, crop.width) > 0
    if not (inside and bottom <= original[0] + slack and right <= original[1] + slack):
        raise ValueError(f"{crop} does not lie inside the image of {original[0]} x {original[1]}")

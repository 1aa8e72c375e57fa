"""The sizes that buckets have: a ladder of equal area, or a checked list."""

import math
import operator
from collections.abc import Sequence
from fractions import Fraction

Size = tuple[int, int]
"""(height, width) in pixels."""


def ladder_sizes(side: int, step: int, max_ratio: float, min_gap: float) -> list[Size]:
    """Return the sizes whose area comes nearest to ``side``² from below, from widest to tallest.

    They are the (height, width), both multiples of ``step``, of which neither side can grow by a
    step without the area going above side², the square among them: the idea of NovelAI's
    aspect-ratio bucketing (2022), without its limits to the sides, for which wide buckets lose up
    to half of the budget. side 512, step 64, max_ratio 2.5 gives 320x768, 384x640, 448x576, 512x512
    and their transposes.

    Args:
        side: Side of the square in pixels, a multiple of ``step``.
        step: Pixels.
        max_ratio: Longest side over shortest side, at most.
        min_gap: Sizes whose log ratios are nearer than this are thinned out, from the square
            outwards.
    """
    units = side // step
    tall: list[Size] = []
    last = 0.0  # log ratio of the square
    for w in range(units - 1, 0, -1):
        h = units * units // w  # rises with every w, so that none of these sizes could be wider
        if h > max_ratio * w:
            break
        if math.log(h / w) - last >= min_gap:
            tall.append((h * step, w * step))
            last = math.log(h / w)
    return [(w, h) for h, w in reversed(tall)] + [(side, side)] + tall


def ladder_sides(resolution: int | Sequence[int], step: int) -> list[int]:
    """Return each resolution rounded down to a multiple of ``step``, rising.

    Raises:
        ValueError: If there is none, one is below ``step``, or two become the same.
    """
    several = list(resolution) if isinstance(resolution, Sequence) else [resolution]
    sides = [positive("resolution", side) // step * step for side in several]
    if not sides or min(sides) == 0:
        raise ValueError(
            f"resolution must be one or more sides of at least step {step}, got {several}"
        )
    if len(set(sides)) < len(sides):
        raise ValueError(
            f"resolutions {several} are not distinct multiples of step {step}: {sides}"
        )
    return sorted(sides)


def listed_sizes(sizes: Sequence[Sequence[int]]) -> list[Size]:
    """Return a user's list of (height, width), checked, from the widest to the tallest.

    Raises:
        ValueError: If it is empty, has something else than pairs of positive integers, or has a
            size twice.
    """
    if not sizes or any(not isinstance(s, Sequence) or len(s) != 2 for s in sizes):
        raise ValueError(f"sizes must be one or more pairs (height, width), got {sizes!r}")
    pairs = [(positive("a height in sizes", h), positive("a width in sizes", w)) for h, w in sizes]
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"sizes has a size twice: {sorted(pairs)}")
    return sorted(pairs, key=lambda size: (Fraction(*size), size))


def positive(name: str, value: int) -> int:
    """Return ``value`` as an int; a ValueError if it is no whole number of 1 or more."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
    return number

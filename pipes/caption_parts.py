"""Shuffle and drop the parts of captions, as pure functions; and what may come of it.

Every function that draws is a function of its arguments and of the sample's `Draws`; ``purpose``
names the draws, so that two pipes of one kind in a graph can draw apart.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations, product

from .draws import Draws
from .outcomes import Outcomes, either, fixed_draws, listed, merged


def shuffle_parts(
    caption: str,
    *,
    separator: str = ",",
    keep: int = 0,
    p: float = 1.0,
    variants: int | None = None,
    draws: Draws,
    purpose: str = "caption.shuffle",
) -> str:
    """Return ``caption`` with its parts in a random order, joined by the separator and a space.

    "a dog, grass, sunny" may become "a dog, sunny, grass" with ``keep=1``. Parts are stripped and
    empty ones left out, as in kohya's tag shuffling; a caption that is not shuffled (by ``p``, or
    because fewer than two parts can move) comes back as it is.

    Args:
        caption: The caption.
        separator: Stands between parts. One that ends in white space is joined as it is.
        keep: Number of first parts that stay in place.
        p: Probability of shuffling.
        variants: Shuffle into one of so many fixed orders of the sample; None: into any.
        draws: The sample's draws.
        purpose: Name of the draws.
    """
    parts = split_parts(caption, separator)
    moving = len(parts) - keep
    if moving < 2 or draws.uniform(purpose) >= p:
        return caption
    draws = fixed_draws(draws, math.factorial(moving), variants, purpose)
    return join_parts(parts[:keep] + draws.shuffled(parts[keep:], purpose + ".order"), separator)


def shuffle_outcomes(
    caption: str,
    *,
    separator: str = ",",
    keep: int = 0,
    p: float = 1.0,
    variants: int | None = None,
    draws: Draws,
    purpose: str = "caption.shuffle",
) -> Outcomes[str]:
    """Return what `shuffle_parts` may give, each with its weight; ``draws``: any of the sample.

    Raises:
        ValueError: There are too many orders to list them, and no ``variants``.
    """
    parts = split_parts(caption, separator)
    kept, moving = parts[:keep], parts[keep:]
    if len(moving) < 2 or not p:
        return [(Fraction(1), caption)]
    count = math.factorial(len(moving))
    what = f"caption {caption!r:.80} has {len(moving)} parts that move, in {len(moving)}! orders"
    if listed(count, variants, what, "shuffle_caption"):
        orders = [list(order) for order in permutations(moving)]
    else:
        own = [draws.variant(k) for k in range(variants or 0)]
        orders = [one.shuffled(moving, purpose + ".order") for one in own]
    each = Fraction(p) / len(orders)
    shuffled = [(each, join_parts(kept + order, separator)) for order in orders]
    return merged([(1 - Fraction(p), caption), *shuffled])


def drop_parts(
    caption: str,
    *,
    separator: str = ",",
    keep: int = 0,
    p: float,
    variants: int | None = None,
    draws: Draws,
    purpose: str = "caption.drop_parts",
) -> str:
    """Return ``caption`` without some of its parts: each is dropped by a draw of its own.

    A caption that loses nothing comes back as it is; with ``keep=0`` it may lose all and be "".

    Args:
        caption: The caption.
        separator: Stands between parts. One that ends in white space is joined as it is.
        keep: Number of first parts that are never dropped.
        p: Probability with which each other part is dropped.
        variants: Drop as one of so many fixed variants of the sample does; None: any.
        draws: The sample's draws.
        purpose: Name of the draws.
    """
    parts = split_parts(caption, separator)
    loose = max(0, len(parts) - keep)
    draws = fixed_draws(draws, 2**loose, variants, purpose)
    stays = [draws.uniform(purpose, i) >= p for i in range(keep, keep + loose)]
    return _without(caption, parts, stays, separator)


def drop_outcomes(
    caption: str,
    *,
    separator: str = ",",
    keep: int = 0,
    p: float,
    variants: int | None = None,
    draws: Draws,
    purpose: str = "caption.drop_parts",
) -> Outcomes[str]:
    """Return what `drop_parts` may give, each with its weight; ``draws``: any of the sample.

    Raises:
        ValueError: There are too many ways to drop parts to list them, and no ``variants``.
    """
    parts = split_parts(caption, separator)
    loose = max(0, len(parts) - keep)
    each = either(1 - Fraction(p))  # whether a part stays
    if len(each) == 1:
        return [(Fraction(1), _without(caption, parts, [each[0][1]] * loose, separator))]
    what = f"caption {caption!r:.80} has {loose} parts that may be dropped, in 2^{loose} ways"
    if listed(2**loose, variants, what, "drop_caption"):
        return merged(
            (
                math.prod((weight for weight, _ in ways), start=Fraction(1)),
                _without(caption, parts, [stays for _, stays in ways], separator),
            )
            for ways in product(each, repeat=loose)
        )
    own = [draws.variant(k) for k in range(variants or 0)]
    places = range(keep, keep + loose)
    left = [[one.uniform(purpose, i) >= p for i in places] for one in own]
    return merged(
        (Fraction(1, len(own)), _without(caption, parts, stays, separator)) for stays in left
    )


def drop_caption(caption: str, *, p: float, draws: Draws, purpose: str = "caption.drop") -> str:
    """Return "" with probability ``p``, for classifier-free guidance, otherwise ``caption``."""
    return "" if draws.uniform(purpose) < p else caption


def split_parts(caption: str, separator: str = ",") -> list[str]:
    """Return the parts of ``caption`` between separators, stripped, without empty ones."""
    return [part for piece in caption.split(separator) if (part := piece.strip())]


def join_parts(parts: Sequence[str], separator: str = ",") -> str:
    """Return ``parts`` joined by the separator, and a space where it does not end in one."""
    return (separator if separator[-1:].isspace() else separator + " ").join(parts)


def check_parts(*, separator: str = ",", keep: int = 0, p: float = 1.0) -> None:
    """Raise a ValueError unless the arguments of shuffling or dropping make sense."""
    if not separator:
        raise ValueError("separator is empty; it stands between the parts of a caption, as in ','")
    if keep < 0:
        raise ValueError(f"keep is the number of first parts that stay, at least 0, got {keep}")
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability from 0 to 1, got {p}")


def _without(caption: str, parts: list[str], stays: list[bool], separator: str) -> str:
    """Return the caption of ``parts`` with those left out of the last ones that do not stay."""
    if all(stays):
        return caption
    kept = len(parts) - len(stays)
    left = [part for part, stay in zip(parts[kept:], stays, strict=True) if stay]
    return join_parts(parts[:kept] + left, separator)

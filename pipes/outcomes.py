"""What a random choice may give, each with its exact weight; and choices of a few fixed variants.

A cache of what a model makes of images and captions is only hit where crops and captions recur. So
a pipe can be told to draw among ``variants`` fixed ones of each sample (`fixed_draws`). What they
are depends on the sample alone: neither the seed nor more shards moves them.
"""

from collections.abc import Iterable
from fractions import Fraction
from typing import TypeVar

from .draws import Draws

T = TypeVar("T")
Outcomes = list[tuple[Fraction, T]]
"""(weight, outcome) of all outcomes that have a weight; the weights sum to exactly 1."""

MOST_LISTED = 64
"""Outcomes that are listed without ``variants=``; more would be entries that are never met."""


def fixed_draws(draws: Draws, count: int, variants: int | None, purpose: str) -> Draws:
    """Return what to draw an outcome from: the visit's draws, or those of a variant of the sample.

    Args:
        draws: The visit's draws.
        count: Number of outcomes, all told.
        variants: Number of fixed variants; None: no outcome is fixed. Where all outcomes are no
            more than that, none needs to be.
        purpose: What is drawn.
    """
    if variants is None or count <= variants:
        return draws
    return draws.variant(draws.below(variants, purpose + ".variant"))


def listed(count: int, variants: int | None, what: str, method: str) -> bool:
    """Return whether all outcomes are to be listed; otherwise the fixed variants are.

    Args:
        count: Number of outcomes, all told.
        variants: Number of fixed variants.
        what: What has so many outcomes, for the message.
        method: The method that takes ``variants=``, for the message.

    Raises:
        ValueError: There are too many, and no variants.
    """
    if count <= (MOST_LISTED if variants is None else variants):
        return True
    if variants is None:
        raise ValueError(
            f"{what}: more than {MOST_LISTED} are not listed. Give .{method}(…, variants=K), to "
            "have it draw among K fixed ones of each sample"
        )
    return False


def merged(outcomes: Iterable[tuple[Fraction, T]]) -> Outcomes[T]:
    """Return the outcomes with equal ones put together, in the order in which they first come."""
    weights: dict[T, Fraction] = {}
    for weight, outcome in outcomes:
        if weight:
            weights[outcome] = weights.get(outcome, Fraction(0)) + weight
    return [(weight, outcome) for outcome, weight in weights.items()]


def either(p: float | Fraction) -> Outcomes[bool]:
    """Return True with probability ``p``, exactly, and False."""
    return merged([(1 - Fraction(p), False), (Fraction(p), True)])


def check_variants(variants: int | None) -> None:
    """Raise a ValueError unless ``variants`` is None or a number of variants."""
    if variants is not None and (
        not isinstance(variants, int) or isinstance(variants, bool) or variants < 1
    ):
        raise ValueError(
            f"variants is the number of fixed variants of each sample, at least 1, or None to "
            f"draw anew at each visit; got {variants!r}"
        )

"""Augment captions."""

from fractions import Fraction

from .caption_parts import (
    check_parts,
    drop_caption,
    drop_outcomes,
    drop_parts,
    shuffle_outcomes,
    shuffle_parts,
)
from .captions import add_affixes
from .draws import Draws
from .errors import DataError
from .outcomes import Outcomes, check_variants, merged
from .pipe import Pipe
from .sample import Sample
from .slot import Slot
from .work import WorkPipe


class CaptionPipe(WorkPipe):
    """Base of the pipes that change ``caption``."""

    def work(self, sample: Sample, draws: Draws, slot: Slot) -> Sample:
        caption = sample.get("caption")
        if not isinstance(caption, str):
            raise DataError(
                "has no caption: name its field in .decode(caption=…), or give caption_default=''"
            )
        return {**sample, "caption": self.change(caption, draws)}

    def change(self, caption: str, draws: Draws) -> str:
        """Return the caption changed."""
        raise TypeError(f"{type(self).__name__} changes no captions")

    def outcomes(self, caption: str, draws: Draws) -> Outcomes[str]:
        """Return all that `change` may make of the caption, each with its weight.

        Args:
            caption: The caption.
            draws: Any draws of the sample: those of its variants alone count.

        Raises:
            ValueError: It cannot be listed.
        """
        raise ValueError(
            f"what {type(self).__name__} makes of a caption cannot be listed: it has no outcomes()"
        )


class CaptionShuffler(CaptionPipe):
    """Yields samples with the parts of their captions shuffled (``.shuffle_caption(…)``).

    Args:
        source: Pipe of the work half.
        separator: Stands between parts.
        keep: Number of first parts that stay in place.
        p: Probability of shuffling.
        variants: Number of fixed orders of each sample, of which each visit draws one, so that what
            is made of the captions can be kept in a cache. An order depends on its number, on the
            sample's key and the base name of its shard alone. Where the parts have no more orders
            than that, they are drawn among all. None: any order at each visit.
    """

    def __init__(
        self,
        source: Pipe,
        *,
        separator: str = ",",
        keep: int = 0,
        p: float = 1.0,
        variants: int | None = None,
    ) -> None:
        check_parts(separator=separator, keep=keep, p=p)
        check_variants(variants)
        self.source: Pipe = source
        self.separator = separator
        self.keep = keep
        self.p = p
        self.variants = variants

    def change(self, caption: str, draws: Draws) -> str:
        return shuffle_parts(
            caption,
            separator=self.separator,
            keep=self.keep,
            p=self.p,
            variants=self.variants,
            draws=draws,
        )

    def outcomes(self, caption: str, draws: Draws) -> Outcomes[str]:
        return shuffle_outcomes(
            caption,
            separator=self.separator,
            keep=self.keep,
            p=self.p,
            variants=self.variants,
            draws=draws,
        )


class CaptionDropper(CaptionPipe):
    """Yields samples whose captions are dropped at random (``.drop_caption(p)``).

    For classifier-free guidance a model must see empty captions too.

    Args:
        source: Pipe of the work half.
        p: Probability that the whole caption becomes "".
        parts: Probability that each single part is dropped.
        separator: Stands between parts.
        keep: Number of first parts that are never dropped singly.
        variants: Number of fixed ways of each sample to drop single parts, of which each visit
            draws one, as in `CaptionShuffler`; the whole caption is dropped with exactly ``p``.
    """

    def __init__(
        self,
        source: Pipe,
        p: float = 0.1,
        *,
        parts: float = 0.0,
        separator: str = ",",
        keep: int = 0,
        variants: int | None = None,
    ) -> None:
        check_parts(separator=separator, keep=keep, p=p)
        check_parts(p=parts)
        check_variants(variants)
        self.source: Pipe = source
        self.p = p
        self.parts = parts
        self.separator = separator
        self.keep = keep
        self.variants = variants

    def change(self, caption: str, draws: Draws) -> str:
        caption = drop_caption(caption, p=self.p, draws=draws)
        if not caption or not self.parts:
            return caption
        return drop_parts(
            caption,
            separator=self.separator,
            keep=self.keep,
            p=self.parts,
            variants=self.variants,
            draws=draws,
        )

    def outcomes(self, caption: str, draws: Draws) -> Outcomes[str]:
        left = drop_outcomes(
            caption,
            separator=self.separator,
            keep=self.keep,
            p=self.parts,
            variants=self.variants,
            draws=draws,
        )
        whole = Fraction(self.p)
        return merged([(whole, ""), *(((1 - whole) * weight, found) for weight, found in left)])


class CaptionAffixer(CaptionPipe):
    """Yields samples with a prefix, a suffix or a trigger phrase put to their captions.

    Chained by ``.affix_caption(…)``. It stands before ``.drop_caption()``: an empty caption stays.

    Args:
        source: Pipe of the work half.
        prefix: Put directly in front.
        suffix: Put directly behind.
        trigger: A phrase put in front of all, unless the caption already has it.
    """

    def __init__(
        self, source: Pipe, *, prefix: str = "", suffix: str = "", trigger: str = ""
    ) -> None:
        self.source: Pipe = source
        self.prefix = prefix
        self.suffix = suffix
        self.trigger = trigger

    def change(self, caption: str, draws: Draws) -> str:
        return add_affixes(caption, prefix=self.prefix, suffix=self.suffix, trigger=self.trigger)

    def outcomes(self, caption: str, draws: Draws) -> Outcomes[str]:
        return [(Fraction(1), self.change(caption, draws))]

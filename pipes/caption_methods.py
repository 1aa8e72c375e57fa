"""The methods that put a pipe of captions behind a pipe."""

from typing import TYPE_CHECKING, cast

from .node import Node

if TYPE_CHECKING:
    from .pipe import Pipe


class CaptionMethods(Node):
    """What every `Pipe` has for its captions; they belong to the work half."""

    def shuffle_caption(
        self, *, separator: str = ",", keep: int = 0, p: float = 1.0, variants: int | None = None
    ) -> "Pipe":
        """Shuffle the parts of each caption but the first ``keep``, with probability ``p``.

        With ``variants=K`` into one of K fixed orders of each sample; see `CaptionShuffler`.
        """
        from .caption import CaptionShuffler

        source = cast("Pipe", self)
        return CaptionShuffler(source, separator=separator, keep=keep, p=p, variants=variants)

    def drop_caption(
        self,
        p: float = 0.1,
        *,
        parts: float = 0.0,
        separator: str = ",",
        keep: int = 0,
        variants: int | None = None,
    ) -> "Pipe":
        """Empty whole captions with probability ``p``, drop parts with probability ``parts``.

        With ``variants=K`` parts are dropped in one of K fixed ways; see `CaptionDropper`.
        """
        from .caption import CaptionDropper

        return CaptionDropper(
            cast("Pipe", self), p, parts=parts, separator=separator, keep=keep, variants=variants
        )

    def affix_caption(self, *, prefix: str = "", suffix: str = "", trigger: str = "") -> "Pipe":
        """Put a prefix, a suffix or a trigger phrase to each caption."""
        from .caption import CaptionAffixer

        return CaptionAffixer(cast("Pipe", self), prefix=prefix, suffix=suffix, trigger=trigger)

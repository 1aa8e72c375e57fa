"""Which crop and which flip a visit of an image gets, and which ones there are."""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Literal, NamedTuple

from .draws import Draws
from .geometry import Crop, cover_crop, resized_crop
from .outcomes import Outcomes, check_variants, either, merged

SPACING = (5**0.5 - 1) / 2
"""Step from one variant's place to the next, in parts of the free axis: the golden ratio's. However
many there are, they lie about as far from each other as they can (Roberts, The Unreasonable
Effectiveness of Quasirandom Sequences, 2018), and each by itself lies anywhere as likely."""


class CropVariant(NamedTuple):
    """One (crop, flip) that an image may get.

    Attributes:
        variant: Number of the crop; None where there is no choice of crops.
        flip: Whether it is mirrored.
        crop: The region of the original.
    """

    variant: int | None
    flip: bool
    crop: Crop


@dataclass(frozen=True)
class Crops:
    """How crops and flips are drawn; see `Decoder`.

    Attributes:
        crop: How the region lies.
        scale: For ``"resized"``: least and largest share of the original's area.
        ratio: For ``"resized"``: least and largest width / height; None: the target's own.
        flip: Probability of a mirror image.
        variants: Number of fixed crops of each sample; None: each visit's crop is new.
        only: The (variant, flip) that is made at every visit; None: they are drawn.

    Raises:
        ValueError: An argument makes no sense.
    """

    crop: Literal["center", "random", "resized"] = "center"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] | None = None
    flip: float = 0.0
    variants: int | None = None
    only: tuple[int | None, bool] | None = None

    def __post_init__(self) -> None:
        if self.crop not in ("center", "random", "resized"):
            raise ValueError(f"crop must be 'center', 'random' or 'resized', got {self.crop!r}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a probability from 0 to 1, got {self.flip}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is two growing shares of the area in (0, 1], got {self.scale}")
        if self.ratio is not None and not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is two growing positive numbers, got {self.ratio}")
        check_variants(self.variants)
        if self.only is not None and self.only not in self.choices():
            raise ValueError(
                f"there is no (variant, flip) {self.only}: crop={self.crop!r}, flip={self.flip}, "
                f"variants={self.variants} makes {self.choices()!s:.200}"
            )

    def draw(
        self, original: tuple[int, int], target: tuple[int, int], draws: Draws
    ) -> tuple[Crop, bool]:
        """Return a visit's region of the original, and whether it is mirrored.

        Args:
            original: (height, width) of the upright original.
            target: (height, width) of the output.
            draws: The visit's draws.
        """
        if self.only is not None:
            k, flip = self.only
            return self.region(original, target, draws, k), flip
        flip = draws.uniform("decode.flip") < self.flip
        k = None
        if self.crop != "center" and self.variants is not None:
            k = draws.below(self.variants, "decode.variant")
        return self.region(original, target, draws, k), flip

    def region(
        self, original: tuple[int, int], target: tuple[int, int], draws: Draws, k: int | None
    ) -> Crop:
        """Return the region of variant ``k`` of the sample; with None, of the visit."""
        if self.crop == "resized":
            own = draws if k is None else draws.variant(k)
            numbers = partial(own.uniform, "decode.crop")
            return resized_crop(original, target, scale=self.scale, ratio=self.ratio, draws=numbers)
        anchor = (0.5, 0.5)
        if self.crop == "random":
            own = draws if k is None else draws.variant(0)
            anchor = (own.uniform("decode.top"), own.uniform("decode.left"))
            if k is not None:
                anchor = ((anchor[0] + k * SPACING) % 1, (anchor[1] + k * SPACING) % 1)
        return cover_crop(original, target, anchor=anchor)

    def choices(self) -> list[tuple[int | None, bool]]:
        """Return all (variant, flip) that images may get.

        Raises:
            ValueError: Crops are drawn anew at each visit, so there is no end of them.
        """
        numbers: list[int | None] = [None]
        if self.crop != "center":
            if self.variants is None:
                raise ValueError(
                    f"crop={self.crop!r} is another one at each visit, so that crops cannot be "
                    "listed: give .decode(…, variants=K), to have it draw among K fixed ones of "
                    "each sample"
                )
            numbers = list(range(self.variants))
        return [(k, flip) for k in numbers for _, flip in either(self.flip)]

    def outcomes(
        self, original: tuple[int, int], target: tuple[int, int], draws: Draws
    ) -> Outcomes[CropVariant]:
        """Return what `draw` may give, each with its weight; ``draws``: any of the sample.

        Variants that are the same region, as where nothing is cut off, are listed once.

        Raises:
            ValueError: As `choices`.
        """
        numbers = list(dict.fromkeys(k for k, _ in self.choices()))
        regions: dict[Crop, int | None] = {}
        found = []
        for k in numbers:
            crop = self.region(original, target, draws, k)
            first = regions.setdefault(crop, k)
            for weight, flip in either(self.flip):
                each = weight * Fraction(1, len(numbers))
                if self.only in (None, (k, flip)):
                    found.append((each, CropVariant(first, flip, crop)))
        if self.only is not None:
            found = [(Fraction(1), variant) for _, variant in found]
        return merged(found)

    def at(self, k: int | None, flip: bool) -> "Crops":
        """Return what makes nothing but one (variant, flip); a ValueError where there is none."""
        return replace(self, only=(k, flip))

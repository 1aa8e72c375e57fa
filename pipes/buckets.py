"""Which image goes to which bucket: the pure part of aspect-ratio bucketing."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np

from .bucket_sizes import Size, ladder_sides, ladder_sizes, listed_sizes, positive

REFUSED = -1
MEMO = 1 << 16  # sizes that `assign` remembers, about 10 MB; when full, all are forgotten


class _Ladder(NamedTuple):
    """The buckets of one resolution, by rising height / width.

    ``columns[k]`` has the indices of the sizes of one ratio, largest first; ``thresholds[k]`` is
    the largest ratio that still goes to column k.
    """

    thresholds: list[float]
    columns: list[tuple[int, ...]]


@dataclass(frozen=True)
class Buckets:
    """A set of bucket sizes, and the rule that gives every image one of them.

    Make one with `Buckets.make`. An image goes

    1. to the largest resolution whose bucket it fills without being enlarged: in each resolution
       the bucket looked at is the nearest by abs(log(image's ratio / bucket's ratio)), which is the
       one that crops the least away;
    2. where it fills none, to the nearest bucket of the smallest resolution, if ``enlarge`` allows
       that enlargement;
    3. otherwise to the largest of all buckets that it covers within ``enlarge`` (it lacked a few
       pixels in one direction), the nearest if several are as large;
    4. otherwise nowhere: it is refused, -1.

    An image exactly between two buckets goes to the squarer one.

    Attributes:
        sizes: (height, width) of each bucket in pixels: smaller resolutions first, and in each from
            the widest to the tallest.
        levels: Indices into ``sizes`` of the buckets of each resolution, largest resolution first.
        enlarge: The largest enlargement allowed, at least 1: ``inf`` enlarges as needed.
    """

    sizes: tuple[Size, ...]
    levels: tuple[tuple[int, ...], ...]
    enlarge: float = math.inf

    @classmethod
    def make(
        cls,
        resolution: int | Sequence[int] | None = None,
        *,
        step: int = 64,
        max_ratio: float = 2.5,
        min_gap: float = 0.05,
        sizes: Sequence[Sequence[int]] | None = None,
        upscale: bool | float = True,
    ) -> Self:
        """Return the buckets of one or several resolutions, or of a list of sizes.

        Args:
            resolution: Side in pixels of the square whose area is the budget of all sizes, rounded
                down to a multiple of ``step``; see `ladder_sizes` for which sizes there are. 512 if
                neither it nor ``sizes`` is given. A sequence gives several resolutions (never one
                height and width: for one fixed shape pass ``sizes=[(height, width)]``).
            step: All sides are multiples of it, in pixels. 64 suits every model; most need 16 or
                32.
            max_ratio: Longest side over shortest side, at most. The default takes in phone screens
                (2.2) and cinema stills (2.39); longer images are cropped.
            min_gap: Sizes of one resolution whose log ratios are nearer than this are thinned out,
                so that a small step does not make dozens of buckets that fill slowly. A gap of 0.05
                costs at most 2.5 % of an image. 0 keeps all.
            sizes: (height, width) of each bucket instead of all this. Of several sizes of one ratio
                an image gets the largest that it fills, else the smallest.
            upscale: True enlarges small images as needed. False never does: an image that fills no
                bucket is refused. A number is the largest enlargement allowed (1.25: by a quarter);
                it does not draw an image to a larger resolution than the one it fills.

        Raises:
            ValueError: If an argument makes no sense, or ``resolution`` and ``sizes`` are given.
        """
        enlarge = _enlargement(upscale)
        if sizes is not None:
            if resolution is not None:
                raise ValueError("pass resolution or sizes, not both")
            ladders = [listed_sizes(sizes)]
        else:
            step = positive("step", step)
            if not max_ratio >= 1:
                raise ValueError(f"max_ratio is long / short side, at least 1, got {max_ratio}")
            if not min_gap >= 0:
                raise ValueError(f"min_gap is a distance of log ratios, at least 0, got {min_gap}")
            sides = ladder_sides(512 if resolution is None else resolution, step)
            ladders = [ladder_sizes(side, step, max_ratio, min_gap) for side in sides]
        levels, start = [], 0
        for ladder in ladders:
            levels.append(tuple(range(start, start + len(ladder))))
            start += len(ladder)
        return cls(
            tuple(size for ladder in ladders for size in ladder), tuple(levels[::-1]), enlarge
        )

    def __len__(self) -> int:
        """Return the number of buckets."""
        return len(self.sizes)

    def assign(self, height: int, width: int) -> int:
        """Return the index into ``sizes`` of an image's bucket, or -1 if it is refused.

        Sizes met before are remembered. A size that is not positive is refused.
        """
        index = self._memo.get((height, width))
        if index is None:
            index = self._find(height, width)
            if len(self._memo) >= MEMO:
                self._memo.clear()
            self._memo[height, width] = index
        return index

    def assign_many(self, sizes: np.ndarray) -> np.ndarray:
        """Return what `assign` gives for each (height, width) of ``sizes``, int [n, 2]: int32 [n].

        A million take a fraction of a second.
        """
        height, width = as_sizes(sizes).T
        found = np.full(len(height), REFUSED, dtype=np.int32)
        unplaced = (height > 0) & (width > 0)
        ratio = height / np.where(unplaced, width, 1)
        bucket_h, bucket_w = np.array(self.sizes).T
        nearest = found
        for thresholds, columns in self._ladders:
            column = np.searchsorted(np.array(thresholds), ratio, side="left")
            for depth in range(max(map(len, columns))):
                rung = np.array([c[min(depth, len(c) - 1)] for c in columns], dtype=np.int32)
                nearest = rung[column]
                fills = unplaced & (bucket_h[nearest] <= height) & (bucket_w[nearest] <= width)
                found[fills] = nearest[fills]
                unplaced &= ~fills
        h, w = np.maximum(height, 1) * self.enlarge, np.maximum(width, 1) * self.enlarge
        allowed = unplaced & (bucket_h[nearest] <= h) & (bucket_w[nearest] <= w)
        found[allowed] = nearest[allowed]
        unplaced &= ~allowed
        found[unplaced] = self._largest_covered_many(height[unplaced], width[unplaced])
        return found

    def batch_size(
        self, index: int, *, batch_size: int | None = None, pixels: int | None = None
    ) -> int:
        """Return how many images of bucket ``index`` make a batch.

        Args:
            index: The bucket.
            batch_size: A fixed number of images.
            pixels: Or a budget: as many images as have at most this many pixels, but one at least.

        Raises:
            ValueError: If not exactly one of the two is given, or it is not positive.
        """
        if batch_size is not None and pixels is None:
            return positive("batch_size", batch_size)
        if pixels is not None and batch_size is None:
            height, width = self.sizes[index]
            return max(1, positive("pixels", pixels) // (height * width))
        raise ValueError(f"pass batch_size or pixels, got batch_size={batch_size}, pixels={pixels}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle needs: the description, without what is remembered."""
        return type(self), (self.sizes, self.levels, self.enlarge)

    @cached_property
    def _memo(self) -> dict[Size, int]:
        return {}

    @cached_property
    def _ladders(self) -> tuple[_Ladder, ...]:
        return tuple(self._ladder(level) for level in self.levels)

    @cached_property
    def _by_area(self) -> list[int]:
        return sorted(range(len(self)), key=lambda i: (-math.prod(self.sizes[i]), i))

    def _ladder(self, level: tuple[int, ...]) -> _Ladder:
        by_ratio: dict[Fraction, list[int]] = {}
        for i in sorted(level, key=self._by_area.index):
            by_ratio.setdefault(Fraction(*self.sizes[i]), []).append(i)
        ratios = sorted(by_ratio)
        thresholds = [_threshold(low, high) for low, high in pairwise(ratios)]
        return _Ladder(thresholds, [tuple(by_ratio[ratio]) for ratio in ratios])

    def _find(self, height: int, width: int) -> int:
        if height <= 0 or width <= 0:
            return REFUSED
        ratio = height / width
        nearest = REFUSED
        for thresholds, columns in self._ladders:
            for nearest in columns[bisect_left(thresholds, ratio)]:
                if self._covers(height, width, nearest):
                    return nearest
        if self._covers(height * self.enlarge, width * self.enlarge, nearest):
            return nearest
        return self._largest_covered(height, width)

    def _covers(self, height: float, width: float, index: int) -> bool:
        return self.sizes[index][0] <= height and self.sizes[index][1] <= width

    def _largest_covered(self, height: int, width: int) -> int:
        best, best_area, best_error = REFUSED, 0, math.inf
        for i in self._by_area:
            h, w = self.sizes[i]
            if h * w < best_area:
                break
            if self._covers(height * self.enlarge, width * self.enlarge, i):
                ratio = (height / width) / (h / w)
                error = max(ratio, 1 / ratio)
                if error < best_error:
                    best, best_area, best_error = i, h * w, error
        return best

    def _largest_covered_many(self, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        best = np.full(len(height), REFUSED, dtype=np.int32)
        best_area, best_error = np.zeros(len(height), np.int64), np.full(len(height), np.inf)
        for i in self._by_area:
            h, w = self.sizes[i]
            ratio = (height / width) / (h / w)
            error = np.maximum(ratio, 1 / ratio)
            covered = (h <= height * self.enlarge) & (w <= width * self.enlarge)
            wins = covered & (h * w >= best_area) & (error < best_error)
            best[wins], best_area[wins], best_error[wins] = i, h * w, error[wins]
        return best


def as_sizes(sizes: np.ndarray) -> np.ndarray:
    """Return ``sizes`` as int64 [n, 2]; a ValueError says what else was given."""
    array = np.asarray(sizes)
    if array.size == 0:
        return np.empty((0, 2), dtype=np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        given = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"sizes must be integers [n, 2] of (height, width), got {given}")
    return array.astype(np.int64, copy=False)


def _threshold(low: Fraction, high: Fraction) -> float:
    """Return the largest float ratio that goes to ``low`` rather than to ``high``.

    It is their geometric mean; the mean itself goes to the squarer of the two. No logarithm is
    taken of an image's ratio: Python and numpy round height / width alike, but not its logarithm. A
    rational mean is had exactly, so that ties are exact.
    """
    mean = low * high
    roots = math.isqrt(mean.numerator), math.isqrt(mean.denominator)
    if (roots[0] ** 2, roots[1] ** 2) == (mean.numerator, mean.denominator):
        middle = roots[0] / roots[1]
    else:
        middle = math.sqrt(mean)
    return middle if middle >= 1 else math.nextafter(middle, 0)


def _enlargement(upscale: bool | float) -> float:
    if isinstance(upscale, bool | np.bool_):  # asked before numbers, since True == 1.0
        return math.inf if upscale else 1.0
    if not upscale >= 1:
        raise ValueError(f"upscale is True, False or an enlargement of 1 or more, got {upscale}")
    return float(upscale)

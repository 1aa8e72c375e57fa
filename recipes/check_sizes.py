"""Check the sizes of a data set's images: which bucket they go to, and what it costs them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..pipes import BucketReport, Buckets, bucket_report
from ..pipes.bucket_report import BucketRow
from .findings import Extreme, Findings

Namer = Callable[[int], tuple[str, str]]
"""Gives (URL, key) of the i-th sample of those that are added together."""


class SizeCheck:
    """Adds up, shard by shard, what buckets do to images; holds no sizes.

    Attributes:
        report: The bucket report of all images so far.
        smallest: The image of the smallest area; None before the first.
        largest: The image of the largest area.

    Args:
        buckets: The buckets.
        findings: Where refused, enlarged and cropped images are noted.
        crop_share: The share of an image, 0 to 1, that a crop may take without being noted.
    """

    def __init__(self, buckets: Buckets, findings: Findings, crop_share: float) -> None:
        self.buckets = buckets
        self.findings = findings
        self.crop_share = crop_share
        self.report = bucket_report(buckets, np.empty((0, 2), np.int64))
        self.smallest: Extreme | None = None
        self.largest: Extreme | None = None

    def add(self, sizes: np.ndarray, name: Namer) -> None:
        """Take in some samples.

        Args:
            sizes: Height and width of each image in pixels, integers [n, 2]; 0 where a sample has
                none, -1 where it cannot be read.
            name: What they are called.
        """
        sizes = sizes.astype(np.int64)
        with_image = (sizes != 0).any(axis=1)
        self.report = merge(self.report, bucket_report(self.buckets, sizes[with_image]))
        readable = np.flatnonzero((sizes > 0).all(axis=1))
        if not len(readable):
            return
        self._extremes(name, sizes, readable)
        chosen = self.buckets.assign_many(sizes[readable])
        self._note("refused", name, sizes, readable[chosen < 0], "")
        placed, chosen = readable[chosen >= 0], chosen[chosen >= 0]
        targets = np.array(self.buckets.sizes)[chosen]
        scale = targets / sizes[placed]
        enlarged = np.flatnonzero(scale.max(axis=1) > 1)
        for i in enlarged[: self.findings.most]:
            words = f"{scale[i].max():.2f}x to {targets[i, 0]}x{targets[i, 1]}"
            self._note("enlarged", name, sizes, placed[i : i + 1], words, count=False)
        lost = 1 - scale.min(axis=1) / scale.max(axis=1)
        cropped = np.flatnonzero(lost > self.crop_share)
        for i in cropped[: self.findings.most]:
            words = f"loses {lost[i]:.0%} to {targets[i, 0]}x{targets[i, 1]}"
            self._note("cropped", name, sizes, placed[i : i + 1], words, count=False)
        self.findings.counts["enlarged"] += len(enlarged)
        self.findings.counts["cropped"] += len(cropped)

    def _note(
        self,
        kind: str,
        name: Namer,
        sizes: np.ndarray,
        which: np.ndarray,
        words: str,
        count: bool = True,
    ) -> None:
        for i in which[: self.findings.most].tolist():
            height, width = sizes[i].tolist()
            reason = f"{height}x{width}{': ' if words else ''}{words}"
            self.findings.example(kind, *name(i), reason)
        if count:
            self.findings.counts[kind] += len(which)

    def _extremes(self, namer: Namer, sizes: np.ndarray, which: np.ndarray) -> None:
        areas = sizes[which].prod(axis=1)
        for name, at, sign in (
            ("smallest", int(areas.argmin()), 1),
            ("largest", int(areas.argmax()), -1),
        ):
            known: Extreme | None = getattr(self, name)
            height, width = sizes[which[at]].tolist()
            if known is None or sign * height * width < sign * known.height * known.width:
                setattr(self, name, Extreme(height, width, *namer(int(which[at]))))


def merge(one: BucketReport, other: BucketReport) -> BucketReport:
    """Return the report of the images of two reports on the same buckets."""
    return BucketReport(
        rows=tuple(_merge_rows(a, b) for a, b in zip(one.rows, other.rows, strict=True)),
        total=_merge_rows(one.total, other.total),
        refused=one.refused + other.refused,
        unreadable=one.unreadable + other.unreadable,
    )


def _merge_rows(one: BucketRow, other: BucketRow) -> BucketRow:
    images = one.images + other.images
    share = other.images / max(1, images)
    return replace(
        one,
        images=images,
        cropped=one.cropped + (other.cropped - one.cropped) * share,
        enlarged=one.enlarged + other.enlarged,
        enlargement=max(one.enlargement, other.enlargement),
        aspect_error=one.aspect_error + (other.aspect_error - one.aspect_error) * share,
    )

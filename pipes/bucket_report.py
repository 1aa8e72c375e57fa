"""What a set of buckets does to a set of images: how many where, what is cropped, what enlarged."""

import json
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from .bucket_sizes import Size
from .buckets import Buckets, as_sizes

HEADER = ("bucket", "images", "share", "cropped", "enlarged", "at most", "aspect error")


@dataclass(frozen=True)
class BucketRow:
    """One bucket's images.

    Attributes:
        size: (height, width) of the bucket in pixels; None in the row of totals.
        images: Images that go to it.
        cropped: Mean over the images of the share of each that a covering crop cuts away, 0 to 1.
            The crop's rounding to whole pixels is not counted.
        enlarged: Images that have to be enlarged to cover it.
        enlargement: The largest factor among them; below 1 if all images are shrunk.
        aspect_error: Mean of abs(log(image's height / width : bucket's height / width)).
    """

    size: Size | None
    images: int
    cropped: float
    enlarged: int
    enlargement: float
    aspect_error: float


@dataclass(frozen=True)
class BucketReport:
    """How a set of images falls into a set of buckets.

    ``str(report)`` is a table of plain text.

    Attributes:
        rows: One row for each bucket, in the order of `Buckets.sizes`, empty ones too.
        total: The row over all images that have a bucket.
        refused: Images that `Buckets` gives no bucket: too small for its ``enlarge``.
        unreadable: Sizes that are not positive: images whose header could not be read.
    """

    rows: tuple[BucketRow, ...]
    total: BucketRow
    refused: int
    unreadable: int

    @property
    def images(self) -> int:
        """Number of all images, refused and unreadable ones too."""
        return self.total.images + self.refused + self.unreadable

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in cells
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], self._words()])

    def to_json(self) -> str:
        """Return the report as JSON: what `as_dict` holds, indented."""
        return json.dumps(self.as_dict(), indent=2)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values; sizes are [height, width]."""
        return {"images": self.images, **asdict(self)}

    def to_html(self) -> str:
        """Return the report as an HTML fragment: a table and a line of words."""
        head, *body = (
            "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
            for tag, row in zip(["th", *["td"] * len(self.rows), "th"], self._cells(), strict=True)
        )
        rows = "\n".join(f"<tr>{row}</tr>" for row in body[:-1])
        return (
            f'<table class="bucket-report">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n'
            f"</tbody>\n<tfoot><tr>{body[-1]}</tr></tfoot>\n</table>\n<p>{escape(self._words())}</p>"
        )

    def _cells(self) -> list[tuple[str, ...]]:
        total = max(1, self.total.images)
        return [HEADER, *(_row_cells(row, total) for row in (*self.rows, self.total))]

    def _words(self) -> str:
        words = f"{self.images:,} images; sizes are height x width in pixels."
        if self.refused:
            words += f" {self.refused:,} refused: too small for every bucket."
        if self.unreadable:
            words += f" {self.unreadable:,} unreadable."
        return words


def bucket_report(buckets: Buckets, sizes: np.ndarray) -> BucketReport:
    """Return the report of images of ``sizes``, int [n, 2] of (height, width) in pixels.

    A size that is not positive counts as unreadable.
    """
    sizes = as_sizes(sizes)
    readable = (sizes > 0).all(axis=1)
    index = buckets.assign_many(sizes)
    placed = index >= 0
    index, image = index[placed], sizes[placed].astype(float)
    bucket = np.array(buckets.sizes, dtype=float)[index]
    ratio = (image[:, 0] / image[:, 1]) / (bucket[:, 0] / bucket[:, 1])
    kept = np.minimum(ratio, 1 / ratio)
    scale = (bucket / image).max(axis=1)
    columns = np.stack([1 - kept, scale > 1, -np.log(kept), scale])
    rows = [_row(size, columns[:, index == i]) for i, size in enumerate(buckets.sizes)]
    return BucketReport(
        rows=tuple(rows),
        total=_row(None, columns),
        refused=int((readable & ~placed).sum()),
        unreadable=int((~readable).sum()),
    )


def _row(size: Size | None, columns: np.ndarray) -> BucketRow:
    """Return the row of a bucket from its images' [4, n]: cropped, enlarged, error, scale."""
    images = columns.shape[1]
    cropped, enlarged, error, _ = columns.sum(axis=1)
    return BucketRow(
        size=size,
        images=images,
        cropped=float(cropped / max(1, images)),
        enlarged=int(enlarged),
        enlargement=float(columns[3].max(initial=0.0)),
        aspect_error=float(error / max(1, images)),
    )


def _row_cells(row: BucketRow, total: int) -> tuple[str, ...]:
    name = "all" if row.size is None else f"{row.size[0]}x{row.size[1]}"
    if not row.images:
        return (name, "0", *["-"] * (len(HEADER) - 2))
    return (
        name,
        f"{row.images:,}",
        f"{row.images / total:.1%}",
        f"{row.cropped:.1%}",
        f"{row.enlarged:,}",
        f"{row.enlargement:.2f}x" if row.enlarged else "-",
        f"{row.aspect_error:.3f}",
    )

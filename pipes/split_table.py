"""Some rows of a manifest: one of its splits."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Literal

import numpy as np

from .splits import SampleSplit, split_rows
from .table import Row, Table, image_path


def split_table(
    table: Table,
    splits: Mapping[str, float],
    split: str | None,
    split_by: Literal["row", "sample"],
    seed: int,
) -> "PartTable":
    """Return the rows of one split, in their order.

    Args:
        table: All rows. Each is read once, for its image's path.
        splits: Name to fraction; the fractions sum to 1.
        split: Which to return.
        split_by: See `ManifestReader`.
        seed: Another one deals the rows anew.

    Raises:
        ValueError: The fractions are wrong, or the split is none of them, or empty.
    """
    if split_by not in ("row", "sample"):
        raise ValueError(f"split_by must be 'row' or 'sample', got {split_by!r}")
    if split is None:
        raise ValueError(f"splits={dict(splits)}: say which one with split='…'")
    image = table.map.image
    # A row without a path, such as one with the image inside, stands for itself.
    keys = (image_path(table.row(i).get(image)) or f"{i}" for i in range(len(table)))
    if split_by == "row":
        rows = split_rows(keys, splits, split, seed)
    else:
        part = SampleSplit(dict(splits), split, seed)
        rows = np.flatnonzero(np.fromiter((key in part for key in keys), bool))
    if not len(rows):
        raise ValueError(f"split {split!r} gets none of the {len(table)} rows: {dict(splits)}")
    return PartTable(table, rows)


class PartTable(Table):
    """Some rows of a manifest: 8 bytes a row.

    Args:
        table: The manifest.
        rows: Their numbers, rising, int64; not empty.
    """

    def __init__(self, table: Table, rows: np.ndarray) -> None:
        self.table, self.rows = table, rows
        self.path, self.base, self.map = table.path, table.base, table.map
        words = f"{table.digest} ".encode() + rows.astype("<i8").tobytes()
        self.digest = blake2b(words, digest_size=8).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, i: int) -> tuple[Table, int]:
        return self.table.of(int(self.rows[i]))

    def row(self, i: int) -> Row:
        return self.table.row(int(self.rows[i]))

    def fragment(self, i: int) -> str:
        return self.table.fragment(int(self.rows[i]))

    def url(self, i: int) -> str:
        return self.table.url(int(self.rows[i]))

    def where(self, i: int) -> str:
        return self.table.where(int(self.rows[i]))

    def beside(self, i: int) -> range:
        rows = self.table.beside(int(self.rows[i]))
        first, end = np.searchsorted(self.rows, (rows.start, rows.stop))
        return range(int(first), int(end))

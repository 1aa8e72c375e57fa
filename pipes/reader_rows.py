"""A range of the rows of files, and the pieces that it is dealt out in."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .draws import hash_text
from .reader_batches import BatchReader, RowBatch
from .reader_blocks import RowBlock, joined
from .reader_source import EmbeddingSource
from .shard_cache import ShardCache
from .urls import base_name


class RowRange:
    """Rows ``start`` to ``end`` of blocks of files, numbered over all files.

    Holds nothing but its arguments and numbers made of them: may be pickled and forked.

    Args:
        blocks: The files.
        fields: Names of the embeddings, one for each file of a block.
        meta_columns: Columns of the metadata that are wanted.
        store: How the files are reached.
        start: First row.
        end: Row behind the last; None, or a number beyond it: all.
        piece_size: Most rows of a piece; None: whole files.

    Raises:
        ValueError: There are no such rows.
    """

    def __init__(
        self,
        blocks: Sequence[RowBlock],
        fields: tuple[str, ...],
        meta_columns: tuple[str, ...],
        store: ShardCache,
        start: int = 0,
        end: int | None = None,
        piece_size: int | None = None,
    ) -> None:
        if piece_size is not None and piece_size < 1:
            raise ValueError(f"piece_size must be at least 1 row, got {piece_size}")
        check_names(fields, meta_columns)
        self.blocks = blocks
        self.fields = fields
        self.meta_columns = meta_columns
        self.store = store
        self.piece_size = piece_size
        self.starts = np.cumsum([0, *(block.count for block in blocks)], dtype=np.int64)
        total = int(self.starts[-1])
        self.start, self.end = start, total if end is None else min(end, total)
        if not 0 <= self.start < self.end:
            raise ValueError(
                f"start={start}, end={end} takes none of the {total} rows in {len(blocks)} "
                f"file(s), {blocks[0].url} the first"
            )
        # Pieces lie in one file each: a piece's file is what must be at hand.
        firsts = np.maximum(self.starts[:-1], self.start)
        stops = np.minimum(self.starts[1:], self.end)
        step = piece_size or total
        cut = [np.arange(a, b, step) for a, b in zip(firsts, stops, strict=True) if a < b]
        self.pieces: np.ndarray = np.concatenate(cut)
        self.sizes: np.ndarray = np.append(self.pieces[1:], self.end) - self.pieces

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, all fields together."""
        return sum(file.dimension * file.dtype.itemsize for file in self.blocks[0].files)

    def part(self, start: int, end: int | None) -> "RowRange":
        """Return rows ``start`` to ``end``, counted from this range's first; no file is opened.

        Raises:
            ValueError: There are no such rows.
        """
        stop = len(self) if end is None else min(end, len(self))
        if not 0 <= start < stop:
            raise ValueError(f"start={start}, end={end} takes none of the {len(self)} rows")
        return self.over(self.start + start, self.start + stop)

    def over(self, start: int, end: int) -> "RowRange":
        """Return global rows ``start`` to ``end`` of the same files."""
        return RowRange(
            self.blocks, self.fields, self.meta_columns, self.store, start, end, self.piece_size
        )

    def describe(self) -> dict[str, Any]:
        """Return what the rows are, as JSON holds it; where the files lie is no difference."""
        files = [(base_name(block.url), block.count) for block in self.blocks]
        return {
            "files": {
                "count": len(files),
                "names": f"{hash_text(repr(files)):016x}",
                "first": files[0][0],
                "last": files[-1][0],
            },
            "fields": list(self.fields),
            "meta_columns": list(self.meta_columns),
            "start": self.start,
            "end": self.end,
        }

    def source(self) -> EmbeddingSource:
        """Return this process's open files."""
        return EmbeddingSource(
            self.blocks,
            self.starts,
            self.pieces,
            self.sizes,
            self.fields,
            self.meta_columns,
            self.store,
        )

    def batches(self, batch_size: int, dtype: np.dtype | None) -> Iterator[RowBatch]:
        """Yield all rows in batches as they lie.

        Args:
            batch_size: Rows of a batch; the last one may be short.
            dtype: Type of the arrays; None: as stored.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        reader = BatchReader(self.blocks, self.starts, self.meta_columns, dtype, self.store)
        return reader.batches(batch_size, self.start, self.end)


def joined_rows(parts: Mapping[str, RowRange]) -> RowRange:
    """Return the rows of several ranges in step: each one's field under the name given.

    Files are paired by number. All but the fields is the first one's.

    Raises:
        ValueError: A file has no partner, or the ranges are of other rows; the message says which.
        DataError: Paired files do not have the same number of rows.
    """
    first = next(iter(parts.values()))
    blocks = joined({name: rows.blocks for name, rows in parts.items()})
    if len({(rows.start, rows.end) for rows in parts.values()}) > 1:
        ranges = ", ".join(f"{name} {rows.start} to {rows.end}" for name, rows in parts.items())
        raise ValueError(f"readers in step take the same rows; these take {ranges}")
    names = [rows.fields if len(rows.fields) > 1 else (name,) for name, rows in parts.items()]
    fields = tuple(name for several in names for name in several)
    return RowRange(
        blocks,
        fields,
        first.meta_columns,
        first.store,
        first.start,
        first.end,
        first.piece_size,
    )


def check_names(fields: tuple[str, ...], meta_columns: tuple[str, ...]) -> None:
    """Refuse fields that do not have names of their own.

    Raises:
        ValueError: Two have the same name, or one has a name that a batch needs.
    """
    names = [*fields, *meta_columns]
    bad = [name for name in names if names.count(name) > 1 or name == "row"]
    if bad or not fields:
        raise ValueError(
            f"fields need names of their own, other than 'row'; got {', '.join(names) or 'none'}"
        )

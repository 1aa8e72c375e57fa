"""Rows of embeddings read one after another."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .cached_shard import CachedShard
from .npy import NpyRows
from .parquet_rows import ArrowRows
from .read_ahead import ReadAhead
from .reader_blocks import RowBlock
from .shard_cache import ShardCache

CONVERT_BYTES = 512 << 10
"""Bytes that are read at once where they are converted to another type: they stay in the
processor's cache meanwhile."""

_TORCHES = (np.float16, np.float32, np.float64)
_GRAIN = 32_768


class Column(list[Any]):
    """The values of a column of metadata: a list that pandas' ``to_list()`` can be called on."""

    def to_list(self) -> list[Any]:
        """Return the values."""
        return list(self)

    tolist = to_list


class Metadata(Mapping[str, Column]):
    """The metadata of a batch's rows: name of a column to its values.

    ``pandas.DataFrame(dict(metadata))`` makes a table of it; pandas is not needed for it.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = {name: Column(values) for name, values in columns.items()}

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._columns)

    def __repr__(self) -> str:
        rows = len(next(iter(self._columns.values()), ()))
        return f"Metadata({rows} rows of {', '.join(self._columns)})"


class RowBatch(NamedTuple):
    """Rows that follow each other.

    Attributes:
        start: Global number of the first row.
        arrays: The embeddings, one array [rows, numbers] for each field.
        columns: The columns of the metadata, in the order asked for.
    """

    start: int
    arrays: list[np.ndarray]
    columns: list[list[Any]]


class BatchReader:
    """Reads batches of rows in their order, straight into the arrays that it gives.

    In this thread: handing arrays over from others costs more than the reading where files lie in
    memory, and the system reads files ahead by itself where not. Remote files are fetched ahead.

    Args:
        blocks: The files.
        starts: Global number of each block's first row, and the number of all, int64 [blocks + 1].
        meta_columns: Columns of the metadata that are wanted.
        dtype: Type of the arrays; None: as stored.
        store: How the files are reached.
    """

    def __init__(
        self,
        blocks: Sequence[RowBlock],
        starts: np.ndarray,
        meta_columns: tuple[str, ...],
        dtype: np.dtype | None,
        store: ShardCache,
    ) -> None:
        self.blocks = blocks
        self.starts = starts
        self.meta_columns = meta_columns
        self.dtype = dtype
        self.store = store
        self._ahead = ReadAhead()

    def batches(self, batch_size: int, start: int, end: int) -> Iterator[RowBatch]:
        """Yield rows ``start`` to ``end`` (not included) in batches; the last one may be short."""
        block = int(np.searchsorted(self.starts, start, side="right")) - 1
        stack = ExitStack()
        try:
            opened = self._open(stack, block, end)
            for first in range(start, end, batch_size):
                batch = self._empty(first, min(first + batch_size, end))
                at, stop = first, first + len(batch.arrays[0])
                while at < stop:
                    if at == self.starts[block + 1]:
                        stack.close()
                        block += 1
                        opened = self._open(stack, block, end)
                    until = min(stop, int(self.starts[block + 1]))
                    opened.fill(batch, at - int(self.starts[block]), at - first, until - first)
                    at = until
                yield batch
        finally:
            stack.close()

    def _open(self, stack: ExitStack, block: int, end: int) -> "_Opened":
        """Open the files of a block, and have those of the next one fetched."""
        files = self.blocks[block].files
        opened = [stack.enter_context(file.opened(self.store)) for file in files]
        for fd, _ in opened:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        if self.starts[block + 1] < end:
            for file in self.blocks[block + 1].files:
                if file.remote:
                    self._ahead.fetch(CachedShard(self.store, file.url, file.version))
        table = self.blocks[block].metadata
        if not self.meta_columns:
            return _Opened(opened, None)
        assert table is not None
        return _Opened(opened, ArrowRows(table.table(self.meta_columns, self.store)))

    def _empty(self, start: int, end: int) -> RowBatch:
        files = self.blocks[0].files
        arrays = [np.empty((end - start, f.dimension), self.dtype or f.dtype) for f in files]
        return RowBatch(start, arrays, [[] for _ in self.meta_columns])


@dataclass(frozen=True)
class _Opened:
    """The open files of a block."""

    files: list[tuple[int, NpyRows]]
    table: ArrowRows | None

    def fill(self, batch: RowBatch, row: int, start: int, end: int) -> None:
        """Read rows from ``row`` on into places ``start`` to ``end`` of a batch."""
        for (fd, rows), array in zip(self.files, batch.arrays, strict=True):
            if array.dtype == rows.native:
                rows.read_into(fd, row, array[start:end])
                continue
            step = max(1, CONVERT_BYTES // rows.row_bytes)
            stored = np.empty((min(step, end - start), *rows.row_shape), rows.native)
            for at in range(start, end, step):
                some = stored[: min(step, end - at)]
                rows.read_into(fd, row + at - start, some)
                _convert(some, array[at : at + len(some)])
        if self.table is not None:
            found = self.table.columns(row, row + end - start)
            for values, new in zip(batch.columns, found, strict=True):
                values += new


def _convert(stored: np.ndarray, out: np.ndarray) -> None:
    """Copy rows into an array of another type."""
    if stored.dtype not in _TORCHES or out.dtype not in _TORCHES:
        out[...] = stored
        return
    # Of float16, ten times numpy's speed; in parts that torch does not deal out to threads.
    source, target = torch.from_numpy(stored).flatten(), torch.from_numpy(out).view(-1)
    for at in range(0, len(source), _GRAIN):
        target[at : at + _GRAIN].copy_(source[at : at + _GRAIN])

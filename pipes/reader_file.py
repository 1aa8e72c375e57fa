"""One file of embeddings: how many rows it has, and where they are read."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from .cached_shard import CachedShard
from .errors import DataError
from .npy import HEADER_BYTES, NpyRows, parse_npy, read_npy
from .parquet_rows import ParquetRows
from .reader_files import NumberedFile
from .remote import Version
from .shard_cache import ShardCache
from .urls import local_path

AT_ONCE = 16
"""Number of files whose headers are read at once."""


@dataclass(frozen=True)
class EmbeddingFile:
    """A file of embeddings, of which only the header was read.

    Holds nothing but its arguments: may be pickled and forked.

    Attributes:
        found: The file.
        version: Its version.
        count: Number of rows.
        dimension: Numbers in a row.
        dtype: Their type, in the machine's byte order.
        rows: Where the rows lie; None of a Parquet file, before it is unpacked.
        parquet: The Parquet file, and its column; None of an ``.npy`` file.
    """

    found: NumberedFile
    version: Version
    count: int
    dimension: int
    dtype: np.dtype
    rows: NpyRows | None = None
    parquet: tuple[ParquetRows, str] | None = None

    @property
    def url(self) -> str:
        """The file."""
        return self.found.url

    @property
    def remote(self) -> bool:
        """Whether the file itself is kept in the cache while it is read."""
        return self.parquet is None and local_path(self.url) is None

    def place(self, store: ShardCache) -> "Place":
        """Return where the rows are read in this process; a Parquet file is unpacked first.

        Raises:
            DataError: A Parquet file is damaged.
            RuntimeError: The file is another one than when it was listed.
            OSError: It cannot be read.
        """
        if self.parquet is not None:
            rows, column = self.parquet
            path = rows.vectors(column, store)
            unpacked = replace(read_npy(path), name=self.url)
            if (unpacked.row_size, unpacked.native) != (self.dimension, self.dtype):
                raise DataError(
                    f"{self.url} has rows of {unpacked.row_size} numbers of type "
                    f"{unpacked.native}, and the first file has {self.dimension} of type "
                    f"{self.dtype}: keep others in a folder of their own"
                )
            return Place(path, unpacked, None)
        assert self.rows is not None
        path_here = local_path(self.url)
        if path_here is None:
            shard = CachedShard(store, self.url, self.version)
            return Place(shard.path, self.rows, shard)
        if store.version(self.url) != self.version:
            raise RuntimeError(
                f"{self.url} was changed under the run: put it back, or start the run anew"
            )
        return Place(path_here, self.rows, None)

    @contextmanager
    def opened(self, store: ShardCache) -> Iterator[tuple[int, NpyRows]]:
        """Yield an open file with the rows, which stays meanwhile, and where they lie in it."""
        if self.remote:
            assert self.rows is not None
            with store.hold(self.url, self.version) as hold:
                yield hold.fd, self.rows
            return
        place = self.place(store)
        fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd, place.rows
        finally:
            os.close(fd)


@dataclass(frozen=True)
class Place:
    """Where one process reads a file's rows.

    Attributes:
        path: The local file.
        rows: Where the rows lie in it.
        shard: The file where it lies in the cache and may leave it; else None.
    """

    path: str
    rows: NpyRows
    shard: CachedShard | None


def open_files(
    files: Sequence[NumberedFile], column: str | None, store: ShardCache
) -> list[EmbeddingFile]:
    """Return the files with what their headers say.

    Args:
        files: Files of one kind.
        column: The column of the embeddings in Parquet files; None: they are ``.npy`` files.
        store: How they are reached.

    Raises:
        DataError: A file holds no embeddings, or other ones than the first; the message names both.
        OSError: A file cannot be read.
    """
    with ThreadPoolExecutor(AT_ONCE) as threads:
        if column is None:
            found = list(threads.map(lambda file: _npy(file, store), files))
        else:
            tables = list(threads.map(lambda file: ParquetRows.of(file.url, store), files))
            found = _parquet(files, tables, column, store)
    full = [file for file in found if file.count]
    for file in full:
        if (file.dimension, file.dtype) != (full[0].dimension, full[0].dtype):
            raise DataError(
                f"{file.url} has rows of {file.dimension} numbers of type {file.dtype}, and "
                f"{full[0].url} has {full[0].dimension} of type {full[0].dtype}: embeddings of one "
                "kind are read together; keep others in a folder of their own"
            )
    return found


def _npy(file: NumberedFile, store: ShardCache) -> EmbeddingFile:
    version = store.version(file.url)
    path = local_path(file.url)
    if path is not None:
        rows = read_npy(path, file.url)
    elif not version.known or version.size < 0:  # known by its hash: it must be fetched
        with store.hold(file.url) as hold:
            version = hold.version
            rows = replace(read_npy(hold.path), name=file.url)
    else:
        end = min(HEADER_BYTES, version.size)
        rows = parse_npy(store.remote.read(file.url, 0, end), version.size, file.url)
    if len(rows) and len(rows.shape) != 2:
        raise DataError(
            f"{file.url} holds an array of shape {rows.shape}; expected embeddings, [rows, numbers]"
        )
    if len(rows) and rows.dtype.kind not in "fiu":
        raise DataError(f"{file.url} holds values of type {rows.dtype}; expected real numbers")
    return EmbeddingFile(file, version, len(rows), rows.row_size, rows.native, rows=rows)


def _parquet(
    files: Sequence[NumberedFile], tables: Sequence[ParquetRows], column: str, store: ShardCache
) -> list[EmbeddingFile]:
    """Return Parquet files; the first one's type stands for all until they are unpacked."""
    for table in tables:
        table.check([column], "embedding_column")
    first = next((table for table in tables if table.count), None)
    dimension, dtype = (0, np.dtype("f4")) if first is None else first.vector_type(column, store)
    return [
        EmbeddingFile(file, table.version, table.count, dimension, dtype, parquet=(table, column))
        for file, table in zip(files, tables, strict=True)
    ]


__all__ = ["EmbeddingFile", "Place", "open_files"]

"""Rows of Parquet files by their numbers: unpacked once into files that have them in the open.

In Parquet a row is found by decoding all of its group, often a million rows. So the columns that
are wanted are unpacked once into the cache: vectors into an ``.npy`` file, others into an Arrow
file, from which each row is read where it lies.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from .errors import DataError
from .make_once import make_once
from .remote import Version, hash_name
from .retry import explained, retry
from .shard_cache import ShardCache, cache_root
from .urls import local_path

_ROWS = 16_384
"""Rows that are unpacked at once."""


@dataclass(frozen=True)
class ParquetRows:
    """A Parquet file, of which only the footer was read.

    Holds nothing but its arguments: may be pickled and forked.

    Attributes:
        url: The file.
        version: Its version.
        count: Its number of rows.
        columns: Names of its columns.
    """

    url: str
    version: Version
    count: int
    columns: tuple[str, ...]

    @classmethod
    def of(cls, url: str, store: ShardCache) -> "ParquetRows":
        """Return what the footer of the file at ``url`` says.

        Args:
            url: The file.
            store: How it is reached.

        Raises:
            DataError: It is no Parquet file.
            OSError: It cannot be read.
            ImportError: pyarrow is not installed.
        """
        _arrow(url)
        import pyarrow.parquet

        version = store.version(url)
        with _readable(url, store) as file:
            found = _reading(url, lambda: pyarrow.parquet.ParquetFile(file))
            schema = found.schema_arrow
            return cls(url, version, found.metadata.num_rows, tuple(schema.names))

    def check(self, columns: Sequence[str], what: str) -> None:
        """Refuse columns that the file does not have.

        Raises:
            ValueError: It lacks one; the message has the names of those that it has.
        """
        for name in columns:
            if name not in self.columns:
                raise ValueError(
                    f"{self.url} has no column {name!r} for {what}=; its columns are: "
                    f"{', '.join(map(repr, self.columns)) or 'none'}"
                )

    def vector_type(self, column: str, store: ShardCache) -> tuple[int, np.dtype]:
        """Return how many numbers a row of ``column`` has, and their type: those of the first row.

        Raises:
            DataError: They are no lists of numbers.
            OSError: The file cannot be read.
        """
        import pyarrow.parquet

        with _readable(self.url, store) as file:
            found = _reading(self.url, lambda: pyarrow.parquet.ParquetFile(file))
            batches = found.iter_batches(batch_size=1, columns=[column], use_threads=False)
            vectors = _vectors(_reading(self.url, lambda: next(batches)), self.url, column, 0)
            return vectors.shape[1], vectors.dtype

    def vectors(self, column: str, store: ShardCache) -> str:
        """Return the path of an ``.npy`` file [rows, numbers] with a column of lists of numbers.

        It is made in the cache where it is not there, and takes as much room as the numbers do.

        Raises:
            DataError: The rows are no lists of numbers, or not all of one length; the message names
                the row.
            OSError: The file cannot be read, or the cache cannot be written.
        """
        dimension, dtype = self.vector_type(column, store)

        def write(batches: Iterator[Any], out: BinaryIO) -> None:
            header = {"descr": dtype.str, "fortran_order": False, "shape": (self.count, dimension)}
            npy_format.write_array_header_1_0(out, header)
            done = 0
            for batch in batches:
                vectors = _vectors(batch, self.url, column, done)
                if vectors.shape[1] != dimension:
                    raise DataError(
                        f"{self.url}, row {done + 1}: {column!r} has {vectors.shape[1]} numbers, "
                        f"and {dimension} in the first row"
                    )
                out.write(np.ascontiguousarray(vectors, dtype).data)
                done += len(vectors)

        return self._unpacked([column], "npy", store, write)

    def table(self, columns: Sequence[str], store: ShardCache) -> str:
        """Return the path of an Arrow file with some columns, made in the cache if need be.

        Raises:
            OSError: The file cannot be read, or the cache cannot be written.
        """
        import pyarrow

        def write(batches: Iterator[Any], out: BinaryIO) -> None:
            with pyarrow.ipc.new_file(out, self._schema(columns, store)) as file:
                for batch in batches:
                    file.write_batch(batch)

        return self._unpacked(columns, "arrow", store, write)

    def _schema(self, columns: Sequence[str], store: ShardCache) -> Any:
        import pyarrow
        import pyarrow.parquet

        with _readable(self.url, store) as file:
            schema = pyarrow.parquet.ParquetFile(file).schema_arrow
        return pyarrow.schema([schema.field(name) for name in columns])

    def _unpacked(
        self,
        columns: Sequence[str],
        ending: str,
        store: ShardCache,
        write: Callable[[Iterator[Any], BinaryIO], None],
    ) -> str:
        import pyarrow.parquet

        place = f"{local_path(self.url) or self.url} {self.version} {list(columns)!r}"
        folder = os.path.join(cache_root(store.root), "rows")
        target = os.path.join(folder, f"{hash_name(place)}.{ending}")

        def made(fd: int) -> None:
            with _held(self, store) as path, open(fd, "wb", closefd=False) as out:
                found = _reading(self.url, lambda: pyarrow.parquet.ParquetFile(path))
                batches = found.iter_batches(_ROWS, columns=list(columns), use_threads=False)
                _reading(self.url, lambda: write(batches, out))

        if not os.path.exists(target):
            os.makedirs(folder, exist_ok=True)
            make_once(target, made)
        return target


class ArrowRows:
    """Rows of an Arrow file, mapped into memory, by number.

    Args:
        path: The file, as `ParquetRows.table` has made it.
    """

    def __init__(self, path: str) -> None:
        import pyarrow

        file = pyarrow.ipc.open_file(pyarrow.memory_map(path))
        self.names: list[str] = file.schema.names
        batches = [file.get_batch(i) for i in range(file.num_record_batches)]
        self._batches = [batch.columns for batch in batches]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])

    def row(self, i: int) -> list[Any]:
        """Return the values of row ``i``, in the order of `names`."""
        at = int(np.searchsorted(self._starts, i, side="right")) - 1
        k = i - int(self._starts[at])
        return [column[k].as_py() for column in self._batches[at]]

    def columns(self, start: int, end: int) -> list[list[Any]]:
        """Return each column's values in rows ``start`` to ``end`` (not included)."""
        found: list[list[Any]] = [[] for _ in self.names]
        at = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < end:
            first = int(self._starts[at])
            stop = min(end, int(self._starts[at + 1]))
            for values, column in zip(found, self._batches[at], strict=True):
                values += column.slice(start - first, stop - start).to_pylist()
            start, at = stop, at + 1
        return found


def _arrow(url: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{url} is read by pyarrow, which is not installed: pip install 'penstock[tables]'"
        ) from error


@contextmanager
def _readable(url: str, store: ShardCache) -> Iterator[Any]:
    """Yield what pyarrow reads parts of a file from: a path, or a remote file that is open."""
    path = local_path(url)
    if path is not None:
        yield path
        return

    def attempt() -> Any:
        fs, inside = store.remote.filesystem(url)
        return fs.open(inside, "rb")

    try:
        file = retry(attempt)
    except Exception as error:
        raise explained(url, error) from error
    with file:
        yield file


@contextmanager
def _held(rows: ParquetRows, store: ShardCache) -> Iterator[str]:
    """Yield the path of a local file, which stays meanwhile."""
    path = local_path(rows.url)
    if path is None:
        with store.hold(rows.url, rows.version) as hold:
            yield hold.path
        return
    if store.version(rows.url) != rows.version:
        raise RuntimeError(
            f"{rows.url} was changed under the run: put it back, or start the run anew"
        )
    yield path


def _reading(url: str, read: Callable[[], Any]) -> Any:
    import pyarrow

    try:
        return read()
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise DataError(f"{url} is no Parquet file that can be read: {error}") from error
    except OSError as error:
        # pyarrow's own, of a damaged page; the system's have a number.
        if error.errno is None:
            raise DataError(f"{url} is damaged: {error}") from error
        raise


def _vectors(batch: Any, url: str, column: str, first: int) -> np.ndarray:
    """Return the rows of a batch's only column, [rows, numbers]."""
    import pyarrow.compute
    import pyarrow.types as types

    values = batch.column(0)
    kind = values.type
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not lists or not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
        raise DataError(f"{url}: column {column!r} has the type {kind}; expected lists of numbers")
    if values.null_count:
        row = first + values.is_null().to_pylist().index(True) + 1
        raise DataError(f"{url}, row {row}: there is no {column!r} in the row")
    flat = values.flatten()
    if types.is_fixed_size_list(kind):
        lengths = np.full(len(values), kind.list_size)
    else:
        lengths = pyarrow.compute.list_value_length(values).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != lengths[0])
    if len(wrong):
        row = first + int(wrong[0]) + 1
        raise DataError(
            f"{url}, row {row}: {column!r} has {lengths[wrong[0]]} numbers, and {lengths[0]} in "
            f"row {first + 1}"
        )
    size = int(lengths[0])
    if not size:
        raise DataError(f"{url}, row {first + 1}: {column!r} is empty")
    if flat.null_count:
        row = first + flat.is_null().to_pylist().index(True) // size + 1
        raise DataError(f"{url}, row {row}: {column!r} lacks a number")
    numbers: np.ndarray = flat.to_numpy(zero_copy_only=False)
    return numbers.reshape(len(values), size)

"""Manifests of Arrow's: Parquet files, and the Arrow files of Hugging Face's data sets."""

import os
import zlib
from array import array
from collections import OrderedDict
from hashlib import blake2b
from typing import Any

import numpy as np

from .errors import DataError
from .sample import Stored
from .table import ColumnMap, Row, Table, Wanted

GROUP_BYTES = 256 << 20
"""Bytes of images that one process keeps of a Parquet file's row groups."""


class RowImage(Stored):
    """The image in a row of a table: bytes, read when they are asked for.

    Args:
        table: The table.
        row: The row.
    """

    __slots__ = ("row", "table")

    def __init__(self, table: "ArrowRows", row: int) -> None:
        self.table = table
        self.row = row

    def read(self) -> bytes:
        """Return the image's bytes."""
        value = self.table.image(self.row)
        if not value:
            raise DataError(f"{self.table.where(self.row)}: there is no image in the row")
        return bytes(value)


class ArrowRows(Table):
    """What Parquet and Arrow files have in common: a schema, and values of Arrow's."""

    inside: bool
    """Whether the images lie in the table, as bytes or as Hugging Face's {bytes, path}."""

    def __init__(self, path: str, wanted: Wanted, base: str, shown: str | None) -> None:
        self._file = path
        self.path, self.base = shown or path, base
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"{self.path} is read by pyarrow, which is not installed: "
                "pip install 'penstock[tables]'"
            ) from error
        stat = os.stat(path)
        self.version = stat.st_size, stat.st_mtime_ns

    def _take(self, texts: Any, more: bytes) -> None:
        """Mark the rows; ``texts`` is the table of all columns but images, ``more`` goes along."""
        if not len(self):
            raise ValueError(f"{self.path} has no rows")
        names = [n for n in (self.map.image, *self.map.captions) if n in texts.column_names]
        marks = array("I")
        for batch in texts.select(names).to_batches(max_chunksize=10_000):
            columns = [batch.column(name).to_pylist() for name in names]
            for values in zip(*columns, strict=True) if names else ():
                row = {self.map.image: None, **dict(zip(names, values, strict=True))}
                marks.append(zlib.crc32(self.map.mark(row)))
        plain = np.frombuffer(marks, np.uint32).astype("<u4").tobytes()
        self.digest = blake2b(plain + more, digest_size=8).hexdigest()

    def fragment(self, i: int) -> str:
        return f"row={i + 1}"

    def image_version(self, i: int) -> tuple[int, int]:
        return self.version

    def image(self, i: int) -> bytes | None:
        """Return the bytes of the image in a row."""
        raise NotImplementedError


class ParquetTable(ArrowRows):
    """The rows of a Parquet file.

    Columns without images are held in memory as Arrow has them: what their texts take, and a few
    bytes a value. Images inside are read a row group at a time, and the last groups are kept, up to
    `GROUP_BYTES` a process. A shuffle over a large file with images inside reads each group many
    times: small row groups (``row_group_size=100``) make that cheap.

    Args:
        path: The file.
        wanted: Which columns are what.
        base: Folder that images are relative to.
        shown: What errors call it.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: It is no Parquet file, or its columns do not fit.
    """

    def __init__(self, path: str, wanted: Wanted, base: str, *, shown: str | None = None) -> None:
        super().__init__(path, wanted, base, shown)
        file = self._open()
        schema = file.schema_arrow
        self.map = wanted.find(schema.names, self.path)
        self.inside = _is_bytes(schema.field(self.map.image).type)
        names = [n for n in schema.names if not self.inside or n != self.map.image]
        groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
        counts = np.array([group.num_rows for group in groups], np.int64)
        self._starts = np.cumsum(counts) - counts
        self._count: int = file.metadata.num_rows
        # read(), not read_row_groups: one that is damaged shall be seen now.
        self._texts = file.read(columns=names, use_threads=False)
        more = counts.astype("<i8").tobytes()
        if self.inside:
            sizes = [self._image_bytes(group) for group in groups]
            more += np.array(sizes, "<i8").tobytes()
        self._take(self._texts, more)
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._held = 0
        self._opened: tuple[int, Any] | None = None

    def _image_bytes(self, group: Any) -> int:
        columns = [group.column(c) for c in range(group.num_columns)]
        name = self.map.image
        return sum(
            c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] == name
        )

    def _open(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self._file, pre_buffer=False)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{self.path} is no Parquet file: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        # What is open stays in its process.
        return {**self.__dict__, "_groups": OrderedDict(), "_held": 0, "_opened": None}

    def __len__(self) -> int:
        return self._count

    def row(self, i: int) -> Row:
        row: Row = {name: self._texts.column(name)[i].as_py() for name in self._texts.column_names}
        if self.inside:
            row[self.map.image] = RowImage(self, i)
        return row

    def _group(self, i: int) -> int:
        return int(np.searchsorted(self._starts, i, side="right")) - 1

    def beside(self, i: int) -> range:
        if not self.inside:
            return range(i, i + 1)
        group = self._group(i)
        ends = (*self._starts[1:].tolist(), self._count)
        return range(int(self._starts[group]), int(ends[group]))

    def image(self, i: int) -> bytes | None:
        group = self._group(i)
        images = self._groups.get(group)
        if images is None:
            images = self._groups[group] = self._read(group)
            self._held += images.nbytes
            while self._held > GROUP_BYTES and len(self._groups) > 1:
                self._held -= self._groups.popitem(last=False)[1].nbytes
        else:
            self._groups.move_to_end(group)
        return _bytes_of(images[i - int(self._starts[group])])

    def _read(self, group: int) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self._open()
        stat = os.stat(self._file)
        if (stat.st_size, stat.st_mtime_ns) != self.version:
            raise RuntimeError(
                f"{self.path} was changed under the run: put it back, or start the run anew"
            )
        table = self._opened[1].read_row_group(group, columns=[self.map.image], use_threads=False)
        return table.column(self.map.image)


class ArrowTable(ArrowRows):
    """The rows of an Arrow file, as Hugging Face's ``Dataset.save_to_disk`` writes them.

    The file is mapped into memory, as that library does it: rows are read where they lie.

    Args:
        path: The file.
        wanted: Which columns are what.
        base: Folder that images are relative to.
        shown: What errors call it.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: It is no Arrow file, or its columns do not fit.
    """

    def __init__(self, path: str, wanted: Wanted, base: str, *, shown: str | None = None) -> None:
        super().__init__(path, wanted, base, shown)
        table = self._table = self._map()
        self.map: ColumnMap = wanted.find(table.column_names, self.path)
        self.inside = _is_bytes(table.schema.field(self.map.image).type)
        names = [n for n in table.column_names if not self.inside or n != self.map.image]
        self._names = names
        more = b""
        if self.inside:
            more = table.column(self.map.image).nbytes.to_bytes(8, "little")
        self._take(table.select(names), more)

    def _map(self) -> Any:
        import pyarrow

        source = pyarrow.memory_map(self._file)
        try:
            with open(self._file, "rb") as file:
                whole = file.read(6) == b"ARROW1"
            opened = pyarrow.ipc.open_file(source) if whole else pyarrow.ipc.open_stream(source)
            table = opened.read_all()
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{self.path} is no Arrow file: {error}") from error
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_table"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._table = self._map()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, i: int) -> Row:
        row: Row = {name: self._table.column(name)[i].as_py() for name in self._names}
        if self.inside:
            row[self.map.image] = self._image(i)
        return row

    def _image(self, i: int) -> RowImage | str | None:
        value = self._table.column(self.map.image)[i]
        if _has_bytes(value):
            return RowImage(self, i)
        path: str | None = value["path"].as_py() if hasattr(value, "keys") else None
        return path

    def image(self, i: int) -> bytes | None:
        return _bytes_of(self._table.column(self.map.image)[i])


def _is_bytes(kind: Any) -> bool:
    """Return whether a column's type is bytes, or Hugging Face's struct with ``bytes`` in it."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _has_bytes(value: Any) -> bool:
    return bool(value.is_valid and (not hasattr(value, "keys") or value["bytes"].is_valid))


def _bytes_of(value: Any) -> bytes | None:
    """Return the bytes of an Arrow scalar, or of the ``bytes`` in a struct; None without any."""
    if not _has_bytes(value):
        return None
    data: bytes = (value["bytes"] if hasattr(value, "keys") else value).as_py()
    return data

"""Manifests of Arrow's: what its formats have in common, and Hugging Face's Arrow files."""

import os
import zlib
from array import array
from hashlib import blake2b
from typing import Any

import numpy as np

from .errors import DataError
from .read import forget
from .sample import Stored
from .table import ColumnMap, Row, Table, Wanted


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
        forget(path)  # it may have been replaced since it was last read
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
        self.inside = is_bytes(table.schema.field(self.map.image).type)
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
        return bytes_of(self._table.column(self.map.image)[i])


def is_bytes(kind: Any) -> bool:
    """Return whether a column's type is bytes, or Hugging Face's struct with ``bytes`` in it."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _has_bytes(value: Any) -> bool:
    return bool(value.is_valid and (not hasattr(value, "keys") or value["bytes"].is_valid))


def bytes_of(value: Any) -> bytes | None:
    """Return the bytes of an Arrow scalar, or of the ``bytes`` in a struct; None without any."""
    if not _has_bytes(value):
        return None
    data: bytes = (value["bytes"] if hasattr(value, "keys") else value).as_py()
    return data

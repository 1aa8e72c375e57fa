"""Arrays in ``.npy`` files, read by rows.

The format is NumPy's (``numpy.lib.format``, NEP 1). Headers are parsed by numpy itself; nothing is
ever unpickled.
"""

import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.lib import format as npy_format

from .errors import DataError
from .read import read_extent
from .sample import Extent, Typed

HEADER_BYTES = 10_240
"""Bytes of a file that are enough for its header: numpy takes none of over 10,000."""

ReadRange = Callable[[int, int], bytes]
"""(offset, size) to that many bytes of a file; it raises where there are not so many."""


@dataclass(frozen=True)
class NpyRows:
    """Where the rows of an array lie in its file.

    A row is ``array[i]``, all that the first axis counts. Arrays of numbers in any byte order, in C
    or Fortran order; rows are given in the machine's byte order and in C order.

    Attributes:
        name: The file, as errors name it.
        shape: The array's shape, [rows, ...].
        dtype: Type of its numbers as stored, with their byte order.
        fortran: Whether it is stored column by column: then no row lies in one piece.
        offset: Byte at which the numbers begin.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row; () where the array has one axis."""
        return self.shape[1:]

    @cached_property
    def row_size(self) -> int:
        """Numbers in a row."""
        return math.prod(self.row_shape)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.row_size * self.dtype.itemsize

    @cached_property
    def native(self) -> np.dtype:
        """Type of the rows as they are given: `dtype` in the machine's byte order."""
        return self.dtype.newbyteorder("=")

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return (first byte, number of bytes) of rows ``start`` to ``end`` (not included).

        Raises:
            ValueError: The array is in Fortran order.
            IndexError: There are no such rows.
        """
        self._check(start, end)
        if self.fortran:
            raise ValueError(f"{self.name} is in Fortran order: its rows do not lie in one piece")
        return self.offset + start * self.row_bytes, (end - start) * self.row_bytes

    def extent(self, path: str, row: int) -> Extent:
        """Return row ``row`` as a byte range of the local file ``path``; raises as `span`."""
        return Extent(path, *self.span(row, row + 1))

    def decode(self, data: bytes) -> np.ndarray:
        """Return the rows whose bytes `span` has named, [rows, ...]; they may be written to."""
        rows = np.frombuffer(data, self.dtype).reshape(-1, *self.row_shape)
        return rows.astype(self.native, copy=True)

    def read(self, read: ReadRange, start: int, end: int) -> np.ndarray:
        """Return rows ``start`` to ``end`` (not included), [end - start, ...].

        In Fortran order this takes one read for each number in a row, unless all rows are asked
        for.

        Args:
            read: Reads byte ranges of the file.
            start: First row.
            end: Row behind the last.

        Raises:
            IndexError: There are no such rows.
            Exception: What ``read`` raises.
        """
        self._check(start, end)
        if not self.fortran:
            return self.decode(read(*self.span(start, end)))
        count, item = end - start, self.dtype.itemsize
        if count == len(self):
            stored = read(self.offset, count * self.row_bytes)
        else:
            stored = b"".join(
                read(self.offset + (column * len(self) + start) * item, count * item)
                for column in range(self.row_size)
            )
        columns = np.frombuffer(stored, self.dtype).reshape(*self.row_shape[::-1], count)
        return np.array(columns.T, self.native, order="C")

    def read_into(self, fd: int, start: int, out: np.ndarray) -> None:
        """Read rows from ``start`` on into ``out``, as many as it holds, without a copy between.

        Args:
            fd: The open file.
            start: First row.
            out: [rows, ...] of type `native`, contiguous.

        Raises:
            DataError: The file ends before the rows do.
            IndexError: There are no such rows.
        """
        end = start + len(out)
        self._check(start, end)
        if not out.flags.c_contiguous or out.dtype != self.native:
            raise ValueError(f"out must be a contiguous array of {self.native}, got {out.dtype}")
        if self.fortran:
            out[...] = self.read(lambda at, size: _pread(fd, at, size, self.name), start, end)
            return
        offset, size = self.span(start, end)
        view, got = out.reshape(-1).view(np.uint8).data, 0
        while got < size:  # one read returns at most 2 GiB on Linux
            more = os.preadv(fd, [view[got:]], offset + got)
            if not more:
                raise _ends(self.name, offset + got, offset + size)
            got += more
        if self.dtype != self.native:
            out.byteswap(inplace=True)

    def _check(self, start: int, end: int) -> None:
        if not 0 <= start <= end <= len(self):
            raise IndexError(
                f"{self.name} has {len(self)} rows; asked for rows {start} to {end} (not included)"
            )


class NpyRow(Typed):
    """A field that is one row of an ``.npy`` file: an array, read when it is asked for.

    Args:
        rows: Where the file's rows lie.
        path: The local file; one of the cache is read through what `read_through` has named.
        row: Number of the row.
    """

    __slots__ = ("path", "row", "rows")

    def __init__(self, rows: NpyRows, path: str, row: int) -> None:
        self.rows = rows
        self.path = path
        self.row = row

    def value(self) -> np.ndarray:
        """Return the row, of the array's `row_shape`."""
        rows = self.rows
        if rows.fortran:
            array: np.ndarray = rows.read(self._read, self.row, self.row + 1)[0]
            return array
        return rows.decode(read_extent(rows.extent(self.path, self.row)))[0]  # type: ignore[no-any-return]

    def read(self) -> bytes:
        """Return the bytes of the row's numbers, in the machine's byte order."""
        return self.value().tobytes()

    def _read(self, offset: int, size: int) -> bytes:
        return read_extent(Extent(self.path, offset, size))


def read_npy(path: str, name: str | None = None) -> NpyRows:
    """Return where the rows lie in the local file ``path``; see `parse_npy`.

    Raises:
        DataError: It holds no array of numbers, or not all of it.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        return parse_npy(file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size, name or path)


def parse_npy(head: bytes, size: int, name: str) -> NpyRows:
    """Return where the rows lie in an ``.npy`` file.

    Args:
        head: Its first `HEADER_BYTES` bytes; fewer where it has fewer.
        size: Its number of bytes.
        name: What errors call it.

    Raises:
        DataError: It is no ``.npy`` file, holds no array of numbers with at least one axis, or ends
            before the array does.
    """
    try:
        shape, fortran, dtype, offset = _header(head)
    except Exception as error:
        # At a damaged header numpy raises nearly anything: TokenError, SyntaxError, TypeError, ...
        cause = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{name} is no .npy file that can be read: {cause}") from error
    if dtype.hasobject:
        raise DataError(f"{name} holds Python objects, which would have to be unpickled: refused")
    # numpy gives other packages' bfloat16 the type V2.
    if dtype.kind not in "biufc" and (dtype.kind != "V" or dtype.itemsize != 2 or dtype.names):
        raise DataError(
            f"{name} holds values of type {dtype}; expected numbers, saved by numpy.save from an "
            "array of a plain type such as float16 or float32"
        )
    if not shape or min(shape) < 0:
        raise DataError(f"{name} holds an array of shape {shape}; expected at least one axis")
    rows = NpyRows(name, shape, dtype, fortran and len(shape) > 1, offset)
    if len(rows) and not rows.row_size:
        raise DataError(f"{name} holds {len(rows)} rows of nothing (its shape is {shape})")
    end = offset + len(rows) * rows.row_bytes
    if size < end:
        raise DataError(
            f"{name} has {size:,} bytes and its header promises {end:,} (shape {shape}, {dtype}): "
            "it was truncated; write it anew"
        )
    return rows


def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, whether it is in Fortran order, type, and the byte at which numbers begin."""
    if head[:4] == b"PK\x03\x04":
        raise ValueError("it is an archive (.npz); save each array with numpy.save")
    file = io.BytesIO(head)
    version = npy_format.read_magic(file)
    if version == (1, 0):
        parsed = npy_format.read_array_header_1_0(file)
    elif version in ((2, 0), (3, 0)):  # 3.0 has names of fields in UTF-8: numbers have no fields
        parsed = npy_format.read_array_header_2_0(file)
    else:
        raise ValueError(f"its format is version {version[0]}.{version[1]}; expected 1.0 to 3.0")
    return *parsed, file.tell()


def _pread(fd: int, offset: int, size: int, name: str) -> bytes:
    parts, got = [], 0
    while got < size:
        data = os.pread(fd, size - got, offset + got)
        if not data:
            raise _ends(name, offset + got, offset + size)
        parts.append(data)
        got += len(data)
    return b"".join(parts)


def _ends(name: str, at: int, end: int) -> DataError:
    return DataError(
        f"{name} ends at byte {at:,}, and rows up to byte {end:,} were asked for: it was truncated "
        "under the run"
    )

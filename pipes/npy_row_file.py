"""Single rows of ``.npy`` files, wherever their bytes are to be had."""

import functools
import io

import numpy as np
from numpy.lib import format as npy_format

from .errors import DataError
from .npy import HEADER_BYTES, NpyRows, ReadRange, parse_npy

MOST_ROW = 16 << 20
"""Most bytes of one row: the limit to headers that lie."""

FEW = 16
"""Rows of a file in Fortran order that are read element by element, before all of it is read."""

MOST_COPIED = 256 << 20
"""Most bytes of files in Fortran order that a process keeps, in C order."""


class RowFile:
    """The rows of a 2-D ``.npy`` file, each read by itself.

    In Fortran order a row's elements lie apart, and each is a read of its own: 768 of them took
    1 ms. So the first rows of such a file are read; then it is read whole, once, and kept in C
    order, with other such files up to `MOST_COPIED`. That needs no room on a disk.

    Args:
        name: What errors call the file.
        size: Its bytes.
        read: Reads of it.
        few: Rows in Fortran order to read element by element, before all of it is read.

    Raises:
        DataError: It holds no rows of numbers, or is truncated.
    """

    def __init__(self, name: str, size: int, read: ReadRange, few: int = FEW) -> None:
        self.name = name
        self._few = self._left = few
        self._read = read
        rows = parse_npy(read(0, min(HEADER_BYTES, size)), size, name)
        _check(rows, size)
        self.dtype = rows.dtype
        self.rows, self.dim = rows.shape
        self.fortran = rows.fortran and min(rows.shape) > 1
        self._offset = rows.offset
        self._width = rows.row_bytes
        self._prefix = npy_prefix(self.dtype, (self.dim,))

    def row(self, i: int) -> np.ndarray:
        """Return row ``i``, [dim], in the file's type."""
        return np.frombuffer(self.raw(i), self.dtype)

    def raw(self, i: int) -> bytes:
        """Return the bytes of row ``i``, which must be there."""
        if not self.fortran:
            return self._read(self._offset + i * self._width, self._width)
        copy = _COPIES.get(self)
        if copy is None:
            copy = self._copied()
        if copy is not None:
            raw: bytes = copy[i].tobytes()
            return raw
        item, rows = self.dtype.itemsize, self.rows
        first = self._offset + i * item
        return b"".join([self._read(first + j * rows * item, item) for j in range(self.dim)])

    def _copied(self) -> np.ndarray | None:
        """Return the array in C order, [rows, dim]; None where rows are to be read singly still."""
        self._left -= 1
        if self._left >= 0 or self.rows * self._width > MOST_COPIED:
            return None
        data = self._read(self._offset, self.rows * self._width)
        array = np.frombuffer(data, self.dtype).reshape(self.dim, self.rows)
        copy = _COPIES[self] = np.ascontiguousarray(array.T)
        while sum(kept.nbytes for kept in _COPIES.values()) > MOST_COPIED:
            oldest = next(iter(_COPIES))
            del _COPIES[oldest]
            oldest._left = oldest._few
        return copy

    def npy(self, raw: bytes) -> bytes:
        """Return the bytes of a ``.npy`` file that holds one row, [dim]."""
        return self._prefix + raw


# The oldest first. Each is needed for a while and then no more, as its tar is.
_COPIES: dict[RowFile, np.ndarray] = {}


def _check(rows: NpyRows, size: int) -> None:
    if len(rows.shape) != 2 or rows.shape[1] < 1:
        raise DataError(
            f"{rows.name}: expected an array [rows, dimension], found the shape {rows.shape}"
        )
    if rows.row_bytes > MOST_ROW:
        raise DataError(
            f"{rows.name}: its rows are longer than {MOST_ROW:,} bytes: its shape is {rows.shape}"
        )
    whole = rows.offset + len(rows) * rows.row_bytes
    if size != whole:
        raise DataError(
            f"{rows.name} has {size:,} bytes, and its header, of shape {rows.shape} and type "
            f"{rows.dtype}, makes {whole:,}: something was appended to it"
        )


@functools.lru_cache(64)
def npy_prefix(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return what stands before the data in a ``.npy`` file of this type and shape."""
    file = io.BytesIO()
    described = {
        "descr": npy_format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    npy_format.write_array_header_1_0(file, described)
    return file.getvalue()

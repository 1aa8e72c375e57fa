"""Single rows of ``.npy`` files, wherever their bytes are to be had."""

import functools
import io

import numpy as np
from numpy.lib import format as npy_format

from .errors import DataError
from .npy import HEADER_BYTES, NpyRows, ReadRange, parse_npy

MOST_ROW = 16 << 20
"""Most bytes of one row: the limit to headers that lie."""


class RowFile:
    """The rows of a 2-D ``.npy`` file, each read by itself.

    In Fortran order a row's elements lie apart, and are read one by one: 768 of them took 0.4 ms
    from a file in memory. It needs no second copy of the file, and no room for one.

    Args:
        name: What errors call the file.
        size: Its bytes.
        read: Reads of it.

    Raises:
        DataError: It holds no rows of numbers, or is truncated.
    """

    def __init__(self, name: str, size: int, read: ReadRange) -> None:
        self.name = name
        self._read = read
        rows = parse_npy(read(0, min(HEADER_BYTES, size)), size, name)
        _check(rows, size)
        self.dtype = rows.dtype
        self.rows, self.dim = rows.shape
        self.fortran = rows.fortran and min(rows.shape) > 1
        self._offset = rows.offset
        self._prefix = npy_prefix(self.dtype, (self.dim,))

    def row(self, i: int) -> np.ndarray:
        """Return row ``i``, [dim], in the file's type."""
        return np.frombuffer(self.raw(i), self.dtype)

    def raw(self, i: int) -> bytes:
        """Return the bytes of row ``i``, which must be there."""
        item = self.dtype.itemsize
        if not self.fortran:
            width = self.dim * item
            return self._read(self._offset + i * width, width)
        first = self._offset + i * item
        return b"".join([self._read(first + j * self.rows * item, item) for j in range(self.dim)])

    def npy(self, raw: bytes) -> bytes:
        """Return the bytes of a ``.npy`` file that holds one row, [dim]."""
        return self._prefix + raw


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

"""The .npy format: its header, and single rows of a file."""

import functools
import io
import math
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.lib import format as numpy_format

from .errors import DataError

HEAD = 12 << 10
"""Bytes that hold any header that is taken: numpy's limit is 10,000."""

MOST_ROW = 16 << 20
"""Most bytes of one row: the limit to headers that lie."""

FEW = 16
"""Rows of a file in Fortran order that are read element by element, before all of it is read."""

MOST_COPIED = 256 << 20
"""Most bytes of files in Fortran order that a process keeps, in C order."""

Read = Callable[[int, int], bytes]
"""Returns so many bytes from an offset of a file: ``read(offset, size)``."""


class Header(NamedTuple):
    """What a header says.

    Attributes:
        dtype: Type of the elements, with their order of bytes.
        shape: The array's.
        fortran: Whether the first index changes fastest.
        offset: First byte of the data.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @property
    def size(self) -> int:
        """Bytes of header and data."""
        return self.offset + self.dtype.itemsize * math.prod(self.shape)


def parse_header(data: bytes) -> Header:
    """Return the header with which ``data`` begins: versions 1 to 3, no objects.

    Args:
        data: The first bytes of a file: `HEAD` of them, or all.

    Raises:
        DataError: It is no .npy file, or one of objects, which would be unpickled.
    """
    width = 2 if data[6:7] == b"\1" else 4
    start = 8 + width
    if data[:6] != numpy_format.MAGIC_PREFIX or len(data) < start:
        raise DataError(f"it is no .npy file: it begins with {data[:8]!r}")
    (length,) = struct.unpack("<H" if width == 2 else "<I", data[8:start])
    return _parsed(bytes(data[: start + length]))


@functools.lru_cache(64)
def _parsed(head: bytes) -> Header:
    file = io.BytesIO(head)
    try:
        version = numpy_format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"its format has version {version}")
        # Version 3 differs from 2 in letters beyond ASCII alone, which no type of numbers has.
        one = version == (1, 0)
        read = numpy_format.read_array_header_1_0 if one else numpy_format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # at a damaged header numpy raises nearly anything
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"its .npy header cannot be read: {cause}") from error
    if dtype.hasobject:
        raise DataError("it holds Python objects, which would have to be unpickled: refused")
    if any(side < 0 for side in shape):
        raise DataError(f"its .npy header says the shape {shape}")
    return Header(dtype, shape, fortran, file.tell())


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

    def __init__(self, name: str, size: int, read: Read, few: int = FEW) -> None:
        self.name = name
        self._few = self._left = few
        self._read = read
        try:
            header = parse_header(read(0, min(HEAD, size)))
            self._check(header, size)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        self.dtype = header.dtype
        self.rows, self.dim = header.shape
        self.fortran = header.fortran and min(header.shape) > 1
        self._offset = header.offset
        self._width = self.dim * self.dtype.itemsize
        self._prefix = npy_prefix(self.dtype, (self.dim,))

    @staticmethod
    def _check(header: Header, size: int) -> None:
        if len(header.shape) != 2 or header.shape[1] < 1:
            raise DataError(f"expected an array [rows, dimension], found the shape {header.shape}")
        if header.shape[1] * header.dtype.itemsize > MOST_ROW:
            raise DataError(f"its rows are longer than {MOST_ROW:,} bytes: {header.shape}")
        if size != header.size:
            fault = "it is truncated" if size < header.size else "something was appended to it"
            raise DataError(
                f"it has {size:,} bytes, and its header, of shape {header.shape} and type "
                f"{header.dtype}, makes {header.size:,}: {fault}"
            )

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


@functools.lru_cache(64)
def npy_prefix(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return what stands before the data in a ``.npy`` file of this type and shape."""
    file = io.BytesIO()
    described = {
        "descr": numpy_format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    numpy_format.write_array_header_1_0(file, described)
    return file.getvalue()

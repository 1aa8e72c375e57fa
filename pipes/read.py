"""Read extents of local files."""

import os
import weakref
from collections import OrderedDict
from typing import Protocol

from .errors import DataError
from .sample import Extent, Stored


class RangeReader(Protocol):
    """Reads byte ranges of a file that may not lie where its extents say."""

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from byte ``offset``."""


class OpenFiles:
    """Keeps the files last read open.

    ``os.pread`` takes its own offset, so descriptors may be shared by lanes and inherited by a
    fork. Not mmap: a file that was truncated must be an error, not a SIGBUS.

    Args:
        most: Number of files kept open.
    """

    def __init__(self, most: int = 64) -> None:
        self.most = most
        self._open: OrderedDict[str, int] = OrderedDict()

    def descriptor(self, path: str) -> int:
        """Return a file descriptor, to be used before the next call."""
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open[path] = fd
        if len(self._open) > self.most:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def forget(self, path: str) -> None:
        """Close a file, so that the next read opens what has its name then."""
        fd = self._open.pop(path, None)
        if fd is not None:
            os.close(fd)


_FILES = OpenFiles()
_READERS: "weakref.WeakValueDictionary[str, RangeReader]" = weakref.WeakValueDictionary()


def read_through(path: str, reader: RangeReader) -> None:
    """Have the extents of ``path`` read by ``reader`` for as long as that lives.

    So it is for files of the cache: they may be gone by the time that an extent is read.
    """
    _READERS[path] = reader


def read_extent(extent: Extent) -> bytes:
    """Return the bytes of ``extent``.

    Raises:
        DataError: The file ends before the extent does.
        OSError: The file cannot be read.
    """
    path, offset, size = extent
    if _READERS and (reader := _READERS.get(path)) is not None:
        return reader.read(offset, size)
    data = os.pread(_FILES.descriptor(path), size, offset)
    if len(data) == size:
        return data
    parts = [data]
    got = len(data)
    while got < size:  # one pread returns at most 2 GiB on Linux
        data = os.pread(_FILES.descriptor(path), size - got, offset + got)
        if not data:
            raise DataError(
                f"{path} ends at byte {offset + got}, in the middle of an extent of {size} bytes "
                f"from byte {offset}: the file was truncated"
            )
        parts.append(data)
        got += len(data)
    return b"".join(parts)


def open_extent(extent: Extent) -> int | None:
    """Return the open file of an extent that lies in place, to be used before the next call.

    None where the file may have gone, and the extent is read by `read_extent`.

    Raises:
        OSError: The file cannot be opened.
    """
    return None if extent.path in _READERS else _FILES.descriptor(extent.path)


def read_field(name: str, value: Extent | Stored | bytes) -> bytes:
    """Return the bytes of a field; an error names it too."""
    try:
        return read_value(value)
    except DataError as error:
        raise type(error)(f"field {name!r}: {error}") from error


def read_value(value: Extent | Stored | bytes) -> bytes:
    """Return the bytes of a field, wherever they lie; raises what their `read` raises."""
    if isinstance(value, bytes):
        return value
    return read_extent(value) if isinstance(value, Extent) else value.read()


def forget(path: str) -> None:
    """Have the next extent of ``path`` read from the file that has this name then.

    To be called with every new index: a file replaced since it was opened would be read at the
    offsets of its successor.
    """
    _FILES.forget(path)

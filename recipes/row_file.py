"""Files of rows that lie on a disk or on a server, and parts of them."""

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..pipes.errors import DataError
from ..pipes.npy import HEADER_BYTES, NpyRows, parse_npy
from ..pipes.remote import Remote, Version
from ..pipes.urls import base_name, local_path

NEAR = {True: 64 << 10, False: 1 << 20}
"""Bytes between two rows, on a disk and on a server, that are read rather than asked for apart."""

AT_ONCE = 32 << 20
"""Bytes of rows that one read may bring, and so most that is held beside the rows asked for."""


class Bytes:
    """The bytes of a file, local or remote, by range; failures that may pass are retried.

    Args:
        url: Path or URL.
        remote: How remote files are reached.

    Raises:
        OSError: There is no such file, or it cannot be asked for.
    """

    def __init__(self, url: str, remote: Remote) -> None:
        self.url = url
        self.path = local_path(url)
        self._remote = remote
        self._etag: str | None = None
        if self.path is not None:
            stat = os.stat(self.path)
            self.version = Version(stat.st_size, stat.st_mtime_ns)
        else:
            info = remote.info(url)
            if info.version.size < 0 or not info.ranges:
                raise OSError(f"{url}: its server gives no parts of files: fetch it first")
            self.version, self._etag = info.version, info.etag

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.version.size

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from byte ``offset``.

        Raises:
            DataError: The file ends before.
            OSError: They cannot be had.
        """
        if self.path is None:
            return self._remote.read(self.url, offset, offset + size, self._etag)
        with open(self.path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise DataError(
                f"{self.url} ends at byte {offset + len(data):,}, and bytes up to "
                f"{offset + size:,} were asked for: it was truncated under the run"
            )
        return data


class Seekable(io.RawIOBase):
    """A file object over `Bytes`, for readers that want one."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._data.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._data.size - self._at))
        if count:
            buffer[:count] = self._data.read(self._at, count)
        self._at += count
        return count


class RowFile:
    """The rows of an ``.npy`` file, local or remote.

    Args:
        url: Path or URL.
        remote: How remote files are reached.

    Raises:
        DataError: It holds no array of numbers of two axes.
        OSError: It cannot be read.
    """

    def __init__(self, url: str, remote: Remote) -> None:
        self.bytes = Bytes(url, remote)
        size = self.bytes.size
        self.rows: NpyRows = parse_npy(self.bytes.read(0, min(HEADER_BYTES, size)), size, url)
        if len(self.rows.shape) != 2:
            raise DataError(
                f"{url} holds an array of shape {self.rows.shape}; expected [rows, dimension]"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """Its name, without the folder."""
        return base_name(self.bytes.url)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Return rows by number, [len(numbers), dimension], in this machine's byte order.

        Rows that lie near each other come in one read.

        Args:
            numbers: int64, in any order.
        """
        out = np.empty((len(numbers), *self.rows.row_shape), self.rows.native)
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        for start, end in self._runs(ordered):
            first, last = int(ordered[start]), int(ordered[end - 1])
            found = self.rows.read(self.bytes.read, first, last + 1)
            out[order[start:end]] = found[ordered[start:end] - first]
        return out

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number of its first row, rows) of all parts of the file, in order."""
        step = max(1, AT_ONCE // max(1, self.rows.row_bytes))
        for start in range(0, len(self), step):
            end = min(start + step, len(self))
            yield start, self.rows.read(self.bytes.read, start, end)

    def _runs(self, ordered: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (start, end) in ``ordered`` of the rows that are read at once."""
        if not len(ordered):
            return
        rows = self.rows
        near = NEAR[self.bytes.path is not None]
        gap = near // (rows.dtype.itemsize if rows.fortran else rows.row_bytes)
        most = max(1, AT_ONCE // rows.row_bytes)
        apart = np.flatnonzero(np.diff(ordered) > gap + 1) + 1
        for start, end in zip([0, *apart.tolist()], [*apart.tolist(), len(ordered)], strict=True):
            while start < end:
                stop = int(np.searchsorted(ordered[start:end], ordered[start] + most)) + start
                yield start, stop
                start = stop

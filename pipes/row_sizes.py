"""The sizes of a manifest's images, each read from its header once."""

import os
from array import array
from collections.abc import Callable

from .draws import hash64
from .errors import DataError

KEPT_FROM = 1000
"""Rows from which on sizes are kept on disk: for fewer, reading the headers takes no time."""

_SIDE, _MARK = 20, 23
_MOST_SIDE = (1 << _SIDE) - 1


class RowSizes:
    """Height and width of each row's image: 8 bytes a row, shared by processes through a file.

    An entry holds 20 bits of height and of width, and 23 bits of a hash of the image file's size
    and time, by which one that is out of date is known. Each is read and written whole, at a place
    of its own, so that processes need no lock. A file that cannot be kept is done without.

    Args:
        rows: Number of rows.
        path: The file; None: memory alone.
    """

    def __init__(self, rows: int, path: str | None) -> None:
        self._known = array("q", bytes(8 * rows))
        self._errors: dict[int, str] = {}
        self._fd = -1
        if path is not None and rows >= KEPT_FROM:
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError:
                self._fd = -1

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def get(self, row: int) -> tuple[int, int] | str | None:
        """Return (height, width), the reason why there is none, or None where nobody has looked."""
        entry = self._known[row]
        if entry:
            return entry >> (_SIDE + _MARK), entry >> _MARK & _MOST_SIDE
        return self._errors.get(row)

    def recall(self, row: int, version: tuple[int, int]) -> tuple[int, int] | None:
        """Return (height, width) as another process has left it, or None where none has."""
        kept = self._read(row)
        if not kept or kept & ((1 << _MARK) - 1) != _mark(version):
            return None
        self._known[row] = kept
        return kept >> (_SIDE + _MARK), kept >> _MARK & _MOST_SIDE

    def find(
        self, row: int, version: tuple[int, int], measure: Callable[[], tuple[int, int]]
    ) -> tuple[int, int] | str:
        """Return (height, width), or the reason why there is none, and remember it.

        Args:
            row: The row.
            version: Size and time of the file that the image is in.
            measure: Reads the image's header.
        """
        if (kept := self.recall(row, version)) is not None:
            return kept
        try:
            height, width = measure()
        except DataError as error:
            self._errors[row] = str(error)
            return str(error)
        if max(height, width) <= _MOST_SIDE:
            self._known[row] = height << (_SIDE + _MARK) | width << _MARK | _mark(version)
            self._write(row)
        return height, width

    def _read(self, row: int) -> int:
        if self._fd < 0:
            return 0
        data = os.pread(self._fd, 8, 8 * row)
        return int.from_bytes(data, "little") if len(data) == 8 else 0

    def _write(self, row: int) -> None:
        if self._fd >= 0:
            try:
                os.pwrite(self._fd, self._known[row].to_bytes(8, "little"), 8 * row)
            except OSError:  # the disk is full: the file is a convenience
                os.close(self._fd)
                self._fd = -1


def _mark(version: tuple[int, int]) -> int:
    return hash64(*version) >> (64 - _MARK)

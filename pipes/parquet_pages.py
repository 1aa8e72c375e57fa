"""Single values of a Parquet file's column of bytes, a page read for each and not a row group.

pyarrow reads whole row groups, or a group's rows from its first one on. A page is a megabyte or
one large value, so a shuffled read of images inside a file costs about what it costs of a tar. The
format is https://parquet.apache.org/docs/file-format/; what is seldom in it (`Unsupported`) is left
to pyarrow.
"""

import zlib
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from operator import index
from typing import Any, NamedTuple

import numpy as np

from .errors import DataError
from .parquet_values import Values, here, packed_levels, plain, read_hybrid
from .read import read_extent
from .sample import Extent
from .thrift import Truncated, read_struct

KEPT_BYTES = 64 << 20
"""Bytes of unpacked pages that one process keeps of a file."""

MOST_PAGE = 1 << 30
"""Bytes of the largest page that is read, unpacked: the limit to decompression bombs."""

_HEAD = 256  # bytes in which most pages' headers end
_MOST_HEAD = 1 << 20
_CODECS = {
    "UNCOMPRESSED": None,
    "SNAPPY": "snappy",
    "GZIP": "gzip",
    "ZSTD": "zstd",
    "BROTLI": "brotli",
}
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PLAIN, _INDICES = 0, (2, 8)


class Unsupported(Exception):
    """The column is written in a way that is not read here."""


class Page(NamedTuple):
    """Where a page lies, and what is in it.

    Attributes:
        offset: First byte of its body.
        packed: Bytes of its body.
        size: Bytes of its body unpacked.
        crc: CRC-32 of its body, or None.
        encoding: How its values are written.
        rows: How many.
        levels: Bytes of repetition and definition levels that stand unpacked in front of the values
            (version 2); -1: the levels are packed with them.
        is_packed: Whether the values are packed.
    """

    offset: int
    packed: int
    size: int
    crc: int | None
    encoding: int
    rows: int
    levels: int
    is_packed: bool


@dataclass
class Chunk:
    """The pages of one row group.

    Attributes:
        dictionary: The values that pages may point into; None where there is no such page.
        pages: The pages.
        starts: The first row of each, and their number of rows last.
    """

    dictionary: Page | None
    pages: list[Page]
    starts: list[int]


class PagedColumn:
    """A column of byte strings, without repetition.

    Args:
        path: The file.
        file: pyarrow's ``ParquetFile``; only its metadata are used, and it is not kept.
        column: Number of the leaf column.

    Raises:
        Unsupported: It is read by pyarrow alone.
    """

    def __init__(self, path: str, file: Any, column: int) -> None:
        schema = file.schema.column(column)
        if schema.physical_type != "BYTE_ARRAY" or schema.max_repetition_level:
            raise Unsupported
        self._path = path
        self._levels: int = schema.max_definition_level
        self._groups: list[tuple[int, int, int, str | None]] = []
        for g in range(file.metadata.num_row_groups):
            part = file.metadata.row_group(g).column(column)
            if part.compression not in _CODECS or part.file_path:
                raise Unsupported
            begin: int = part.data_page_offset
            if part.has_dictionary_page and part.dictionary_page_offset:
                begin = min(begin, part.dictionary_page_offset)
            size: int = part.total_compressed_size
            self._groups.append((begin, begin + size, part.num_values, _CODECS[part.compression]))
        self._chunks: dict[int, Chunk] = {}
        self._kept: OrderedDict[int, Values] = OrderedDict()
        self._held = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chunks": {}, "_kept": OrderedDict(), "_held": 0}

    def value(self, group: int, row: int) -> bytes | None:
        """Return the value in a row of a row group, None where it is null.

        Raises:
            DataError: The file is damaged there.
            Unsupported: Its page is written in a way that is not read here.
        """
        page, first = self._page(group, row)
        return self._values(group, page).value(row - first)

    def beside(self, group: int, row: int) -> range:
        """Return the rows of the same group that lie in the same page."""
        page, first = self._page(group, row)
        return range(first, first + page.rows)

    def _page(self, group: int, row: int) -> tuple[Page, int]:
        if group not in self._chunks:
            self._chunks[group] = self._scan(group)
        chunk = self._chunks[group]
        i = bisect_right(chunk.starts, row) - 1
        return chunk.pages[i], chunk.starts[i]

    def _scan(self, group: int) -> Chunk:
        """Return where the pages of a row group lie, found by their headers."""
        at, end, rows, _ = self._groups[group]
        chunk = Chunk(None, [], [0])
        while at < end and chunk.starts[-1] < rows:
            kind, page = self._header(at, end)
            at = page.offset + page.packed
            if at > end:
                raise self._damaged(page.offset, "it ends behind its column's end")
            if kind == _DICTIONARY:
                chunk.dictionary = page
            elif kind in (_DATA, _DATA_V2) and page.rows:
                chunk.pages.append(page)
                chunk.starts.append(chunk.starts[-1] + page.rows)
        if chunk.starts[-1] != rows:
            raise self._damaged(at, f"pages have {chunk.starts[-1]} rows, and there are {rows}")
        return chunk

    def _header(self, at: int, end: int) -> tuple[int, Page]:
        size = _HEAD
        while True:
            data = read_extent(Extent(self._path, at, min(size, end - at)))
            try:
                head, length = read_struct(data)
                return _page_of(head, at + length)
            except Truncated:
                if size >= min(_MOST_HEAD, end - at):
                    raise self._damaged(at, "its header has no end") from None
                size *= 8
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._damaged(at, f"its header cannot be read: {error}") from error

    def _values(self, group: int, page: Page) -> Values:
        """Return what a page holds; the pages last used are kept."""
        kept = self._kept.get(page.offset)
        if kept is not None:
            self._kept.move_to_end(page.offset)
            return kept
        self._make_room(page.size)
        levels, body = self._unpack(group, page)
        try:
            present = self._present(page, levels)
            if present is None:
                present, body = packed_levels(body, page.rows, self._levels)
            values = self._decode(group, page, body, int(present.sum()))
        except (ValueError, IndexError) as error:
            raise self._damaged(page.offset, str(error)) from error
        if not present.all():
            places = np.cumsum(present) - 1
            sizes = np.where(present, values.sizes[places], -1) if len(values.sizes) else -1
            starts = values.starts[places] if len(values.starts) else np.zeros(page.rows, np.int64)
            values = Values(values.data, starts, np.broadcast_to(sizes, (page.rows,)))
        self._keep(page, values)
        return values

    def _keep(self, page: Page, values: Values) -> None:
        self._kept[page.offset] = values
        self._held += len(values.data)

    def _make_room(self, size: int) -> None:
        """Let go of the pages that were used longest ago, as a page of ``size`` bytes comes."""
        while self._kept and self._held + size > KEPT_BYTES:
            self._held -= len(self._kept.popitem(last=False)[1].data)

    def _unpack(self, group: int, page: Page) -> tuple[memoryview, memoryview]:
        """Return a page's levels where they stand by themselves, and its values."""
        body = memoryview(read_extent(Extent(self._path, page.offset, page.packed)))
        if page.crc is not None and zlib.crc32(body) != page.crc:
            raise self._damaged(page.offset, "its checksum is wrong")
        front = max(page.levels, 0)
        codec = self._groups[group][3]
        if codec is None or not page.is_packed:
            return body[:front], body[front:]
        import pyarrow

        try:
            size = page.size - front
            unpacked = pyarrow.Codec(codec).decompress(body[front:], size, asbytes=True)
        except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
            raise self._damaged(page.offset, str(error)) from error
        return body[:front], memoryview(unpacked)

    def _present(self, page: Page, levels: memoryview) -> np.ndarray | None:
        """Return which of a page's rows have a value; None where that stands with the values."""
        if not self._levels:
            return np.ones(page.rows, bool)
        if page.levels < 0:
            return None
        return here(levels, self._levels, page.rows)

    def _decode(self, group: int, page: Page, body: memoryview, count: int) -> Values:
        if page.encoding == _PLAIN:
            return plain(body, count)
        if page.encoding not in _INDICES:
            raise Unsupported
        if not count:
            return plain(body[:0], 0)
        dictionary = self._chunks[group].dictionary
        if dictionary is None:
            raise ValueError("it points into a dictionary, and there is none")
        words = self._kept.get(dictionary.offset)
        if words is None:
            words = plain(self._unpack(group, dictionary)[1], dictionary.rows)
            self._keep(dictionary, words)
        which = read_hybrid(body[1:], body[0], count)
        return Values(words.data, words.starts[which], words.sizes[which])

    def _damaged(self, at: int, why: str) -> DataError:
        return DataError(f"{self._path}: the page at byte {at} is damaged: {why}")


def _page_of(head: dict[int, Any], offset: int) -> tuple[int, Page]:
    """Return the kind of a page and the page that a header is of."""
    kind, size, packed = index(head[1]), index(head[2]), index(head[3])
    crc = index(head[4]) & 0xFFFFFFFF if 4 in head else None
    inner = head.get({_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind, 0), {1: 0, 2: 0, 4: 0})
    rows, encoding, levels = index(inner[1]), index(inner[4 if kind == _DATA_V2 else 2]), -1
    if kind == _DATA_V2:
        levels = index(inner[5])
        if inner[6] or not 0 <= levels <= min(packed, size):
            raise ValueError("it has repetition levels, or too many levels")
    if not 0 <= size <= MOST_PAGE or packed < 0 or rows < 0:
        raise ValueError(f"it says that it has {rows} rows in {size} bytes")
    return kind, Page(offset, packed, size, crc, encoding, rows, levels, inner.get(7) is not False)

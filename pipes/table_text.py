"""Manifests that are texts: CSV, TSV, JSON and JSONL, read row by row where they lie."""

import csv
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import BinaryIO, Literal

from .read import forget, read_extent
from .row_index import KEPT_FROM, RowIndex, index_path
from .sample import Extent
from .scan_json import Scanned, after_bom, scan_array, scan_lines, text_of
from .shard_index import IMAGE_FIELDS
from .table import Row, Table, Wanted, base_of

Format = Literal["csv", "tsv", "json", "jsonl"]

_PEEK = 100
"""Rows of a JSON manifest whose names are known before columns are chosen."""


class TextTable(Table):
    """The rows of a text file: their places in it, 20 bytes a row, and none of their text.

    Args:
        path: The manifest, a local file.
        kind: Its format.
        wanted: Which columns are what.
        base: Folder that images are relative to.
        names: Names of the columns of a CSV or TSV file that has no line for them.
        quotes: Whether quotation marks in a CSV or TSV file quote; they are text otherwise.
        shown: What errors call it.
        cache: Folder of the cache, where the index of a large file is kept.

    Raises:
        ValueError: A row cannot be parsed; the message names the file and the line.
    """

    def __init__(
        self,
        path: str,
        kind: Format,
        wanted: Wanted,
        base: str,
        *,
        names: Sequence[str] | None = None,
        quotes: bool = True,
        shown: str | None = None,
        cache: str | None = None,
    ) -> None:
        self.path, self.base = shown or path, base
        self._file = path
        self._kind, self._quotes = kind, quotes
        self.columns: list[str] = []
        forget(path)
        stat = os.stat(path)
        version = stat.st_size, stat.st_mtime_ns
        kept_at = index_path(path, (kind, wanted, names, quotes), cache)
        kept = RowIndex.load(kept_at, version)
        self._index = self._scan(wanted, names) if kept is None else kept
        self.columns = self._index.columns
        self.map = wanted.find(self.columns[: self._index.known], self.path)
        self.digest = self._index.digest
        if kept is None and len(self) >= KEPT_FROM:
            self._index.save(kept_at, version)

    def _scan(self, wanted: Wanted, names: Sequence[str] | None) -> RowIndex:
        """Return where all rows are, each parsed once."""
        with open(self._file, "rb") as file:
            if self._kind in ("csv", "tsv"):
                first = self._header(file, names)
                rows: Iterable[Scanned] = self._scan_cells(file, first)
            else:
                scan = scan_array if self._kind == "json" else scan_lines
                lines = scan(file, self.path)
                head = list(islice(lines, _PEEK))
                if not head:
                    raise ValueError(f"{self.path} has no rows")
                self.columns = list(dict.fromkeys(name for item in head for name in item.row))
                rows = chain(head, lines)
            mark = wanted.find(self.columns, self.path).mark
            columns = dict.fromkeys(self.columns)
            index = RowIndex([], len(columns), array("q"), array("I"), array("I"), array("I"))
            for start, size, line, row in rows:
                if row.keys() != columns.keys():
                    columns |= dict.fromkeys(row)
                    row = dict.fromkeys(columns) | row
                index.starts.append(start)
                index.sizes.append(size)
                index.lines.append(line)
                index.marks.append(zlib.crc32(mark(row)))
        if not index.starts:
            raise ValueError(f"{self.path} has no rows")
        index.columns = list(columns)
        return index

    def __len__(self) -> int:
        return len(self._index.starts)

    def fragment(self, i: int) -> str:
        return f"line={self._index.lines[i]}"

    def row(self, i: int) -> Row:
        try:
            data = read_extent(Extent(self._file, self._index.starts[i], self._index.sizes[i]))
            row = self._parse(data)
            same = zlib.crc32(self.map.mark(row)) == self._index.marks[i]
        except (ValueError, KeyError, csv.Error):
            same = False
        if not same:
            raise RuntimeError(
                f"{self.where(i)}: the row is not the one that was there when this run began: the "
                "file was changed under the run; start the run anew"
            )
        return row

    def _parse(self, data: bytes) -> Row:
        if self._kind in ("json", "jsonl"):
            found: Row = json.loads(data)
            return dict.fromkeys(self.columns) | found
        (cells,) = self._reader([data.decode()])
        return dict(zip(self.columns, cells, strict=True))

    # -- CSV and TSV ----------------------------------------------------------------------------

    def _reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        # strict: a quotation mark in the middle of a quoted text is an error, never a guess.
        return csv.reader(
            lines,
            delimiter="," if self._kind == "csv" else "\t",
            quoting=csv.QUOTE_MINIMAL if self._quotes else csv.QUOTE_NONE,
            strict=True,
        )

    def _header(self, file: BinaryIO, names: Sequence[str] | None) -> int:
        """Take the names of the columns, and return the line that rows begin in."""
        start = after_bom(file)
        if names is not None:
            self.columns = list(names)
            return 1
        found = next(self._cells(file, 1), None)
        if found is None:
            raise ValueError(f"{self.path} is empty")
        _, end, line, cells = found
        image = _image_cell(cells)
        if image is not None:  # no line of names: such as torchtune's TSV of a path and a text
            self.columns = ["image", "caption"] if image == 0 else ["caption", "image"]
            file.seek(start)
            return 1
        self.columns = [cell.strip() for cell in cells]
        double = {name for name in self.columns if self.columns.count(name) > 1}
        if double:
            raise ValueError(f"{self.path}: column {sorted(double)[0]!r} is there more than once")
        file.seek(end)
        return line + 1

    def _scan_cells(self, file: BinaryIO, first: int) -> Iterator[Scanned]:
        width = len(self.columns)
        for start, end, line, cells in self._cells(file, first):
            if len(cells) != width:
                raise ValueError(
                    f"{self.path}, line {self._begin(line, cells)}: {len(cells)} cells, and there "
                    f"are {width} columns ({', '.join(self.columns)}); quote a text that has the "
                    "delimiter in it, or name the columns with columns=… where the first line "
                    "does not"
                )
            yield Scanned(
                start,
                end - start,
                self._begin(line, cells),
                dict(zip(self.columns, cells)),  # noqa: B905
            )

    @staticmethod
    def _begin(line: int, cells: list[str]) -> int:
        return line - sum(cell.count("\n") for cell in cells)

    def _cells(self, file: BinaryIO, first: int) -> Iterator[tuple[int, int, int, list[str]]]:
        """Yield (first byte, end, last line, cells) of each row that is not blank."""
        lines = _Lines(file, self.path, first)
        reader = self._reader(lines)
        while True:
            start = lines.position
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(
                    f"{self.path}, line {lines.line}: {error}; where quotation marks are part of "
                    "the texts and quote nothing, pass quotes=False"
                ) from error
            if cells:
                yield start, lines.position, lines.line, cells


class _Lines:
    """The lines of a file as text, and how far they go: csv's reader takes what a row needs."""

    def __init__(self, file: BinaryIO, path: str, first: int) -> None:
        self._file = file
        self._path = path
        self.position = file.tell()
        self.line = first - 1

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        data = self._file.readline()
        if not data:
            raise StopIteration
        self.position += len(data)
        self.line += 1
        return text_of(data, self._path, self.line)


def _image_cell(cells: Sequence[str]) -> int | None:
    """Return which of two cells is surely an image's path or URL, and no name of a column."""
    looks = [_names_image(cell) for cell in cells]
    return looks.index(True) if len(cells) == 2 and sum(looks) == 1 else None


def _names_image(cell: str) -> bool:
    stem, _, ending = base_of(cell).rpartition(".")
    return "://" in cell or bool(stem and ending.lower() in IMAGE_FIELDS)

"""The rows of a manifest, by number."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

IMAGE_COLUMNS = (
    *("image", "image_path", "path", "file_name", "filename", "file", "filepath", "file_path"),
    *("image_url", "url", "img", "jpg"),
)
"""Names of columns that are taken for the image where none is given, the first found first."""

CAPTION_COLUMNS = ("caption", "text", "txt", "prompt", "captions", "description")
"""Names of columns that are taken for the caption where none is given, the first found first."""

Row = dict[str, Any]


@dataclass(frozen=True)
class ColumnMap:
    """Which columns of a manifest are what.

    Attributes:
        image: The column of the images: paths, URLs, or the files' bytes.
        captions: The columns of the captions; none where there are none.
        several: Whether the caption is a list of texts, one a column, and not one column's text.
    """

    image: str
    captions: tuple[str, ...]
    several: bool

    def caption(self, row: Row) -> Any:
        """Return a row's caption: a text, a list of texts with "" in the place of a missing one."""
        if self.several:
            texts = [row[name] for name in self.captions]
            return ["" if text is None else text for text in texts]
        return row[self.captions[0]] if self.captions else None

    def mark(self, row: Row) -> bytes:
        """Return the bytes that stand for what a row is: never where its image lies."""
        image = row[self.image]
        if isinstance(image, dict):
            image = image.get("path")
        name = base_of(image) if isinstance(image, str) else ""
        return repr((name, self.caption(row))).encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Wanted:
    """Which columns a user has named; None: to be guessed, and no captions where it is empty."""

    image: str | None = None
    caption: str | tuple[str, ...] | None = None

    def find(self, columns: Sequence[str], where: str) -> ColumnMap:
        """Return which of a manifest's columns are meant.

        Raises:
            ValueError: A named column is not there, or none has a name that says what it is.
        """
        image = _find(self.image, IMAGE_COLUMNS, columns, where, "image")
        if self.caption is None or isinstance(self.caption, str):
            caption = _find(self.caption, CAPTION_COLUMNS, columns, where, "caption")
            return ColumnMap(image, (caption,), False)
        for name in self.caption:
            _find(name, (), columns, where, "caption")
        return ColumnMap(image, self.caption, bool(self.caption))


def _find(
    given: str | None, known: Sequence[str], columns: Sequence[str], where: str, what: str
) -> str:
    listed = f"its columns are: {', '.join(map(repr, columns)) or 'none'}"
    if given is not None:
        if given not in columns:
            raise ValueError(f"{where} has no column {given!r} for {what}=; {listed}")
        return given
    lower = [name.lower() for name in columns]
    for name in known:
        if name in lower:
            return columns[lower.index(name)]
    none = ", or caption=() where there are no captions" if what == "caption" else ""
    raise ValueError(
        f"{where}: no column has a name that is known for the {what} ({', '.join(known)}); "
        f"{listed}. Name one with {what}='…'{none}"
    )


def image_path(image: Any) -> str:
    """Return the path or URL of what a row has as its image, "" where it has none."""
    if isinstance(image, dict):  # Hugging Face's {bytes, path}
        image = image.get("path")
    return image if isinstance(image, str) and image.strip() else ""


def base_of(path: str) -> str:
    """Return the last part of a path or URL, without an http URL's query."""
    if path.startswith(("http://", "https://")):
        path = path.partition("#")[0].partition("?")[0]
    return path.rstrip("/").rpartition("/")[2]


class Table(ABC):
    """A manifest that was opened. Its rows lie in the file, or encoded in memory.

    Attributes:
        path: The manifest, as errors and ``__url__`` name it.
        base: Folder or URL that relative paths of images are relative to.
        map: Which columns are what.
        digest: Hash of what the rows are (names of images, captions), not of where they lie.
    """

    path: str
    base: str
    map: ColumnMap
    digest: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, i: int) -> Row:
        """Return a row. Its image is a path or URL, bytes, or a `Stored`; None where it has none.

        Raises:
            RuntimeError: The manifest is another one than when it was opened.
        """

    @abstractmethod
    def fragment(self, i: int) -> str:
        """Return the words for a row's place in the file, such as ``line=7``; "" in a folder."""

    def url(self, i: int) -> str:
        """Return what names a row: ``/data/train.csv#line=7``."""
        fragment = self.fragment(i)
        return f"{self.path}#{fragment}" if fragment else self.path

    def where(self, i: int) -> str:
        """Return the words for a row in an error: ``/data/train.csv, line 7``."""
        fragment = self.fragment(i)
        return f"{self.path}, {fragment.replace('=', ' ')}" if fragment else self.path

    def beside(self, i: int) -> range:
        """Return the rows whose images come with one read, row ``i`` among them."""
        return range(i, i + 1)

    def image_version(self, i: int) -> tuple[int, int]:
        """Return what tells the versions of a row's image apart where it is no local file."""
        return 0, 0

    def of(self, i: int) -> tuple["Table", int]:
        """Return the table of one file that row ``i`` lies in, and its number there."""
        return self, i


class JoinedTable(Table):
    """Several manifests, one behind the other.

    Args:
        tables: The manifests; not empty.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = list(tables)
        self.path, self.base, self.map = tables[0].path, tables[0].base, tables[0].map
        digest = blake2b(" ".join(t.digest for t in tables).encode(), digest_size=8)
        self.digest = digest.hexdigest()
        self._ends = np.cumsum([len(t) for t in tables])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def of(self, i: int) -> tuple[Table, int]:
        n = int(np.searchsorted(self._ends, i, side="right"))
        return self.tables[n], i - (int(self._ends[n - 1]) if n else 0)

    def row(self, i: int) -> Row:
        table, k = self.of(i)
        return table.row(k)

    def fragment(self, i: int) -> str:
        table, k = self.of(i)
        return table.fragment(k)

    def url(self, i: int) -> str:
        table, k = self.of(i)
        return table.url(k)

    def where(self, i: int) -> str:
        table, k = self.of(i)
        return table.where(k)

    def beside(self, i: int) -> range:
        table, k = self.of(i)
        rows = table.beside(k)
        return range(rows.start + i - k, rows.stop + i - k)

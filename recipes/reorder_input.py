"""What is reordered: files of embeddings, each with the file that says whose they are."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..pipes.errors import DataError
from ..pipes.remote import Remote, Version
from ..pipes.retry import explained
from ..pipes.urls import local_path
from .row_file import Bytes, RowFile, Seekable

KEY_COLUMNS = ("image_path", "key")
"""Columns that hold a sample's key. The first of them counts: clip-retrieval writes what the shard
says into ``image_path``, and into ``key`` whatever stood under this name in a sample's JSON."""

_NPY = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)_([0-9]+)\.npy")
_PARQUET = re.compile(r"(?:.*[^0-9])?([0-9]+)\.parquet")
_ROWS = 1 << 16


@dataclass(frozen=True)
class Pair:
    """A file of embeddings, and the one that says which samples' they are.

    Attributes:
        number: In the names of both.
        npy: URL of the embeddings, [rows, dimension].
        parquet: URL of the metadata, as many rows.
    """

    number: int
    npy: str
    parquet: str


def list_files(folder: str, remote: Remote) -> dict[str, str]:
    """Return the names of the files in a folder and their URLs; nothing where there is no folder.

    Raises:
        OSError: It cannot be listed.
    """
    path = local_path(folder)
    root = folder.rstrip("/")
    if path is not None:
        if not os.path.isdir(path):
            return {}
        with os.scandir(path) as entries:
            return {entry.name: f"{root}/{entry.name}" for entry in entries if entry.is_file()}
    fs, inside = remote.filesystem(folder)
    try:
        found = fs.ls(inside, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise explained(folder, error) from error
    names = [e["name"].rstrip("/").rpartition("/")[2] for e in found if e["type"] == "file"]
    return {name: f"{root}/{name}" for name in names}


def npy_files(folder: str, remote: Remote) -> dict[str, dict[int, str]]:
    """Return the ``.npy`` files of a folder: prefix to number to URL.

    They are those in the folder, else those in ``img_emb`` and ``text_emb`` in it.

    Raises:
        ValueError: There is none, or two have the same number.
    """
    found: dict[str, dict[int, str]] = {}
    for place in (folder, f"{folder.rstrip('/')}/img_emb", f"{folder.rstrip('/')}/text_emb"):
        if found and place.endswith("img_emb"):
            break
        for name, url in sorted(list_files(place, remote).items()):
            match = _NPY.fullmatch(name)
            if match:
                _add(found.setdefault(match[1], {}), int(match[2]), url)
    if not found:
        raise ValueError(
            f"there is no file such as img_emb_0000.npy in {folder}, nor in img_emb or text_emb "
            "in it"
        )
    return found


def find_pairs(folder: str, metadata: str | None, remote: Remote) -> dict[str, list[Pair]]:
    """Return what clip-retrieval has written: prefix (``img_emb``) to pairs, by their number.

    Args:
        folder: What `npy_files` takes.
        metadata: Folder of the metadata; None: ``metadata`` in the folder or beside it, else the
            folder itself.
        remote: How remote files are reached.

    Raises:
        ValueError: There are none, or files that belong together are not all there.
    """
    found = npy_files(folder, remote)
    root = folder.rstrip("/")
    above = root.rpartition("/")[0] or "."
    places = [metadata] if metadata else [f"{root}/metadata", f"{above}/metadata", root]
    tables: dict[int, str] = {}
    for place in places:
        for name, url in sorted(list_files(place, remote).items()):
            if match := _PARQUET.fullmatch(name):
                _add(tables, int(match[1]), url)
        if tables:
            break
    else:
        raise ValueError(
            f"there is no file such as metadata_0000.parquet in {', nor in '.join(places)}: name "
            "its folder with --metadata"
        )
    for files in found.values():
        _refuse_single(files, tables)
    return {
        prefix: [Pair(number, files[number], tables[number]) for number in sorted(files)]
        for prefix, files in sorted(found.items())
    }


def _add(files: dict[int, str], number: int, url: str) -> None:
    if number in files:
        raise ValueError(f"{files[number]} and {url} have the same number {number}: keep one")
    files[number] = url


def _refuse_single(files: dict[int, str], tables: dict[int, str]) -> None:
    for have, lack, what in ((files, tables, "metadata"), (tables, files, "embeddings")):
        if single := sorted(have.keys() - lack.keys()):
            more = f", and {len(single) - 1} more" if len(single) > 1 else ""
            raise ValueError(
                f"{have[single[0]]} has no {what} of the number {single[0]}{more}: fetch what is "
                "missing, or take its partner away"
            )


@dataclass(frozen=True)
class Keys:
    """Some of the keys of a metadata file.

    Attributes:
        start: Row of the first of them.
        numbers: Their digits as a number, int64.
        shortest: Fewest digits of a key; 0 where the file holds numbers.
        longest: Most digits.
    """

    start: int
    numbers: np.ndarray
    shortest: int
    longest: int


class KeyFile:
    """The keys of a metadata file; only their column is read.

    Args:
        url: The Parquet file.
        remote: How remote files are reached.
        column: The column; None: the first of `KEY_COLUMNS` that is there.

    Raises:
        DataError: It is no Parquet file, or has no such column.
        OSError: It cannot be read.
    """

    def __init__(self, url: str, remote: Remote, column: str | None = None) -> None:
        import pyarrow
        import pyarrow.parquet

        self.url = url
        data = Bytes(url, remote)
        self.version: Version = data.version
        try:
            self._file = pyarrow.parquet.ParquetFile(Seekable(data), pre_buffer=False)
        except pyarrow.ArrowException as error:
            raise DataError(f"{url} is no Parquet file that can be read: {error}") from error
        names = self._file.schema_arrow.names
        self.column = column or next((name for name in KEY_COLUMNS if name in names), "")
        if self.column not in names:
            raise DataError(
                f"{url} has no column {self.column or ' or '.join(KEY_COLUMNS)!r}; its columns "
                f"are {', '.join(names)}: name the one of the keys with --key_column"
            )

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def parts(self) -> Iterator[Keys]:
        """Yield all keys, in order.

        Raises:
            DataError: A key is missing or no number; it names the row.
        """
        import pyarrow

        start = 0
        try:
            for batch in self._file.iter_batches(_ROWS, columns=[self.column], use_threads=False):
                yield self._parse(start, batch.column(0))
                start += len(batch)
        except pyarrow.ArrowException as error:
            raise DataError(f"{self.url}, row {start} or later: {error}") from error

    def _parse(self, start: int, column: Any) -> Keys:
        import pyarrow
        import pyarrow.compute

        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pyarrow.types.is_integer(column.type):
            self._refuse(start, column, column.is_null())
            numbers = column.cast(pyarrow.int64()).to_numpy(zero_copy_only=False)
            return Keys(start, numbers, 0, 0)
        try:
            texts = column.cast(pyarrow.large_string())
            found = pyarrow.compute.extract_regex(texts, r"(?:^|/)(?P<d>[0-9]{1,18})(?:\.[^/]*)?$")
        except pyarrow.ArrowException as error:
            raise DataError(f"{self.url}, column {self.column!r} holds no keys: {error}") from error
        digits = found.field("d")
        self._refuse(start, column, pyarrow.compute.invert(found.is_valid()))
        lengths = pyarrow.compute.binary_length(digits).to_numpy(zero_copy_only=False)
        numbers = digits.cast(pyarrow.int64()).to_numpy(zero_copy_only=False)
        return Keys(start, numbers, int(lengths.min(initial=18)), int(lengths.max(initial=0)))

    def _refuse(self, start: int, column: Any, bad: Any) -> None:
        at = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
        if len(at):
            raise DataError(
                f"{self.url}, row {start + int(at[0])}: {self.column} is "
                f"{column[int(at[0])].as_py()!r}; expected digits, the shard's and then the "
                "sample's, with a folder before them and an ending behind them at most"
            )


def check_rows(pair: Pair, rows: RowFile, keys: KeyFile) -> None:
    """Refuse a pair of different lengths.

    Raises:
        DataError: They have not the same number of rows.
    """
    if len(rows) != len(keys):
        raise DataError(
            f"{pair.npy} has {len(rows):,} rows and {pair.parquet} {len(keys):,}: one of them is "
            "not whole, or they are of different runs"
        )

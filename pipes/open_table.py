"""Which kind of manifest lies at a path."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fsspec.core import url_to_fs

from .file_cache import RemoteFile
from .table import JoinedTable, Table, Wanted
from .table_folder import FolderTable
from .table_text import Format, TextTable
from .urls import local_path

TEXTS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
PARQUET = (".parquet", ".pq")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Names of the manifest in a folder that Hugging Face's imagefolder reads."""
_PART_OF = re.compile(r"^(.+)-\d{5}-of-\d{5}\.parquet$")
"""A Parquet file of Hugging Face's: its split, its number, how many there are."""


@dataclass(frozen=True)
class Opening:
    """How manifests are opened.

    Attributes:
        wanted: Which columns are what.
        image_dir: Folder or URL that images are relative to; None: where the manifest lies.
        names: Names of the columns of a CSV or TSV file that has no line for them.
        quotes: Whether quotation marks in a CSV or TSV file quote.
        split: Which of the splits that the data itself has; None: it must have none.
        cache: Folder of the cache.
    """

    wanted: Wanted
    image_dir: str | None = None
    names: tuple[str, ...] | None = None
    quotes: bool = True
    split: str | None = None
    cache: str | None = None

    def open(self, path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Table:
        """Return the manifest at ``path``, or all of several as one.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is of no known kind, a row cannot be parsed, or it has no rows.
        """
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        tables = [table for one in paths for table in self._open(os.fspath(one))]
        if not tables:
            raise ValueError("there is no manifest: the list of paths is empty")
        return tables[0] if len(tables) == 1 else JoinedTable(tables)

    def _open(self, url: str) -> Iterator[Table]:
        path = local_path(url)
        if path is not None and os.path.isdir(path):
            yield from self._open_folder(path)
            return
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(f"no such manifest or folder: {path}")
        self._refuse_split(url, [])
        yield self._open_file(url)

    def _open_file(self, url: str) -> Table:
        path, shown = local_path(url), None
        base = os.path.dirname(path) if path is not None else url.rpartition("/")[0]
        ending = os.path.splitext(url)[1].lower()
        if ending not in TEXTS and ending not in (*PARQUET, ".arrow"):
            raise ValueError(
                f"{url}: its name says of no kind of manifest that is known: "
                f"{', '.join((*TEXTS, *PARQUET, '.arrow'))}, or a folder; tar shards are read by "
                "ShardLister(…).read_tar()"
            )
        if path is None:
            fs, inside = url_to_fs(url)
            if not fs.exists(inside):
                raise FileNotFoundError(f"no such manifest: {url}")
            path, shown = RemoteFile(url, self.cache, str(fs.ukey(inside))).local(), url
        base = self.image_dir or base
        if ending in TEXTS:
            return TextTable(
                path,
                TEXTS[ending],
                self.wanted,
                base,
                names=self.names,
                quotes=self.quotes,
                shown=shown,
                cache=self.cache,
            )
        from .table_arrow import ArrowTable, ParquetTable

        if ending in PARQUET:
            return ParquetTable(path, self.wanted, base, shown=shown)
        return ArrowTable(path, self.wanted, base, shown=shown)

    def _open_folder(self, path: str) -> Iterator[Table]:
        names = set(os.listdir(path))
        parts = sorted(name for name in names if name.lower().endswith(PARQUET))
        if "dataset_dict.json" in names:
            own = replace(self, split=None)
            yield from own._open_folder(os.path.join(path, self._saved_split(path)))
            return
        if self.split is not None and os.path.isdir(os.path.join(path, self.split)):
            yield from replace(self, split=None)._open_folder(os.path.join(path, self.split))
            return
        splits = sorted({name for part in parts for name in _PART_OF.findall(part)})
        if self.split in splits or len(splits) > 1:
            split = self._one_of(splits, path)
            parts = [part for part in parts if _PART_OF.findall(part) == [split]]
        else:
            self._refuse_split(path, splits)
        if {"state.json", "dataset_info.json"} <= names:
            yield from _saved_parts(path, self)
        elif found := sorted(_metadata(path)):
            for manifest in found:
                yield self._imagefolder(manifest)
        elif parts:
            for part in parts:
                yield self._open_file(os.path.join(path, part))
        else:
            yield FolderTable(path, captions=self.wanted.caption != ())

    def _imagefolder(self, manifest: str) -> Table:
        """Return one ``metadata`` file of an imagefolder, whose images are in ``file_name``."""
        wanted = self.wanted
        if wanted.image is None:
            wanted = replace(wanted, image="file_name")
        return replace(self, wanted=wanted)._open_file(manifest)

    def _saved_split(self, path: str) -> str:
        with open(os.path.join(path, "dataset_dict.json"), "rb") as file:
            splits: list[str] = json.load(file)["splits"]
        return self._one_of(splits, path)

    def _one_of(self, splits: Sequence[str], path: str) -> str:
        split = self.split or (splits[0] if len(splits) == 1 else "")
        if split not in splits:
            raise ValueError(
                f"{path} is a data set of the splits {', '.join(splits)}; name one with split='…'"
                + (f", not {self.split!r}" if self.split else "")
            )
        return split

    def _refuse_split(self, path: str, splits: Sequence[str]) -> None:
        if self.split is not None:
            raise ValueError(
                f"{path} has no split {self.split!r} of its own"
                + (f", only {', '.join(splits)}" if splits else "")
                + f"; to draw one, give fractions: split={self.split!r}, "
                f"splits={{{self.split!r}: 0.9, 'the rest': 0.1}}"
            )


def _metadata(path: str) -> Iterator[str]:
    """Yield the first of `METADATA` in a folder, else those in the folders in it, as of splits."""
    with os.scandir(path) as entries:
        folders = [e.path for e in entries if not e.name.startswith(".") and e.is_dir()]
    own = _first_of(path)
    for found in [own] if own else map(_first_of, folders):
        if found:
            yield found


def _first_of(folder: str) -> str:
    paths = [os.path.join(folder, name) for name in METADATA]
    return next((path for path in paths if os.path.exists(path)), "")


def _saved_parts(path: str, opening: Opening) -> Iterator[Table]:
    """Yield the Arrow files of what ``datasets.Dataset.save_to_disk`` has written."""
    from .table_arrow import ArrowTable

    with open(os.path.join(path, "state.json"), "rb") as file:
        state = json.load(file)
    if state.get("_indices_data_files"):
        raise ValueError(
            f"{path} was saved with indices beside its rows: call flatten_indices() before "
            "save_to_disk()"
        )
    for part in state["_data_files"]:
        file_path = os.path.join(path, part["filename"])
        yield ArrowTable(file_path, opening.wanted, opening.image_dir or path)

"""Which kind of manifest lies at a path."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from .folder import Folder, LocalFolder, RemoteFolder
from .manifest_file import manifest_file
from .remote import Remote
from .table import JoinedTable, Table, Wanted, base_of
from .table_folder import FolderTable
from .table_text import Format, TextTable
from .urls import TAR_ENDINGS, local_path

TEXTS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
PARQUET = (".parquet", ".pq")
MANIFESTS = (*TEXTS, *PARQUET, ".arrow")
"""Endings of the names that are taken for manifests."""
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
        remote: How what lies at a URL is reached.
    """

    wanted: Wanted
    image_dir: str | None = None
    names: tuple[str, ...] | None = None
    quotes: bool = True
    split: str | None = None
    cache: str | None = None
    remote: Remote = field(default_factory=Remote, repr=False)

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
            yield from self._open_folder(LocalFolder(path))
            return
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(f"no such manifest or folder: {path}")
        if path is None and not url.lower().endswith((*MANIFESTS, *TAR_ENDINGS)):
            yield from self._open_folder(self._remote_folder(url))
            return
        self._refuse_split(url, [])
        yield self._open_file(url)

    def _remote_folder(self, url: str) -> Folder:
        if url.startswith(("http://", "https://")):
            raise ValueError(
                f"{url}: its name says of no kind of manifest that is known "
                f"({', '.join(MANIFESTS)}), and a web server does not list folders"
            )
        folder = RemoteFolder.list(url, self.remote, self.cache)
        if not folder.listed:
            raise FileNotFoundError(f"no such manifest or folder: {url}")
        return folder

    def _open_file(self, url: str) -> Table:
        path, shown = local_path(url), None
        base = os.path.dirname(path) if path is not None else url.rpartition("/")[0]
        ending = os.path.splitext(url)[1].lower()
        if ending not in MANIFESTS:
            raise ValueError(
                f"{url}: its name says of no kind of manifest that is known: "
                f"{', '.join(MANIFESTS)}, or a folder; tar shards are read by "
                "ShardLister(…).read_tar()"
            )
        if path is None:
            path, shown = manifest_file(url, self.remote, self.cache), url
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
        from .table_arrow import ArrowTable
        from .table_parquet import ParquetTable

        if ending in PARQUET:
            return ParquetTable(path, self.wanted, base, shown=shown, cache=self.cache)
        return ArrowTable(path, self.wanted, base, shown=shown)

    def _open_folder(self, folder: Folder) -> Iterator[Table]:
        files, inner = folder.files, folder.inner()
        if "dataset_dict.json" in files:
            split = self._one_of(folder.json("dataset_dict.json")["splits"], folder.path)
            if split not in inner:
                raise FileNotFoundError(f"{folder.path} lacks its split {split!r}")
            yield from replace(self, split=None)._open_folder(inner[split])
            return
        if self.split is not None and self.split in inner:
            yield from replace(self, split=None)._open_folder(inner[self.split])
            return
        parts = sorted(name for name in files if name.lower().endswith(PARQUET))
        splits = sorted({name for part in parts for name in _PART_OF.findall(part)})
        if self.split in splits or len(splits) > 1:
            split = self._one_of(splits, folder.path)
            parts = [part for part in parts if _PART_OF.findall(part) == [split]]
        else:
            self._refuse_split(folder.path, splits)
        if {"state.json", "dataset_info.json"} <= files:
            for part in _saved_parts(folder):
                yield self._open_file(folder.join(part))
        elif own := _metadata(folder):
            yield self._imagefolder(own)
        elif found := sorted(filter(None, map(_metadata, inner.values()))):  # as of splits
            for manifest in found:
                yield self._imagefolder(manifest)
        elif parts:
            _refuse_shards(folder.path, parts, files)
            for part in parts:
                yield self._open_file(folder.join(part))
        else:
            yield FolderTable(folder, captions=self.wanted.caption != ())

    def _imagefolder(self, manifest: str) -> Table:
        """Return one ``metadata`` file of an imagefolder, whose images are in ``file_name``."""
        wanted = self.wanted
        if wanted.image is None:
            wanted = replace(wanted, image="file_name")
        return replace(self, wanted=wanted)._open_file(manifest)

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


def _refuse_shards(path: str, parts: list[str], names: set[str]) -> None:
    """Refuse what img2dataset wrote: tables that tell whence the images of the shards came."""
    for part in parts:
        if os.path.splitext(part)[0] + ".tar" in names:
            raise ValueError(
                f"{path} has tar shards, which ShardLister({path!r}).read_tar() reads, and {part} "
                "and such list where their samples came from; to fetch those anew, name the "
                f"files: {path}/{part}"
            )


def _metadata(folder: Folder) -> str:
    """Return the path of the first of `METADATA` in a folder, or ""."""
    return next((folder.join(name) for name in METADATA if folder.has(name)), "")


def _saved_parts(folder: Folder) -> list[str]:
    """Return the names of the Arrow files of what ``datasets.Dataset.save_to_disk`` has written."""
    state = folder.json("state.json")
    if state.get("_indices_data_files"):
        raise ValueError(
            f"{folder.path} was saved with indices beside its rows: call flatten_indices() before "
            "save_to_disk()"
        )
    return [base_of(part["filename"]) for part in state["_data_files"]]

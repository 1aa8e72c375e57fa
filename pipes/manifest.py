"""Samples of manifests and folders."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .cache_room import parse_size
from .file_cache import FileCache
from .manifest_source import ManifestSource
from .open_table import Opening
from .order import Item, Lane, Order
from .passes import PassOrder
from .remote import Remote
from .sources import SourcePipe
from .split_table import split_table
from .table import Table, Wanted

_BLOCK = 4096
"""Rows whose image sizes are given out at once."""


class ManifestReader(SourcePipe):
    """Yields a sample for each row of a manifest, or for each image of a folder.

    Each row stands for itself: a pass visits all of them in an order drawn anew over the whole
    length, lanes deal out rows, and a sample is found by its number.

    ``image`` is an extent of a file, or what is read from a URL or out of a Parquet file;
    ``caption`` a text, or a list of texts. All other columns come along as fields under their own
    names, as what the manifest has (None where a row has nothing). A row without an image file or a
    caption is bad data when it is read, and the error names file and line.

    Args:
        path: A ``.csv``, ``.tsv``, ``.json`` (a list of objects), ``.jsonl``, ``.parquet`` or
            ``.arrow`` file, local or at a URL; a folder of images with ``.txt`` (or ``.caption``)
            files beside them, folders in it too; a folder with Hugging Face's
            ``metadata.jsonl``/``.csv``/``.parquet``; a folder that ``Dataset.save_to_disk`` wrote;
            a folder of Parquet files. Several are read as one.
        image: The image's column: paths (relative ones to ``image_dir``), URLs, or the bytes of
            files. Default: the first of ``image``, ``image_path``, ``path``, ``file_name``, …
        caption: The caption's column; several columns give a list of captions; ``()``: there are
            none. Default: the first of ``caption``, ``text``, ``txt``, ``prompt``, …
        image_dir: Folder or URL that relative paths of images are relative to (default: where the
            manifest lies).
        columns: Names of the columns of a CSV or TSV file whose first line does not name them.
        quotes: Whether quotation marks in a CSV or TSV file quote; False: they are text.
        split: Which split: of ``splits`` where they are given, else of those that the data has
            (a Hugging Face data set of several, a folder in the folder).
        splits: Name to fraction, such as ``{"train": 0.75, "val": 0.15, "test": 0.1}``.
        split_by: ``"row"``: the numbers of rows are exact; rows of one image stay together.
            ``"sample"``: by a hash of (seed, the image's path): adding data then moves nothing.
        seed: Seed of the order and of every other random draw of the graph.
        shuffle: Whether rows come in a random order; otherwise in the manifest's, and a folder's
            sorted by path.
        cache: Folder of the cache, for what URLs name and for image sizes (default:
            ``$PENSTOCK_CACHE``, else ``~/.cache/penstock``).
        cache_size: Most that the files of URLs may take in it: bytes, or such as ``"100GB"``; None:
            no bound. The least recently used go first, and are fetched anew when they are needed.
        storage_options: What fsspec's filesystem takes: keys, endpoints. Where the manifest lies at
            a URL, they are for URLs of its protocol alone. Never in a checkpoint.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ValueError: A row cannot be parsed, no column fits, or a split is empty; the message names
            file and line.
        ImportError: Parquet and Arrow files need pyarrow: ``pip install 'penstock[tables]'``.
    """

    resample = False

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        image: str | None = None,
        caption: str | Sequence[str] | None = None,
        image_dir: str | os.PathLike[str] | None = None,
        columns: Sequence[str] | None = None,
        quotes: bool = True,
        split: str | None = None,
        splits: Mapping[str, float] | None = None,
        split_by: Literal["row", "sample"] = "row",
        seed: int = 0,
        shuffle: bool = True,
        cache: str | None = None,
        cache_size: str | int | None = "100GB",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        several = caption is not None and not isinstance(caption, str)
        wanted = Wanted(image, tuple(caption) if several and caption is not None else caption)  # type: ignore[arg-type]
        opening = Opening(
            wanted,
            None if image_dir is None else os.fspath(image_dir),
            None if columns is None else tuple(columns),
            quotes,
            split if splits is None else None,
            cache,
            Remote(None if storage_options is None else dict(storage_options)),
        )
        self.path = path
        self.seed = seed
        self.shuffle_shards = shuffle
        self.files = FileCache(cache, parse_size(cache_size), opening.remote)
        self.split = split
        self.splits = None if splits is None else dict(splits)
        self.split_by = split_by
        self.table: Table = opening.open(path)
        if splits is not None:
            self.table = split_table(self.table, splits, split, split_by, seed)

    def shard_count(self) -> int:
        return len(self.table)

    def shard_sizes(self, skip: bool) -> np.ndarray:
        return np.broadcast_to(np.int64(1), (len(self.table),))

    def image_sizes(self) -> Iterator[np.ndarray]:
        source = self.open(True)
        for start in range(0, len(self.table), _BLOCK):
            rows = range(start, min(start + _BLOCK, len(self.table)))
            if source.looks:
                source.look(rows)
            sizes = [source.image_size(row, 0) for row in rows]
            yield np.array([s if isinstance(s, tuple) else (-1, -1) for s in sizes], np.int32)

    def open(self, image_sizes: bool) -> ManifestSource:
        return ManifestSource(self.table, self.files, image_sizes)

    def arguments(self) -> dict[str, Any]:
        # Where the manifest and the images lie is no difference.
        return {
            "rows": {"count": len(self.table), "hash": self.table.digest},
            "seed": self.seed,
            "shuffle": self.shuffle_shards,
            "split": self.split,
            "splits": self.splits,
            "split_by": self.split_by,
        }

    def _order(self, lane: Lane) -> Order[Item]:
        return PassOrder(self, lane)

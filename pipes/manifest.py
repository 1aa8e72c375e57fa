"""Samples of manifests and folders."""

import os
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from .errors import DataError
from .file_cache import RemoteFile
from .image_size import image_size, read_image_size
from .local_file import cache_root
from .open_table import Opening
from .order import Item, Lane, Order
from .passes import PassOrder
from .read import forget
from .remote import Remote
from .row_sizes import RowSizes
from .sample import IMAGE_SIZE, KEY, URL, Extent, Sample, Stored
from .sources import Source, SourcePipe
from .split_table import split_table
from .table import Table, Wanted, image_path
from .table_folder import Missing
from .urls import local_path

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
        self.cache = cache
        self.remote = opening.remote
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
            sizes = [source.image_size(row, 0) for row in rows]
            yield np.array([s if isinstance(s, tuple) else (-1, -1) for s in sizes], np.int32)

    def open(self, image_sizes: bool) -> "ManifestSource":
        return ManifestSource(self.table, self.cache, self.remote, image_sizes)

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


class ManifestSource(Source):
    """The rows of one process: each a shard of one sample."""

    prints = False  # a state has the hash of all rows: with another manifest it is refused

    def __init__(self, table: Table, cache: str | None, remote: Remote, image_sizes: bool) -> None:
        self._table = table
        self._cache = cache
        self._remote = remote
        self._image_sizes = image_sizes
        path = os.path.join(cache_root(cache), "index", f"{_name(table)}.sizes")
        self._sizes = RowSizes(len(table), path) if image_sizes else None

    def size(self, shard: int) -> int:
        return 1

    def sample(self, shard: int, index: int) -> Sample:
        table, i = self._table.of(shard)
        row = table.row(i)
        found = row.pop(table.map.image, None)
        sample: Sample = {KEY: _key(found, i), URL: table.url(i)}
        sample["image"] = self._image(table, i, found)
        if table.map.captions:
            sample["caption"] = _caption(table, i, table.map.caption(row))
            for name in table.map.captions:
                del row[name]
        for name, value in row.items():
            sample.setdefault(name, value)
        if self._image_sizes:
            sample[IMAGE_SIZE] = self._measure(shard, sample["image"])
        return sample

    def image_size(self, shard: int, index: int) -> tuple[int, int] | str | None:
        assert self._sizes is not None
        known = self._sizes.get(shard)
        if known is not None:
            return known
        for row in self._table.beside(shard):
            if self._sizes.get(row) is None:
                table, i = self._table.of(row)
                image = table.row(i).get(table.map.image)
                self._measure(row, self._image(table, i, image))
        return self._sizes.get(shard)

    def _measure(self, shard: int, image: Extent | Stored | bytes) -> tuple[int, int] | str | None:
        assert self._sizes is not None
        known = self._sizes.get(shard)
        if known is not None:
            return known
        if isinstance(image, Extent):
            stat = os.stat(image.path)
            version = stat.st_size, stat.st_mtime_ns
            return self._sizes.find(shard, version, lambda: read_image_size(image))
        table, i = self._table.of(shard)
        version = table.image_version(i)
        data = image if isinstance(image, bytes) else None
        return self._sizes.find(
            shard,
            version,
            lambda: image_size(image.read() if data is None else data),  # type: ignore[union-attr]
        )

    def _image(self, table: Table, i: int, value: Any) -> Extent | Stored | bytes:
        """Return the field for what a row has as its image."""
        if isinstance(value, dict):  # Hugging Face's {bytes, path}
            value = value.get("bytes") or value.get("path")
        if isinstance(value, Stored | bytes):
            return value
        if not isinstance(value, str) or not value.strip():
            return Missing(f"{table.where(i)}: there is no image in column {table.map.image!r}")
        url = _join(table.base, value)
        path = local_path(url)
        if path is None:
            options = self._remote.options if _takes_options(table.path, url) else None
            known = table.image_version(i)[0]
            return RemoteFile(url, self._cache, f"{known:016x}" if known else "", options)
        try:
            size = os.stat(path).st_size
        except (FileNotFoundError, NotADirectoryError):
            return Missing(f"{table.where(i)}: there is no image at {path}")
        if not size:
            return Missing(f"{table.where(i)}: the image {path} is empty")
        forget(path)  # it may have been replaced since it was last read
        return Extent(path, 0, size)

    def name(self, shard: int, index: int) -> tuple[str, str]:
        table, i = self._table.of(shard)
        return table.url(i), _key(table.row(i).get(table.map.image), i)

    def url(self, shard: int) -> str:
        return self._table.url(shard)

    def fingerprint(self, shard: int) -> int:
        return 0


def _caption(table: Table, i: int, value: Any) -> Any:
    """Return the field for what a row has as its caption: text, texts, or what tells the fault."""
    if isinstance(value, Stored):
        return value
    texts = value if isinstance(value, list) else [value]
    if any(text is not None and not isinstance(text, str) for text in texts):
        kinds = sorted({type(text).__name__ for text in texts if not isinstance(text, str)})
        return Missing(
            f"{table.where(i)}: a caption must be text, found {', '.join(kinds)}", DataError
        )
    if not any(text and text.strip() for text in texts):
        names = " or ".join(map(repr, table.map.captions))
        return Missing(
            f"{table.where(i)}: there is no caption in column {names}: write one, or give "
            "caption_default='' to .decode() or text_to_image_dataset()"
        )
    return value


def _key(image: Any, i: int) -> str:
    """Return what names a row's sample: its image's path as the row has it, else its number."""
    return image_path(image) or f"{i:09d}"


def _takes_options(manifest: str, url: str) -> bool:
    """Return whether the storage options are for a URL in a manifest: an S3 key is not for http."""
    if local_path(manifest) is not None:
        return True
    one, other = (place.partition("://")[0].removesuffix("s") for place in (manifest, url))
    return one == other


def _join(base: str, path: str) -> str:
    """Return the path or URL of an image."""
    if "://" in path or path.startswith(("/", "~")):
        return path
    return f"{base.rstrip('/')}/{path}"


def _name(table: Table) -> str:
    """Return the name of a table's file of sizes: of these rows, with images from this place."""
    place = f"{table.path} {table.base} {table.digest}".encode("utf-8", "surrogateescape")
    return blake2b(place, digest_size=16).hexdigest()

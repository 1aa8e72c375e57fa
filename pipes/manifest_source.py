"""The rows of manifests and folders in one process."""

import os
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from .ahead import Ahead, fetching
from .errors import DataError
from .file_cache import FileCache, RemoteFile, takes_options
from .image_size import image_size, read_image_size
from .local_file import cache_root
from .read import forget
from .remote import Remote
from .row_sizes import RowSizes
from .sample import IMAGE_SIZE, KEY, URL, Extent, Sample, Stored
from .sources import Source
from .table import Table, image_path
from .table_folder import Missing
from .urls import local_path


class ManifestSource(Source):
    """The rows of one process: each a shard of one sample."""

    prints = False  # a state has the hash of all rows: with another manifest it is refused

    def __init__(self, table: Table, files: FileCache, image_sizes: bool) -> None:
        self._table = table
        self._files = files
        self._plain = replace(files, remote=Remote())
        self._image_sizes = self.looks = image_sizes
        path = os.path.join(cache_root(files.root), "index", f"{_name(table)}.sizes")
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

    def look(self, shards: Sequence[int]) -> None:
        sizes = self._sizes
        assert sizes is not None
        far: dict[int, Ahead] = {}
        unknown = 0
        for row in map(int, shards):
            table, i = self._table.of(row)
            if sizes.get(row) is not None or sizes.recall(row, table.image_version(i)) is not None:
                continue
            unknown += 1
            image = self._image(table, i, table.row(i).get(table.map.image))
            if isinstance(image, Stored) and image.far:
                far[row] = Ahead(image)
        self.looks = bool(far) or not unknown  # where all is near, to look ahead costs time
        with fetching(list(far.values())):
            for row, image in far.items():
                try:
                    self._measure(row, image)
                except Exception:
                    return  # it is raised when the row's turn comes

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
            files = self._files if takes_options(table.path, url) else self._plain
            known = table.image_version(i)[0]
            return RemoteFile(url, files, table.where(i), f"{known:016x}" if known else "")
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


def _join(base: str, path: str) -> str:
    """Return the path or URL of an image."""
    if "://" in path or path.startswith(("/", "~")):
        return path
    return f"{base.rstrip('/')}/{path}"


def _name(table: Table) -> str:
    """Return the name of a table's file of sizes: of these rows, with images from this place."""
    place = f"{table.path} {table.base} {table.digest}".encode("utf-8", "surrogateescape")
    return blake2b(place, digest_size=16).hexdigest()

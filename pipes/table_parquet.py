"""Manifests that are Parquet files, also with the images inside."""

import os
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import numpy as np

from .errors import DataError
from .parquet_pages import PagedColumn, Unsupported
from .parquet_texts import keep_digest, keep_texts, kept_digest, map_texts
from .row_index import KEPT_FROM, index_path
from .table import Row, Wanted
from .table_arrow import ArrowRows, RowImage, bytes_of, is_bytes

GROUP_BYTES = 256 << 20
"""Bytes of images that one process keeps of a Parquet file's row groups."""


class ParquetTable(ArrowRows):
    """The rows of a Parquet file.

    Columns without images are held in memory as Arrow has them; of a large file they are kept in
    the cache, unpacked, and mapped. Images inside are read a page at a time, see `PagedColumn`: a
    page is a megabyte as Hugging Face's ``datasets`` writes it (from version 4 on), but 1,024
    images as pyarrow does unless it is told ``write_batch_size=16``, and a shuffle then reads each
    page many times. Where the file is written in a seldom way (LZ4, delta encodings) images come by
    row groups, of which the last are kept, up to `GROUP_BYTES` a process but at least one.

    Args:
        path: The file.
        wanted: Which columns are what.
        base: Folder that images are relative to.
        shown: What errors call it.
        cache: Folder of the cache.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: It is no Parquet file, or its columns do not fit.
    """

    def __init__(
        self,
        path: str,
        wanted: Wanted,
        base: str,
        *,
        shown: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__(path, wanted, base, shown)
        file = self._open()
        schema = file.schema_arrow
        self.map = wanted.find(schema.names, self.path)
        self.inside = is_bytes(schema.field(self.map.image).type)
        names = [n for n in schema.names if not self.inside or n != self.map.image]
        self._nulls: list[int] = []  # of each row group, how many images are null; -1: not known
        self._pages: PagedColumn | None = None
        if self.inside:
            leaf = self._find_leaf(file)
            if any(self._nulls) and f"{self.map.image}.path" in _leaves(file):
                names.append(f"{self.map.image}.path")
            with suppress(Unsupported):
                self._pages = PagedColumn(self._file, file, leaf)
        groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
        counts = np.array([group.num_rows for group in groups], np.int64)
        self._starts = np.cumsum(counts) - counts
        self._count: int = file.metadata.num_rows
        self._names = names
        how = ("texts", wanted, self.map, names)
        self._kept_at = index_path(path, how, cache).removesuffix(".rows.npz") + ".arrow"
        self._texts = self._load_texts(file)
        more = counts.astype("<i8").tobytes()
        if self.inside:
            sizes = [self._image_bytes(group) for group in groups]
            more += np.array(sizes, "<i8").tobytes()
        known = kept_digest(self._kept_at, self.version) if self._is_large else None
        if known is not None:
            self.digest = known
        else:
            self._take(self._texts, more)
            if self._is_large:
                keep_digest(self._kept_at, self.version, self.digest)
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._held = 0
        self._opened: tuple[int, Any] | None = None

    @property
    def _is_large(self) -> bool:
        return self._count >= KEPT_FROM and bool(self._names)

    def _load_texts(self, file: Any) -> Any:
        """Return all columns but images; those of a large file mapped from the cache."""
        if self._is_large:
            with suppress(OSError):  # the cache cannot be written, or read
                found = map_texts(self._kept_at, self.version)
                if found is None:
                    keep_texts(self._kept_at, self.version, file, self._names)
                    found = map_texts(self._kept_at, self.version)
                if found is not None:
                    return found
        # read(), not read_row_groups: one that is damaged shall be seen now.
        return file.read(columns=self._names, use_threads=False)

    def _find_leaf(self, file: Any) -> int:
        """Return the number of the leaf column that holds the images, and count its nulls."""
        leaves = _leaves(file)
        name = self.map.image
        leaf = leaves.index(name if name in leaves else f"{name}.bytes")
        for g in range(file.metadata.num_row_groups):
            found = file.metadata.row_group(g).column(leaf).statistics
            self._nulls.append(
                -1 if found is None or not found.has_null_count else found.null_count
            )
        return leaf

    def _image_bytes(self, group: Any) -> int:
        columns = [group.column(c) for c in range(group.num_columns)]
        name = self.map.image
        return sum(
            c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] == name
        )

    def _open(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self._file, pre_buffer=False)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{self.path} is no Parquet file: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        # What is open stays in its process.
        state = {**self.__dict__, "_groups": OrderedDict(), "_held": 0, "_opened": None}
        if self._is_large:
            del state["_texts"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_texts" not in state:
            self._check_same()
            self._texts = self._load_texts(self._open())

    def __len__(self) -> int:
        return self._count

    def row(self, i: int) -> Row:
        row: Row = {name: self._texts.column(name)[i].as_py() for name in self._texts.column_names}
        if self.inside and self._has_image(i):
            row[self.map.image] = RowImage(self, i)
        elif self.inside:
            row.setdefault(self.map.image)  # what it has beside the bytes: a path, or nothing
        return row

    def _has_image(self, i: int) -> bool:
        """Return whether a row has bytes; read for it only where its group has rows without."""
        group = self._group(i)
        if not self._nulls[group]:
            return True
        try:
            return self.image(i) is not None
        except DataError:
            return True  # said when the image is read

    def _group(self, i: int) -> int:
        return int(np.searchsorted(self._starts, i, side="right")) - 1

    def beside(self, i: int) -> range:
        if not self.inside:
            return range(i, i + 1)
        group = self._group(i)
        start = int(self._starts[group])
        if self._pages is not None:
            try:
                rows = self._pages.beside(group, i - start)
            except DataError:
                return range(i, i + 1)
            return range(start + rows.start, start + rows.stop)
        ends = (*self._starts[1:].tolist(), self._count)
        return range(start, int(ends[group]))

    def image(self, i: int) -> bytes | None:
        self._check_same()
        group = self._group(i)
        start = int(self._starts[group])
        if self._pages is not None:
            try:
                return self._pages.value(group, i - start)
            except Unsupported:
                self._pages = None
        images = self._groups.get(group)
        if images is None:
            images = self._groups[group] = self._read(group)
            self._held += images.nbytes
            while self._held > GROUP_BYTES and len(self._groups) > 1:
                self._held -= self._groups.popitem(last=False)[1].nbytes
        else:
            self._groups.move_to_end(group)
        return bytes_of(images[i - start])

    def _check_same(self) -> None:
        stat = os.stat(self._file)
        if (stat.st_size, stat.st_mtime_ns) != self.version:
            raise RuntimeError(
                f"{self.path} was changed under the run: put it back, or start the run anew"
            )

    def _read(self, group: int) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self._open()
        table = self._opened[1].read_row_group(group, columns=[self.map.image], use_threads=False)
        return table.column(self.map.image)


def _leaves(file: Any) -> list[str]:
    """Return the paths of a Parquet file's leaf columns."""
    return [file.schema.column(i).path for i in range(len(file.schema))]

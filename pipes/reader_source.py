"""The rows of embeddings of one process, by piece and number."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from .draws import hash64, hash_text
from .npy import NpyRow
from .parquet_rows import ArrowRows
from .read import forget, read_through
from .read_ahead import ReadAhead
from .reader_blocks import RowBlock
from .reader_file import Place
from .sample import KEY, URL, Sample
from .shard_cache import ShardCache
from .sources import Source
from .urls import base_name

MOST_TABLES = 256
"""Files of metadata that a process keeps open."""


class EmbeddingSource(Source):
    """The open files of one process; a shard is a piece of a file.

    Args:
        blocks: The files.
        starts: Global number of each block's first row, and the number of all, int64 [blocks + 1].
        pieces: Global number of each piece's first row, int64 [pieces].
        sizes: Rows of each piece, int64 [pieces].
        fields: Names of the fields, one for each file of a block.
        meta_columns: Names of the columns of the metadata.
        store: How the files are reached.
    """

    def __init__(
        self,
        blocks: Sequence[RowBlock],
        starts: np.ndarray,
        pieces: np.ndarray,
        sizes: np.ndarray,
        fields: tuple[str, ...],
        meta_columns: tuple[str, ...],
        store: ShardCache,
    ) -> None:
        self._blocks = blocks
        self._starts = starts
        self._pieces = pieces
        self._sizes = sizes
        self._fields = fields
        self._meta_columns = meta_columns
        self._store = store
        self._places: dict[int, list[Place]] = {}
        self._metadata: OrderedDict[int, ArrowRows] = OrderedDict()
        self._ahead = ReadAhead()
        self.holds = any(file.remote for file in blocks[0].files)

    def _block(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _opened(self, block: int) -> list[Place]:
        places = self._places.get(block)
        if places is None:
            places = [file.place(self._store) for file in self._blocks[block].files]
            self._places[block] = places
            for place in places:
                if place.shard is not None:
                    read_through(place.path, place.shard)
                else:
                    forget(place.path)  # it may have been replaced since it was last read
        return places

    def size(self, shard: int) -> int:
        return int(self._sizes[shard])

    def sample(self, shard: int, index: int) -> Sample:
        row = int(self._pieces[shard]) + index
        block = self._block(row)
        i = row - int(self._starts[block])
        files = self._blocks[block].files
        sample: Sample = {KEY: str(row), URL: files[0].url}
        for name, place in zip(self._fields, self._opened(block), strict=True):
            sample[name] = NpyRow(place.rows, place.path, i)
        if self._meta_columns:
            sample.update(zip(self._meta_columns, self._table(block).row(i), strict=True))
        return sample

    def _table(self, block: int) -> ArrowRows:
        table = self._metadata.get(block)
        if table is None:
            rows = self._blocks[block].metadata
            assert rows is not None
            table = ArrowRows(rows.table(self._meta_columns, self._store))
            self._metadata[block] = table
            if len(self._metadata) > MOST_TABLES:
                self._metadata.popitem(last=False)
        else:
            self._metadata.move_to_end(block)
        return table

    def hold(self, shard: int) -> None:
        for place in self._opened(self._block(int(self._pieces[shard]))):
            if place.shard is not None:
                place.shard.acquire()

    def release(self, shard: int) -> None:
        for place in self._opened(self._block(int(self._pieces[shard]))):
            if place.shard is not None:
                place.shard.release()

    def ahead(self, shard: int) -> None:
        for place in self._opened(self._block(int(self._pieces[shard]))):
            if place.shard is not None:
                self._ahead.fetch(place.shard)

    def name(self, shard: int, index: int) -> tuple[str, str]:
        row = int(self._pieces[shard]) + index
        return self._blocks[self._block(row)].files[0].url, str(row)

    def url(self, shard: int) -> str:
        return self._blocks[self._block(int(self._pieces[shard]))].files[0].url

    def fingerprint(self, shard: int) -> int:
        first = int(self._pieces[shard])
        file = self._blocks[self._block(first)].files[0]
        name = hash_text(f"{base_name(file.url)} {file.dimension} {file.dtype.str}")
        return hash64(name, file.count, first)

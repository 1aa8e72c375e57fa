"""Rows of embeddings: from files of numpy's or Parquet, with their metadata."""

import copy
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .cache_room import parse_size
from .order import Item, Lane, Order
from .passes import PassOrder
from .reader_batches import Metadata
from .reader_blocks import BlockFinder
from .reader_files import Folders
from .reader_rows import RowRange, check_names, joined_rows
from .reader_source import EmbeddingSource
from .remote import Remote
from .shard_cache import ShardCache
from .sources import SourcePipe
from .splits import split_range


class EmbeddingReader(SourcePipe):
    """Yields a sample for each row of a folder's embeddings, such as clip-retrieval writes them.

    ``embedding`` is the row, of the type that is stored: a batch has a tensor [B, D]. The columns
    of the metadata come along under their own names. ``__key__`` is the row's number, counted over
    all files in their order; ``__url__`` its file. ``.load()`` or ``.decode()`` reads the rows.

    Files come in the order of the numbers in their names (``img_emb_2`` before ``img_emb_10``);
    ``start`` and ``end`` count rows in that order. Files of several folders belong together where
    they have the same number; their numbers of rows are checked. Empty files are passed over.

    Rows that follow each other are pieces; a pass visits the pieces in an order drawn anew, and
    ``.shuffle(n)`` behind it mixes the rows of the pieces in a window. Lanes are even to a row.

    Args:
        embeddings_folder: A folder or several, local or at URLs, with folders in them. A dict of
            names to folders: several embeddings of each row, as fields of those names.
        file_format: ``"npy"``; ``"parquet"``: a column of lists of numbers; or ``"parquet_npy"``:
            ``.npy`` files, and metadata in Parquet files of the same numbers.
        embedding_column: The column of the embeddings, in Parquet files.
        meta_columns: Columns of the metadata that are wanted; with ``"parquet_npy"`` they must be
            named.
        metadata_folder: Folders of the metadata, with ``"parquet_npy"``.
        order: ``"number"``, or ``"string"``: files come in the order of their paths as text
            (``img_emb_10`` before ``img_emb_2``), as embedding-reader 1.8 has them.
        start: First row that is taken.
        end: Row behind the last one taken (default: all; a number beyond them means all).
        split: Which of ``splits`` to take, of the rows from ``start`` to ``end``.
        splits: Name to fraction, such as ``{"train": 0.75, "val": 0.25}``: ranges of rows, one
            behind the other. What exact fractions do not use up goes to the last.
        seed: Seed of the order and of every other random draw of the graph.
        shuffle: Whether pieces come in a random order; otherwise rows come as they lie.
        piece_size: Rows of a piece; 1 shuffles all rows over the whole length by itself; None:
            whole files, for remote ones that the cache cannot hold together.
        cache: Folder of the cache (default: ``$PENSTOCK_CACHE``, else ``~/.cache/penstock``).
            Remote files are fetched into it, whole, ahead of need. What is wanted of Parquet files
            is unpacked into it, once, and does not count for ``cache_size``.
        cache_size: Most that the fetched files may take: bytes, or such as ``"100GB"``.
        storage_options: What fsspec's filesystem takes: keys, endpoints. Never in a checkpoint.

    Attributes:
        count: Rows that are taken.
        dimension: Numbers in a row; of several fields, in the first one's.
        dtype: Their type, in the machine's byte order.
        byte_per_item: Bytes of a row, all fields together.
        total_size: Bytes of all rows that are taken.

    Raises:
        FileNotFoundError: A folder is not there.
        ValueError: Nothing is found, a file has no partner, or a column is missing.
        DataError: A file is damaged, or has another number of rows than its partner.
        ImportError: Parquet files need pyarrow: ``pip install 'penstock[tables]'``.
    """

    resample = False

    def __init__(
        self,
        embeddings_folder: Folders | Mapping[str, Folders],
        file_format: Literal["npy", "parquet", "parquet_npy"] = "npy",
        embedding_column: str = "embedding",
        meta_columns: Sequence[str] | None = None,
        metadata_folder: Folders | None = None,
        *,
        order: Literal["number", "string"] = "number",
        start: int = 0,
        end: int | None = None,
        split: str | None = None,
        splits: Mapping[str, float] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        piece_size: int | None = 10_000,
        cache: str | None = None,
        cache_size: str | int | None = "100GB",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        _check(file_format, meta_columns, metadata_folder)
        if (split is None) != (splits is None):
            raise ValueError(f"split={split!r} and splits={splits!r}: give both or neither")
        folders = embeddings_folder
        if not isinstance(folders, Mapping):
            folders = {"embedding": folders}
        options = None if storage_options is None else dict(storage_options)
        self.embeddings_folder = embeddings_folder
        self.file_format = file_format
        self.fields = tuple(folders)
        self.meta_columns = tuple(meta_columns or ())
        self.store = ShardCache(cache, parse_size(cache_size), Remote(options))
        self.seed = seed
        self.shuffle_shards = shuffle
        self.piece_size = piece_size
        column = embedding_column if file_format == "parquet" else None
        check_names(self.fields, self.meta_columns)
        finder = BlockFinder(column, self.meta_columns, metadata_folder, order, self.store)
        blocks = finder.find(folders)
        rows = RowRange(blocks, self.fields, self.meta_columns, self.store, start, end, piece_size)
        if split is not None and splits is not None:
            rows = rows.part(*split_range(len(rows), splits, split))
        self._set(rows)
        self._warn_of_thrashing()

    def _set(self, rows: RowRange) -> None:
        self.rows = rows
        self.start, self.end, self.count = rows.start, rows.end, len(rows)
        first = rows.blocks[0].files[0]
        self.dimension, self.dtype = first.dimension, first.dtype
        self.byte_per_item = rows.row_bytes
        self.total_size = self.count * self.byte_per_item

    def _warn_of_thrashing(self) -> None:
        """Warn where pieces in a random order would have remote files fetched again and again."""
        limit = self.store.limit
        remote = any(file.remote for file in self.rows.blocks[0].files)
        if remote and self.shuffle_shards and self.piece_size and limit is not None:
            whole = self.byte_per_item * int(self.rows.starts[-1])
            if whole > limit:
                warnings.warn(
                    f"the embeddings take {whole:,} bytes and the cache {limit:,}: pieces in a "
                    "random order fetch files again and again. Pass piece_size=None, which takes "
                    "one file after another, or a larger cache_size",
                    stacklevel=3,
                )

    def part(self, start: int, end: int | None = None) -> "EmbeddingReader":
        """Return a reader of some of these rows, counted from this one's first; nothing is opened.

        Args:
            start: First row.
            end: Row behind the last; a number beyond it means all.

        Raises:
            ValueError: There are no such rows.
        """
        part = copy.copy(self)
        part._set(self.rows.part(start, end))
        return part

    @classmethod
    def joined(cls, **readers: "EmbeddingReader") -> "EmbeddingReader":
        """Return a reader of the rows of several in step, each as a field of the name given.

        Their files are paired by number and must have the same rows. All else is the first one's.

        Raises:
            ValueError: A file has no partner, or the readers take other rows; the message says
                which.
            DataError: Paired files do not have the same number of rows.
        """
        first = next(iter(readers.values()))
        together = copy.copy(first)
        together._set(joined_rows({name: reader.rows for name, reader in readers.items()}))
        together.fields = together.rows.fields
        return together

    # -- reading in order -----------------------------------------------------------------------

    def read(
        self, batch_size: int, start: int = 0, end: int | None = None, *, dtype: Any = None
    ) -> Iterator[dict[str, Any]]:
        """Yield batches of rows as they lie; the last one may be short.

        A batch is a dict: each field an array [rows, D], the columns of the metadata as lists, and
        ``row``, the rows' global numbers, int64 [rows]. For training, which is shuffled and
        resumed, there is `loader`.

        Args:
            batch_size: Rows of a batch.
            start: First row, counted from this reader's first.
            end: Row behind the last.
            dtype: Type of the arrays (default: as stored).

        Raises:
            ValueError: There are no such rows.
            DataError: A file is damaged.
            OSError: A file cannot be read.
        """
        rows = self.rows.part(start, end)
        for batch in rows.batches(batch_size, None if dtype is None else np.dtype(dtype)):
            yield {
                **dict(zip(self.fields, batch.arrays, strict=True)),
                **dict(zip(self.meta_columns, batch.columns, strict=True)),
                "row": np.arange(batch.start, batch.start + len(batch.arrays[0])),
            }

    def __call__(
        self,
        batch_size: int,
        start: int = 0,
        end: int | None = None,
        max_piece_size: int | None = None,
        parallel_pieces: int | None = None,
        show_progress: bool = True,
        max_ram_usage_in_bytes: int = 2**32,
    ) -> Iterator[tuple[np.ndarray, Metadata]]:
        """Yield (rows, metadata) as embedding-reader 1.8 does: arrays are float32 [rows, D].

        The metadata is a mapping of names of columns to lists, ``i`` the rows' numbers among them;
        ``meta["caption"].to_list()`` works as with pandas, which is not needed. See `read`.

        Args:
            batch_size: Rows of a batch.
            start: First row, counted from this reader's first.
            end: Row behind the last.
            max_piece_size: Taken and not used, as are ``parallel_pieces`` and
                ``max_ram_usage_in_bytes``: rows are read into the batch, and into nothing else.
            parallel_pieces: As ``max_piece_size``.
            show_progress: Whether a progress bar is shown.
            max_ram_usage_in_bytes: As ``max_piece_size``.

        Raises:
            ValueError: There are no such rows, or the reader has several fields.
        """
        if len(self.fields) > 1:
            raise ValueError(
                f"a call gives one array a batch, and this reader has {', '.join(self.fields)}: "
                "use read(), which gives all"
            )
        from tqdm import tqdm

        rows = self.rows.part(start, end)
        with tqdm(total=len(rows), unit="rows", disable=not show_progress) as bar:
            for batch in rows.batches(batch_size, np.dtype(np.float32)):
                count = len(batch.arrays[0])
                columns = dict(zip(self.meta_columns, batch.columns, strict=True))
                numbers = list(range(batch.start, batch.start + count))
                yield batch.arrays[0], Metadata({**columns, "i": numbers})
                bar.update(count)

    # -- as a source of samples -----------------------------------------------------------------

    def shard_count(self) -> int:
        return len(self.rows.pieces)

    def shard_sizes(self, skip: bool) -> np.ndarray:
        return self.rows.sizes

    def image_sizes(self) -> Iterator[np.ndarray]:
        raise TypeError("embeddings have no image sizes: batch them with .batch(n)")

    def open(self, image_sizes: bool) -> EmbeddingSource:
        if image_sizes:
            raise TypeError("embeddings have no image sizes: batch them with .batch(n)")
        return self.rows.source()

    def arguments(self) -> dict[str, Any]:
        return {
            **self.rows.describe(),
            "piece_size": self.piece_size,
            "seed": self.seed,
            "shuffle": self.shuffle_shards,
        }

    def _order(self, lane: Lane) -> Order[Item]:
        return PassOrder(self, lane)


def _check(
    file_format: str, meta_columns: Sequence[str] | None, metadata_folder: Folders | None
) -> None:
    if file_format not in ("npy", "parquet", "parquet_npy"):
        raise ValueError(
            f"file_format must be 'npy', 'parquet' or 'parquet_npy', got {file_format!r}"
        )
    if isinstance(meta_columns, str | os.PathLike):
        raise TypeError(f"meta_columns is a list of names, got {meta_columns!r}")
    if file_format == "parquet_npy":
        if metadata_folder is None or not meta_columns:
            raise ValueError(
                "file_format='parquet_npy' needs metadata_folder=…, and meta_columns=[…], such as "
                "['caption']"
            )
    elif metadata_folder is not None:
        raise ValueError(f"metadata_folder goes with 'parquet_npy', not with {file_format!r}")
    elif meta_columns and file_format == "npy":
        raise ValueError("meta_columns needs metadata: file_format 'parquet' or 'parquet_npy'")

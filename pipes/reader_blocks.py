"""Files whose rows belong together: embeddings of several kinds, and their metadata."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .errors import DataError
from .parquet_rows import ParquetRows
from .reader_file import AT_ONCE, EmbeddingFile, open_files
from .reader_files import Folders, NumberedFile, Order, find_files, pair_files
from .shard_cache import ShardCache

METADATA = "metadata"


@dataclass(frozen=True)
class RowBlock:
    """Files with the same rows: row i of one belongs to row i of the others.

    Attributes:
        files: The embeddings, one file a field.
        metadata: What else is known of the rows; None where nothing is wanted.
    """

    files: tuple[EmbeddingFile, ...]
    metadata: ParquetRows | None

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.files[0].count

    @property
    def url(self) -> str:
        """The first field's file."""
        return self.files[0].url


@dataclass(frozen=True)
class BlockFinder:
    """Finds the files of a data set and pairs them.

    Args:
        column: Column of the embeddings in Parquet files; None: they are ``.npy`` files.
        meta_columns: Columns of the metadata that are wanted.
        metadata_folder: Where the metadata lies; None: in the Parquet files of the first field.
        order: In which order the files come.
        store: How they are reached.
    """

    column: str | None
    meta_columns: tuple[str, ...]
    metadata_folder: Folders | None
    order: Order
    store: ShardCache

    def find(self, folders: Mapping[str, Folders]) -> list[RowBlock]:
        """Return the blocks of rows, in order, but for empty ones.

        Args:
            folders: Name of each field to the folders of its embeddings.

        Raises:
            ValueError: A file has no partner, or a column is missing; the message names it.
            DataError: Files do not have the same number of rows, or are damaged.
            OSError: A file cannot be read.
        """
        ending = ".npy" if self.column is None else ".parquet"
        remote = self.store.remote
        lists = {f: find_files(at, ending, self.order, remote) for f, at in folders.items()}
        if self.metadata_folder is not None:
            lists[METADATA] = find_files(self.metadata_folder, ".parquet", self.order, remote)
        groups = pair_files(lists)
        columns = list(zip(*groups, strict=True))
        opened = [open_files(files, self.column, self.store) for files in columns[: len(folders)]]
        metadata: Sequence[ParquetRows | None] = [None] * len(groups)
        if self.metadata_folder is not None:
            metadata = self._metadata(columns[-1])
        elif self.meta_columns:
            metadata = [file.parquet[0] if file.parquet else None for file in opened[0]]
            for table in metadata:
                assert table is not None
                table.check(self.meta_columns, "meta_columns")
        rows = zip(zip(*opened, strict=True), metadata, strict=True)
        return checked([RowBlock(files, table) for files, table in rows])

    def _metadata(self, files: Sequence[NumberedFile]) -> list[ParquetRows]:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            found = list(threads.map(lambda file: ParquetRows.of(file.url, self.store), files))
        for table in found:
            table.check(self.meta_columns, "meta_columns")
        return found


def checked(blocks: Sequence[RowBlock]) -> list[RowBlock]:
    """Return the blocks that have rows, all of whose files have as many.

    Raises:
        DataError: Two files do not; the message names both, with their numbers.
        ValueError: None has a row.
    """
    for block in blocks:
        first = block.files[0]
        others: list[EmbeddingFile | ParquetRows] = [*block.files[1:]]
        if block.metadata is not None:
            others.append(block.metadata)
        for other in others:
            if other.count != first.count:
                raise DataError(
                    f"{first.url} has {first.count} rows, and {other.url} has {other.count}: they "
                    "are paired by the number in their names and must have the same rows"
                )
    full = [block for block in blocks if block.count]
    if not full:
        raise ValueError(f"there are no rows in {len(blocks)} file(s), {blocks[0].url} the first")
    return full


def joined(parts: Mapping[str, Sequence[RowBlock]]) -> list[RowBlock]:
    """Return the blocks of several readers in step: their fields beside each other.

    Raises:
        ValueError: A file has no partner; the message names it.
        DataError: Files do not have the same number of rows.
    """
    found = {b.files[0].found: b for blocks in parts.values() for b in blocks}
    groups = pair_files({n: [b.files[0].found for b in blocks] for n, blocks in parts.items()})
    together = []
    for group in groups:
        blocks = [found[file] for file in group]
        files = tuple(file for block in blocks for file in block.files)
        metadata = next((block.metadata for block in blocks if block.metadata), None)
        together.append(RowBlock(files, metadata))
    return checked(together)

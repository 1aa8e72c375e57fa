"""Rows of embeddings read one after another."""

from collections.abc import Callable

import numpy as np
import pytest

from penstock.pipes.reader_batches import CONVERT_BYTES, BatchReader, Metadata
from penstock.pipes.reader_blocks import BlockFinder
from penstock.pipes.shard_cache import ShardCache

Write = Callable[..., str]


def reader(
    folder: str,
    metadata: str | None = None,
    columns: tuple[str, ...] = (),
    dtype: str | None = None,
) -> BatchReader:
    store = ShardCache()
    blocks = BlockFinder(None, columns, metadata, "number", store).find({"embedding": folder})
    starts = np.cumsum([0, *(block.count for block in blocks)])
    return BatchReader(blocks, starts, columns, np.dtype(dtype) if dtype else None, store)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12, 100])
@pytest.mark.parametrize(("start", "end"), [(0, 12), (2, 11), (3, 4), (11, 12)])
def test_batches_run_over_the_ends_of_files(
    embeddings: Write, rows_of: Callable[..., np.ndarray], size: int, start: int, end: int
) -> None:
    counts = {0: 3, 1: 0, 2: 1, 10: 8}
    whole = np.concatenate([rows_of(number, count) for number, count in counts.items()])
    batches = list(reader(embeddings(counts)).batches(size, start, end))
    assert [batch.start for batch in batches] == list(range(start, end, size))
    assert {len(batch.arrays[0]) for batch in batches[:-1]} <= {size}
    np.testing.assert_array_equal(
        np.concatenate([batch.arrays[0] for batch in batches]), whole[start:end]
    )


def test_metadata_comes_with_its_rows(embeddings: Write, captions: Write) -> None:
    counts = {0: 3, 2: 20}
    found = reader(embeddings(counts), captions(counts), ("width", "caption"))
    for batch in found.batches(7, 1, 23):
        numbers = batch.arrays[0][:, 0].astype(int)
        assert batch.columns == [
            [int(n) % 100 for n in numbers],
            [f"row {n}" for n in numbers],
        ]


@pytest.mark.parametrize("stored", ["<f2", ">f2", "<f4", "<f8", "i1", ">i4"])
@pytest.mark.parametrize("wanted", ["f4", "f2", "f8"])
def test_types_are_converted_as_numpy_does_it(
    embeddings: Write, rows_of: Callable[..., np.ndarray], stored: str, wanted: str
) -> None:
    rows = CONVERT_BYTES // np.dtype(stored).itemsize // 300 + 3  # more than is read at once
    folder = embeddings({0: rows}, dim=300, dtype=stored)
    batch = next(reader(folder, dtype=wanted).batches(rows, 0, rows))
    assert batch.arrays[0].dtype == wanted
    expected = rows_of(0, rows, 300, stored).astype(wanted)
    np.testing.assert_array_equal(batch.arrays[0], expected)


def test_each_batch_has_memory_of_its_own(embeddings: Write) -> None:
    batches = list(reader(embeddings({0: 8})).batches(4, 0, 8))
    kept = batches[1].arrays[0].copy()
    batches[0].arrays[0][:] = 0
    np.testing.assert_array_equal(batches[1].arrays[0], kept)


def test_metadata_is_read_as_that_of_pandas() -> None:
    meta = Metadata({"caption": ["a", "b"], "i": range(2)})
    assert meta["caption"].to_list() == meta["caption"].tolist() == ["a", "b"]
    assert meta["i"][1] == 1
    assert meta.columns == list(meta) == ["caption", "i"]
    assert dict(meta) == {"caption": ["a", "b"], "i": [0, 1]}
    assert len(meta) == 2
    assert repr(meta) == "Metadata(2 rows of caption, i)"

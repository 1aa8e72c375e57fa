"""A range of the rows of files, and the pieces that it is dealt out in."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest

from penstock.pipes.reader_blocks import BlockFinder
from penstock.pipes.reader_rows import RowRange, check_names, joined_rows
from penstock.pipes.shard_cache import ShardCache

Write = Callable[..., str]
STORE = ShardCache()
COUNTS = {0: 5, 1: 0, 2: 1, 3: 12}  # 18 rows in three files


def rows(folder: str, start: int = 0, end: int | None = None, piece: int | None = 4) -> RowRange:
    blocks = BlockFinder(None, (), None, "number", STORE).find({"embedding": folder})
    return RowRange(blocks, ("embedding",), (), STORE, start, end, piece)


def test_pieces_lie_in_one_file_each_and_cover_all(embeddings: Write) -> None:
    found = rows(embeddings(COUNTS))
    assert found.pieces.tolist() == [0, 4, 5, 6, 10, 14]
    assert found.sizes.tolist() == [4, 1, 1, 4, 4, 4]
    assert len(found) == 18


def test_without_a_size_pieces_are_whole_files(embeddings: Write) -> None:
    found = rows(embeddings(COUNTS), 2, 17, None)
    assert found.pieces.tolist() == [2, 5, 6]
    assert found.sizes.tolist() == [3, 1, 11]


@pytest.mark.parametrize(("start", "end"), [(0, 18), (3, 4), (4, 6), (5, 18), (17, 99)])
def test_any_range_is_covered_exactly(embeddings: Write, start: int, end: int) -> None:
    found = rows(embeddings(COUNTS), start, end, 3)
    covered = [
        row
        for first, size in zip(found.pieces, found.sizes, strict=True)
        for row in range(first, first + size)
    ]
    assert covered == list(range(start, min(end, 18)))
    assert (found.sizes > 0).all()


def test_a_part_counts_from_the_first_row(embeddings: Write) -> None:
    whole = rows(embeddings(COUNTS), 3)
    part = whole.part(2, 6)
    assert (part.start, part.end) == (5, 9)
    assert (whole.part(2, None).end, whole.part(2, 99).end) == (18, 18)
    for start, end in ((15, None), (-1, 3), (4, 4)):
        with pytest.raises(ValueError, match="takes none of the 15 rows"):
            whole.part(start, end)


def test_no_rows_are_refused(embeddings: Write) -> None:
    folder = embeddings(COUNTS)
    for start, end in ((18, None), (5, 5), (-1, 5)):
        with pytest.raises(ValueError, match=r"takes none of the 18 rows in 3 file\(s\)"):
            rows(folder, start, end)
    with pytest.raises(ValueError, match="piece_size must be at least 1 row, got 0"):
        rows(folder, piece=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        rows(folder).batches(0, None)


def test_where_files_lie_is_no_difference(embeddings: Write) -> None:
    here, there = embeddings(COUNTS), embeddings(COUNTS, "elsewhere")
    assert rows(here).describe() == rows(there).describe()
    other = embeddings({0: 5, 1: 0, 2: 2, 3: 11}, "other")
    assert rows(here).describe() != rows(other).describe()
    assert rows(here).describe() != rows(here, 1).describe()


def test_it_goes_to_other_processes(embeddings: Write) -> None:
    found = pickle.loads(pickle.dumps(rows(embeddings(COUNTS), 1, 9)))
    batch = next(found.batches(3, None))
    np.testing.assert_array_equal(batch.arrays[0][:, 0], [1, 2, 3])


def test_ranges_in_step_take_the_same_rows(embeddings: Write) -> None:
    images, texts = embeddings(COUNTS), embeddings(COUNTS, "text", "text_emb_{}.npy", dim=2)
    found = joined_rows({"image": rows(images, 2), "text": rows(texts, 2)})
    assert found.fields == ("image", "text")
    batch = next(found.batches(30, None))
    assert [a.shape for a in batch.arrays] == [(16, 4), (16, 2)]
    np.testing.assert_array_equal(batch.arrays[0][:, 0], batch.arrays[1][:, 0])
    with pytest.raises(ValueError, match="these take image 2 to 18, text 0 to 18"):
        joined_rows({"image": rows(images, 2), "text": rows(texts)})


def test_fields_need_names_of_their_own() -> None:
    check_names(("a",), ("b",))
    for fields, columns in ((("a",), ("a",)), (("row",), ()), ((), ("a",)), (("a", "a"), ())):
        with pytest.raises(ValueError, match="names of their own"):
            check_names(fields, columns)

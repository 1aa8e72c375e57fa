"""Files whose rows belong together."""

from collections.abc import Callable

import pytest

from penstock.pipes.errors import DataError
from penstock.pipes.reader_blocks import BlockFinder, RowBlock, joined
from penstock.pipes.shard_cache import ShardCache
from penstock.pipes.urls import base_name

Write = Callable[..., str]


def finder(metadata: str | None = None, *columns: str) -> BlockFinder:
    return BlockFinder(None, columns, metadata, "number", ShardCache())


def names(blocks: list[RowBlock]) -> list[list[str]]:
    found = []
    for block in blocks:
        urls = [file.url for file in block.files]
        found.append([base_name(u) for u in urls + [m.url for m in [block.metadata] if m]])
    return found


def test_metadata_belongs_to_the_file_of_its_number(embeddings: Write, captions: Write) -> None:
    counts = {0: 3, 2: 4, 10: 5}
    blocks = finder(captions(counts), "caption").find({"embedding": embeddings(counts)})
    assert names(blocks) == [
        ["img_emb_0.npy", "metadata_0.parquet"],
        ["img_emb_2.npy", "metadata_2.parquet"],
        ["img_emb_10.npy", "metadata_10.parquet"],
    ]


def test_an_empty_file_takes_its_partner_along(embeddings: Write, captions: Write) -> None:
    counts = {0: 3, 1: 0, 2: 4}
    blocks = finder(captions(counts), "caption").find({"embedding": embeddings(counts)})
    assert names(blocks) == [
        ["img_emb_0.npy", "metadata_0.parquet"],
        ["img_emb_2.npy", "metadata_2.parquet"],
    ]


@pytest.mark.parametrize("short", [0, 3])
def test_other_numbers_of_rows_are_refused(embeddings: Write, captions: Write, short: int) -> None:
    words = rf"img_emb_1.npy has 4 rows, and .*metadata_1.parquet has {short}: they are paired"
    with pytest.raises(DataError, match=words):
        finder(captions({0: 3, 1: short}), "caption").find({"e": embeddings({0: 3, 1: 4})})


def test_a_missing_partner_is_named(embeddings: Write, captions: Write) -> None:
    words = "img_emb_1.npy has no partner: there is no file of the metadata with the number 1"
    with pytest.raises(ValueError, match=words):
        finder(captions({0: 3}), "caption").find({"embedding": embeddings({0: 3, 1: 4})})


def test_a_missing_column_is_named(embeddings: Write, captions: Write) -> None:
    with pytest.raises(ValueError, match=r"metadata_0.parquet has no column 'text' .*'caption'"):
        finder(captions({0: 3}), "text").find({"embedding": embeddings({0: 3})})


def test_several_kinds_of_embeddings_in_step(embeddings: Write) -> None:
    texts = embeddings({10: 5, 2: 4}, "text_emb", "text_emb_{:04d}.npy", dim=6)
    blocks = finder().find({"image": embeddings({2: 4, 10: 5}), "text": texts})
    assert names(blocks) == [
        ["img_emb_2.npy", "text_emb_0002.npy"],
        ["img_emb_10.npy", "text_emb_0010.npy"],
    ]
    assert [file.dimension for file in blocks[0].files] == [4, 6]


def test_only_empty_files_are_refused(embeddings: Write) -> None:
    with pytest.raises(ValueError, match=r"no rows in 2 file\(s\), .*img_emb_0.npy the first"):
        finder().find({"embedding": embeddings({0: 0, 1: 0})})


def test_what_was_found_apart_is_joined(embeddings: Write, captions: Write) -> None:
    counts = {0: 3, 2: 4}
    images = finder(captions(counts), "caption").find({"e": embeddings(counts)})
    texts = finder().find({"e": embeddings(counts, "text_emb", "text_emb_{}.npy")})
    assert names(joined({"images": images, "texts": texts})) == [
        ["img_emb_0.npy", "text_emb_0.npy", "metadata_0.parquet"],
        ["img_emb_2.npy", "text_emb_2.npy", "metadata_2.parquet"],
    ]
    short = finder().find({"e": embeddings({0: 3, 2: 5}, "short")})
    with pytest.raises(DataError, match="has 4 rows, and .*short/img_emb_2.npy has 5"):
        joined({"images": images, "texts": short})

"""The rows of embeddings of one process, by piece and number."""

from collections.abc import Callable

import numpy as np
import pytest

from penstock.pipes import reader_source
from penstock.pipes.npy import NpyRow
from penstock.pipes.reader_blocks import BlockFinder
from penstock.pipes.reader_rows import RowRange
from penstock.pipes.reader_source import EmbeddingSource
from penstock.pipes.shard_cache import ShardCache

Write = Callable[..., str]
STORE = ShardCache()
COUNTS = {0: 5, 1: 0, 2: 1, 3: 12}


def source(
    folder: str, metadata: str | None = None, columns: tuple[str, ...] = ()
) -> EmbeddingSource:
    blocks = BlockFinder(None, columns, metadata, "number", STORE).find({"embedding": folder})
    return RowRange(blocks, ("embedding",), columns, STORE, 1, None, 4).source()


def test_samples_are_rows_with_their_metadata(embeddings: Write, captions: Write) -> None:
    found = source(embeddings(COUNTS), captions(COUNTS), ("caption", "width"))
    seen = []
    for shard in range(5):
        for index in range(found.size(shard)):
            sample = found.sample(shard, index)
            row = sample["embedding"]
            assert isinstance(row, NpyRow)  # nothing has been read
            number = int(row.value()[0])
            assert sample["caption"] == f"row {number}"
            assert sample["width"] == number % 100
            assert sample["__url__"].endswith(f"img_emb_{number // 100}.npy")
            assert found.name(shard, index) == (sample["__url__"], sample["__key__"])
            assert found.url(shard) == sample["__url__"]
            seen.append(int(sample["__key__"]))
    assert seen == list(range(1, 18))


def test_few_files_of_metadata_are_kept_open(
    embeddings: Write, captions: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_source, "MOST_TABLES", 2)
    found = source(embeddings(COUNTS), captions(COUNTS), ("caption",))
    for _ in range(2):
        for shard in range(5):
            assert found.sample(shard, 0)["caption"]
            assert len(found._metadata) <= 2


def test_a_fingerprint_is_of_what_a_ref_means(embeddings: Write) -> None:
    prints = [source(embeddings(COUNTS)).fingerprint(shard) for shard in range(5)]
    assert len(set(prints)) == 5
    elsewhere = source(embeddings(COUNTS, "elsewhere"))
    assert [elsewhere.fingerprint(shard) for shard in range(5)] == prints
    longer = source(embeddings({**COUNTS, 3: 13}, "longer"))
    assert longer.fingerprint(1) == prints[1]
    assert longer.fingerprint(4) != prints[4]
    half = source(embeddings(COUNTS, "half", dtype="f2"))
    assert half.fingerprint(0) != prints[0]


def test_local_files_need_not_be_held(embeddings: Write) -> None:
    found = source(embeddings(COUNTS))
    assert not found.holds
    found.hold(0)
    found.ahead(1)
    found.release(0)


def test_a_file_replaced_between_two_runs_is_read_anew(embeddings: Write) -> None:
    first = source(embeddings({0: 5})).sample(0, 0)["embedding"].value()
    folder = embeddings({0: 5}, dtype="f8")
    np.save(f"{folder}/img_emb_0.npy", np.full((5, 4), 9.0))
    again = source(folder).sample(0, 0)["embedding"].value()
    assert first.tolist() == [1, 1.25, 1.5, 1.75]
    assert again.tolist() == [9, 9, 9, 9]

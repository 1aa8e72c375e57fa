"""Rows of embeddings: as samples, in order, and resumed."""

import io
import os
import pickle
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from penstock.pipes import ElasticDataLoader, EmbeddingReader, merge_states, verify_resume
from penstock.pipes.errors import DataError

Write = Callable[..., str]
COUNTS = {0: 30, 1: 0, 2: 13, 10: 41, 11: 16}  # 100 rows
NUMBERS = [n * 100 + i for n, count in COUNTS.items() for i in range(count)]


def read_all(reader: EmbeddingReader, **how: Any) -> dict[str, Any]:
    """Return all that a reader gives in order, joined."""
    batches = list(reader.read(7, **how))
    joined: dict[str, Any] = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches]
        is_array = isinstance(parts[0], np.ndarray)
        joined[name] = np.concatenate(parts) if is_array else list(chain.from_iterable(parts))
    return joined


# -- what is in a folder ------------------------------------------------------------------------


def test_its_attributes_are_those_of_the_folder(embeddings: Write) -> None:
    folder = embeddings(COUNTS, dtype="f2", dim=6)
    reader = EmbeddingReader(folder)
    assert (reader.count, reader.dimension, reader.dtype) == (100, 6, np.float16)
    assert (reader.byte_per_item, reader.total_size) == (12, 1200)
    assert reader.embeddings_folder == folder


def test_rows_come_in_the_numeric_order_of_the_files(embeddings: Write) -> None:
    found = read_all(EmbeddingReader(embeddings(COUNTS)))
    assert found["embedding"][:, 0].tolist() == NUMBERS
    assert found["row"].tolist() == list(range(100))


def test_rows_come_in_the_order_of_text_where_asked(embeddings: Write) -> None:
    found = read_all(EmbeddingReader(embeddings(COUNTS), order="string"))
    expected = [n * 100 + i for n in (0, 1, 10, 11, 2) for i in range(COUNTS[n])]
    assert found["embedding"][:, 0].tolist() == expected


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_types_are_kept_and_orders_are_right(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.random.default_rng(0).standard_normal((9, 5)).astype(dtype)
    np.save(tmp_path / "e_0.npy", np.array(array, order=order))  # type: ignore[call-overload]
    reader = EmbeddingReader(tmp_path)
    assert reader.dtype == np.dtype(dtype).newbyteorder("=")
    found = read_all(reader)["embedding"]
    assert found.dtype == reader.dtype
    np.testing.assert_array_equal(found, array)
    batch = next(iter(EmbeddingReader(tmp_path, shuffle=False).batch(9).load().loader()))
    np.testing.assert_array_equal(batch["embedding"].numpy(), array)


def test_metadata_of_parquet_files(embeddings: Write, captions: Write) -> None:
    reader = EmbeddingReader(
        embeddings(COUNTS),
        "parquet_npy",
        metadata_folder=captions(COUNTS),
        meta_columns=["caption", "width"],
    )
    found = read_all(reader)
    assert found["caption"] == [f"row {n}" for n in NUMBERS]
    assert found["width"] == [n % 100 for n in NUMBERS]
    assert found["embedding"][:, 0].tolist() == NUMBERS


def test_embeddings_in_parquet_files(tmp_path: Path, rows_of: Callable[..., np.ndarray]) -> None:
    for number, count in COUNTS.items():
        rows = rows_of(number, count)
        columns = {
            "clip": pyarrow.array(list(rows), pyarrow.list_(pyarrow.float32())),
            "caption": pyarrow.array([f"row {int(row[0])}" for row in rows], "string"),
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"part_{number}.parquet")
    reader = EmbeddingReader(tmp_path, "parquet", "clip", meta_columns=["caption"])
    found = read_all(reader)
    assert found["embedding"].dtype == np.float32
    assert found["embedding"][:, 0].tolist() == NUMBERS
    assert found["caption"] == [f"row {n}" for n in NUMBERS]
    batch = next(iter(reader.shuffle(9).batch(50).decode().loader()))
    assert batch["embedding"][:, 0].tolist() == [float(c[4:]) for c in batch["caption"]]
    with pytest.raises(ValueError, match="no column 'embedding' for embedding_column="):
        EmbeddingReader(tmp_path, "parquet")


def test_several_embeddings_of_each_row(embeddings: Write, captions: Write) -> None:
    images = embeddings(COUNTS)
    texts = embeddings(COUNTS, "text_emb", "text_emb_{:05d}.npy", dim=3, dtype="f2")
    reader = EmbeddingReader(
        {"image": images, "text": texts},
        "parquet_npy",
        meta_columns=["caption"],
        metadata_folder=captions(COUNTS),
    )
    assert reader.byte_per_item == 4 * 4 + 3 * 2
    found = read_all(reader)
    assert found["image"][:, 0].tolist() == NUMBERS
    assert found["text"][:, 0].tolist() == np.array(NUMBERS, "f2").tolist()
    batch = next(iter(reader.shuffle(9).batch(20).load().loader()))
    assert batch["image"].shape == (20, 4)
    assert batch["text"].shape == (20, 3)
    assert [f"row {int(n)}" for n in batch["image"][:, 0]] == batch["caption"]
    other = EmbeddingReader.joined(image=EmbeddingReader(images), text=EmbeddingReader(texts))
    np.testing.assert_array_equal(read_all(other)["text"], found["text"])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"file_format": "csv"}, "'npy', 'parquet' or 'parquet_npy', got 'csv'"),
        ({"file_format": "parquet_npy"}, "needs metadata_folder=.*meta_columns"),
        ({"file_format": "parquet_npy", "metadata_folder": "."}, "needs metadata_folder="),
        ({"metadata_folder": "."}, "metadata_folder goes with 'parquet_npy', not with 'npy'"),
        ({"meta_columns": ["caption"]}, "meta_columns needs metadata"),
        ({"split": "train"}, "give both or neither"),
        ({"order": "size"}, "order must be"),
        ({"piece_size": 0}, "piece_size must be at least 1"),
        ({"start": 100}, "start=100, end=None takes none of the 100 rows"),
    ],
)
def test_arguments_that_do_not_fit(embeddings: Write, how: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EmbeddingReader(embeddings(COUNTS), **how)
    with pytest.raises(TypeError, match="meta_columns is a list of names, got 'caption'"):
        EmbeddingReader(embeddings(COUNTS), "parquet", meta_columns="caption")


# -- called as embedding-reader is --------------------------------------------------------------


def test_a_call_gives_arrays_of_float32_and_metadata(embeddings: Write, captions: Write) -> None:
    reader = EmbeddingReader(
        embeddings(COUNTS, dtype="f2"),
        file_format="parquet_npy",
        metadata_folder=captions(COUNTS),
        meta_columns=["caption"],
    )
    seen, texts, numbers = [], [], []
    for rows, meta in reader(batch_size=9, start=5, end=97, show_progress=False):
        assert rows.dtype == np.float32
        seen += rows[:, 0].tolist()
        texts += meta["caption"].to_list()
        numbers += meta["i"]
    assert numbers == list(range(5, 97))
    assert seen == np.array(NUMBERS[5:97], "f2").astype("f4").tolist()
    assert texts == [f"row {n}" for n in NUMBERS[5:97]]


def test_a_call_is_bounded_by_the_rows_and_shows_its_progress(
    embeddings: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = EmbeddingReader(embeddings(COUNTS))
    assert [len(rows) for rows, _ in reader(500, end=1000, max_piece_size=3)] == [100]
    assert "100/100" in capsys.readouterr().err
    assert [len(rows) for rows, _ in reader(60, parallel_pieces=2, show_progress=False)] == [60, 40]
    with pytest.raises(ValueError, match="start=100, end=None takes none of the 100 rows"):
        next(reader(10, start=100, show_progress=False))
    pair = EmbeddingReader.joined(image=reader, text=reader)
    with pytest.raises(ValueError, match="this reader has image, text: use read"):
        next(pair(10))


# -- splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [(0.75, 0.15, 0.1), (0.8, 0.2), (0.7, 0.2, 0.1), (1 / 3, 2 / 3)])
@pytest.mark.parametrize(("start", "end"), [(0, None), (7, 60)])
def test_splits_together_have_each_row_once(
    embeddings: Write, splits: tuple[float, ...], start: int, end: int | None
) -> None:
    folder = embeddings(COUNTS)
    names = {str(i): share for i, share in enumerate(splits)}
    rows = [
        row
        for name in names
        for row in read_all(
            EmbeddingReader(folder, start=start, end=end, split=name, splits=names)
        )["row"]
    ]
    assert rows == list(range(start, end or 100))


def test_a_part_of_a_reader_is_a_reader(embeddings: Write) -> None:
    reader = EmbeddingReader(embeddings(COUNTS), start=10)
    part = reader.part(5, 20)
    assert (part.start, part.end, part.count, part.total_size) == (15, 30, 15, 240)
    assert read_all(part, start=2)["row"].tolist() == list(range(17, 30))
    assert (reader.start, reader.count) == (10, 90)


# -- as a source of samples ---------------------------------------------------------------------


def graph(folder: str, metadata: str | None = None, **how: Any) -> EmbeddingReader:
    if metadata is None:
        return EmbeddingReader(folder, **{"piece_size": 8, "seed": 3, **how})
    return EmbeddingReader(
        folder,
        "parquet_npy",
        metadata_folder=metadata,
        meta_columns=["caption"],
        **{"piece_size": 8, "seed": 3, **how},
    )


def keys(loader: ElasticDataLoader) -> list[int]:
    return [int(key) for batch in loader for key in batch["__key__"]]


@pytest.mark.parametrize("lanes", [1, 3, 7])
def test_each_row_comes_once_in_a_pass(embeddings: Write, captions: Write, lanes: int) -> None:
    pipe = graph(embeddings(COUNTS), captions(COUNTS)).shuffle(20).batch(6)
    loader = pipe.lanes(lanes, repeat=False).load().loader()
    seen = []
    for batch in loader:
        assert batch["embedding"].dtype == torch.float32
        for key, row, text in zip(
            batch["__key__"], batch["embedding"], batch["caption"], strict=True
        ):
            assert row[0] == NUMBERS[int(key)]
            assert text == f"row {NUMBERS[int(key)]}"
            seen.append(int(key))
    assert sorted(seen) == list(range(100))
    assert seen != sorted(seen)


def test_unshuffled_rows_come_as_they_lie(embeddings: Write) -> None:
    pipe = graph(embeddings(COUNTS), shuffle=False).batch(6).lanes(repeat=False)
    assert keys(pipe.load().loader()) == list(range(100))


def test_pieces_of_one_row_shuffle_over_the_whole_length(embeddings: Write) -> None:
    pipe = graph(embeddings(COUNTS), piece_size=1).batch(10).lanes(repeat=False)
    seen = keys(pipe.load().loader())
    assert sorted(seen) == list(range(100))
    assert sum(abs(a - b) == 1 for a, b in pairwise(seen)) < 10


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_are_even(embeddings: Write, ranks: int) -> None:
    folder = embeddings(COUNTS)
    parts = []
    for rank in range(ranks):
        pipe = graph(folder).batch(5).lanes(ranks, repeat=False).load()
        parts.append(keys(pipe.loader(rank=rank, world_size=ranks)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(chain.from_iterable(parts)) == list(range(100))


def test_rows_have_no_image_size(embeddings: Write) -> None:
    pipe = graph(embeddings(COUNTS)).bucket_by_aspect_ratio(512, 4).load()
    with pytest.raises(TypeError, match=r"embeddings have no image sizes: batch them with .batch"):
        next(iter(pipe.loader(epoch_batches=1)))


def test_it_goes_to_other_processes(embeddings: Write, captions: Write) -> None:
    pipe = graph(embeddings(COUNTS), captions(COUNTS)).shuffle(20).batch(6).load()
    expected = keys(pipe.loader())
    assert keys(pickle.loads(pickle.dumps(pipe)).loader()) == expected
    assert keys(pipe.loader(num_workers=2)) == expected


@pytest.mark.slow
def test_resume_is_exact_on_any_ranks_and_workers(embeddings: Write, captions: Write) -> None:
    folders = embeddings(COUNTS), captions(COUNTS)

    def make(num_workers: int, rank: int, world_size: int) -> ElasticDataLoader:
        pipe = graph(*folders).shuffle(20).batch(6).lanes(4).load()
        return pipe.loader(num_workers, rank=rank, world_size=world_size)

    verify_resume(make)


def test_a_state_goes_to_other_ranks(embeddings: Write) -> None:
    folder = embeddings(COUNTS)

    def made(rank: int, ranks: int) -> ElasticDataLoader:
        pipe = graph(folder).shuffle(20).batch(4).lanes(6, repeat=False).load()
        return pipe.loader(rank=rank, world_size=ranks)

    loaders = [made(rank, 3) for rank in range(3)]
    seen = []
    for loader in loaders:
        steps = iter(loader)
        seen += [int(key) for _ in range(3) for key in next(steps)["__key__"]]
    state = merge_states(loader.state_dict() for loader in loaders)
    for rank in range(2):
        loader = made(rank, 2)
        loader.load_state_dict(state)
        seen += keys(loader)
    assert sorted(seen) == list(range(100))


def test_other_rows_are_refused_at_resume(embeddings: Write) -> None:
    folder = embeddings(COUNTS)
    state = graph(folder).batch(4).load().loader().state_dict()
    moved = embeddings(COUNTS, "moved")
    graph(moved).batch(4).load().loader().load_state_dict(state)
    for other in (
        graph(folder, end=90),
        graph(folder, piece_size=9),
        graph(folder, seed=4),
        graph(folder, order="string"),
        graph(embeddings({**COUNTS, 10: 42}, "grown")),
    ):
        with pytest.raises(ValueError, match="another graph's: EmbeddingReader had"):
            other.batch(4).load().loader().load_state_dict(state)


def test_a_truncated_file_is_refused(embeddings: Write) -> None:
    folder = embeddings(COUNTS)
    pipe = graph(folder).batch(10).lanes(repeat=False).load()
    os.truncate(f"{folder}/img_emb_10.npy", 128 + 16 * 20)
    with pytest.raises(RuntimeError, match="img_emb_10.npy was changed under the run"):
        keys(pipe.loader())
    with pytest.raises(DataError, match=r"img_emb_10.npy has 448 bytes and .* truncated"):
        EmbeddingReader(folder)


def test_rows_that_are_gone_are_skipped_where_asked(embeddings: Write, tmp_path: Path) -> None:
    folder = embeddings(COUNTS)
    pipe = graph(folder, shuffle=False).batch(10).lanes(repeat=False).load()
    log = tmp_path / "quarantine.jsonl"
    loader = pipe.loader(on_error="skip", quarantine=log)
    steps = iter(loader)
    for _ in range(5):  # row 43 is the first of the file, which is open from here on
        next(steps)
    os.truncate(f"{folder}/img_emb_10.npy", 128 + 16 * 38)
    filled = [batch["__filled__"] for batch in steps]
    assert filled == [[], [], [], [1, 2, 3], []]
    assert loader.skipped == 3
    assert "img_emb_10.npy ends at byte 736" in log.read_text()


# -- remote -------------------------------------------------------------------------------------


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_remote_files_are_fetched_once_and_give_the_same(
    s3: Any, embeddings: Write, captions: Write, rows_of: Callable[..., np.ndarray]
) -> None:
    counts = {0: 30, 2: 13, 10: 41}
    local = embeddings(counts), captions(counts)
    for folder in local:
        for path in Path(folder).iterdir():
            s3.put(f"{path.parent.name}/{path.name}", path.read_bytes())
    remote = graph(
        s3.url("img_emb"), s3.url("metadata"), storage_options=s3.options, cache_size="10MB"
    )
    assert (remote.count, remote.dimension) == (84, 4)
    expected = keys(graph(*local).shuffle(20).batch(6).lanes(repeat=False).load().loader())
    pipe = remote.shuffle(20).batch(6).lanes(repeat=False).load()
    seen = []
    for batch in pipe.loader():
        assert batch["embedding"][:, 0].tolist() == [float(c[4:]) for c in batch["caption"]]
        seen += [int(key) for key in batch["__key__"]]
    assert seen == expected
    found = read_all(remote)
    np.testing.assert_array_equal(found["embedding"], read_all(graph(*local))["embedding"])
    # The header alone, then the file, once.
    assert s3.gets("img_emb/img_emb_10.npy").count(0) == 2


def test_a_remote_file_that_has_left_the_cache_is_read_by_rows(
    s3: Any, rows_of: Callable[..., np.ndarray]
) -> None:
    for number in (0, 1):
        s3.put(f"emb/e_{number}.npy", saved(rows_of(number, 20)))
    reader = EmbeddingReader(s3.url("emb"), storage_options=s3.options, shuffle=False)
    source = reader.open(False)
    assert source.holds
    source.hold(1)
    sample = source.sample(0, 3)
    source.release(1)
    np.testing.assert_array_equal(sample["embedding"].value(), rows_of(0, 20)[3])
    # The header, whether it is compressed, and the row: the file was never fetched.
    assert s3.gets("emb/e_0.npy") == [0, 0, 128 + 3 * 16]


def test_a_remote_file_that_is_held_stays_at_hand(
    s3: Any, rows_of: Callable[..., np.ndarray]
) -> None:
    for number in (0, 1):
        s3.put(f"emb/e_{number}.npy", saved(rows_of(number, 20)))
    source = EmbeddingReader(s3.url("emb"), storage_options=s3.options).open(False)
    source.hold(0)
    source.hold(1)
    row = source.sample(0, 3)["embedding"]
    os.unlink(row.path)  # as another process makes room
    asked = len(s3.log)
    np.testing.assert_array_equal(row.value(), rows_of(0, 20)[3])
    assert len(s3.log) == asked
    source.release(0)
    np.testing.assert_array_equal(row.value(), rows_of(0, 20)[3])
    assert s3.gets("emb/e_0.npy")[-1] == 128 + 3 * 16  # this row alone


def test_it_warns_where_the_cache_is_too_small_for_pieces(
    s3: Any, rows_of: Callable[..., np.ndarray]
) -> None:
    s3.put("emb/e_0.npy", saved(rows_of(0, 20)))
    how: dict[str, Any] = {"storage_options": s3.options, "cache_size": 300}
    with pytest.warns(UserWarning, match="take 320 bytes and the cache 300: .* piece_size=None"):
        EmbeddingReader(s3.url("emb"), **how)
    EmbeddingReader(s3.url("emb"), piece_size=None, **how)
    EmbeddingReader(s3.url("emb"), shuffle=False, **how)

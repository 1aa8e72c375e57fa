"""One file of embeddings: how many rows it has, and where they are read."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from penstock.pipes.errors import DataError
from penstock.pipes.reader_file import EmbeddingFile, open_files
from penstock.pipes.reader_files import NumberedFile, find_files
from penstock.pipes.remote import Remote
from penstock.pipes.shard_cache import ShardCache

STORE = ShardCache()


def files_of(folder: str, ending: str = ".npy") -> list[NumberedFile]:
    return find_files(folder, ending, "number", Remote())


def opened(folder: str, column: str | None = None) -> list[EmbeddingFile]:
    return open_files(files_of(folder, ".parquet" if column else ".npy"), column, STORE)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "i1"])
def test_headers_tell_rows_and_type(embeddings: Callable[..., str], dtype: str) -> None:
    found = opened(embeddings({0: 3, 1: 5}, dtype=dtype))
    assert [(f.count, f.dimension) for f in found] == [(3, 4), (5, 4)]
    assert all(f.dtype == np.dtype(dtype).newbyteorder("=") for f in found)
    assert pickle.loads(pickle.dumps(found)) == found


def test_other_embeddings_in_one_folder_are_refused(embeddings: Callable[..., str]) -> None:
    embeddings({0: 3})
    folder = embeddings({1: 3}, dim=5)
    words = r"img_emb_1.npy has rows of 5 .*float32, and .*img_emb_0.npy has 4"
    with pytest.raises(DataError, match=words):
        opened(folder)
    embeddings({1: 3}, dtype="f2")
    with pytest.raises(DataError, match=r"img_emb_1.npy has rows of 4 numbers of type float16"):
        opened(folder)


def test_empty_files_may_be_of_any_type(embeddings: Callable[..., str]) -> None:
    embeddings({0: 0}, dtype="f8", dim=1)
    assert [f.count for f in opened(embeddings({1: 3}))] == [0, 3]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3, "f4"), r"shape \(3,\); expected embeddings, \[rows, numbers\]"),
        (np.zeros((3, 2, 2), "f4"), "expected embeddings"),
        (np.zeros((3, 2), bool), "values of type bool; expected real numbers"),
        (np.zeros((3, 2), complex), "expected real numbers"),
    ],
)
def test_what_are_no_embeddings_is_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "e_0.npy", array)
    with pytest.raises(DataError, match=f"e_0.npy holds .*{words}"):
        opened(str(tmp_path))


def test_a_file_changed_under_the_run_is_refused(embeddings: Callable[..., str]) -> None:
    file = opened(embeddings({0: 3}))[0]
    embeddings({0: 4})
    os.utime(file.url, ns=(1, 1))
    with pytest.raises(RuntimeError, match="img_emb_0.npy was changed under the run"):
        file.place(STORE)
    with pytest.raises(RuntimeError, match="was changed under the run"), file.opened(STORE):
        pass


def parquet(path: Path, rows: np.ndarray) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"embedding": list(rows)}), path)


def test_parquet_files_are_unpacked_where_they_are_read(
    tmp_path: Path, rows_of: Callable[..., np.ndarray]
) -> None:
    for number in (0, 1):
        parquet(tmp_path / f"e_{number}.parquet", rows_of(number, 3 + number))
    found = opened(str(tmp_path), "embedding")
    assert [(f.count, f.dimension, f.dtype) for f in found] == [
        (3, 4, np.dtype("f4")),
        (4, 4, np.dtype("f4")),
    ]
    with found[1].opened(STORE) as (fd, rows):
        out = np.empty((4, 4), "f4")
        rows.read_into(fd, 0, out)
    np.testing.assert_array_equal(out, rows_of(1, 4))


def test_parquet_files_of_another_type_are_found_when_they_are_read(
    tmp_path: Path, rows_of: Callable[..., np.ndarray]
) -> None:
    parquet(tmp_path / "e_0.parquet", rows_of(0, 3))
    parquet(tmp_path / "e_1.parquet", rows_of(1, 3, 5))
    found = opened(str(tmp_path), "embedding")
    with pytest.raises(DataError, match="e_1.parquet has rows of 5 numbers .* first file has 4"):
        found[1].place(STORE)

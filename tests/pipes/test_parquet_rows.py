"""Rows of Parquet files by their numbers."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from penstock.pipes.errors import DataError
from penstock.pipes.parquet_rows import ArrowRows, ParquetRows
from penstock.pipes.shard_cache import ShardCache


@pytest.fixture
def store(tmp_path: Path) -> ShardCache:
    return ShardCache(str(tmp_path / "cache"))


def written(path: Path, columns: dict[str, Any], group: int = 7) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    return str(path)


def test_the_footer_tells_rows_and_columns(tmp_path: Path, store: ShardCache) -> None:
    rows = ParquetRows.of(written(tmp_path / "a.parquet", {"x": [1, 2], "y": ["a", "b"]}), store)
    assert (rows.count, rows.columns) == (2, ("x", "y"))
    rows.check(["y"], "meta_columns")
    with pytest.raises(ValueError, match=r"a.parquet has no column 'z' .*'x', 'y'"):
        rows.check(["z"], "meta_columns")


def test_columns_in_the_order_asked_for(tmp_path: Path, store: ShardCache) -> None:
    n = 40_000  # more than are unpacked at once
    columns = {"x": list(range(n)), "y": [f"t{i}" for i in range(n)], "z": [None] * n}
    rows = ParquetRows.of(written(tmp_path / "a.parquet", columns, 9_000), store)
    table = ArrowRows(rows.table(["y", "x"], store))
    assert table.names == ["y", "x"]
    for i in (0, 1, 16_383, 16_384, n - 1):
        assert table.row(i) == [f"t{i}", i]
    for start, end in ((0, n), (16_380, 33_000), (5, 5), (n - 1, n)):
        assert table.columns(start, end) == [columns["y"][start:end], columns["x"][start:end]]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", ["halffloat", "float", "double", "int8"])
def test_vectors_are_those_of_the_file(
    tmp_path: Path, store: ShardCache, fixed: bool, kind: str
) -> None:
    values = (np.arange(60) % 100).reshape(20, 3)
    inner = pyarrow.type_for_alias(kind)
    numbers = pyarrow.array(values.reshape(-1).astype(inner.to_pandas_dtype()), inner)
    vectors = (
        pyarrow.FixedSizeListArray.from_arrays(numbers, 3)
        if fixed
        else pyarrow.ListArray.from_arrays(pyarrow.array(range(0, 63, 3), "int32"), numbers)
    )
    url = written(tmp_path / "a.parquet", {"id": list(range(20)), "embedding": vectors})
    rows = ParquetRows.of(url, store)
    assert rows.vector_type("embedding", store) == (3, np.dtype(inner.to_pandas_dtype()))
    got = np.load(rows.vectors("embedding", store))
    assert got.dtype == inner.to_pandas_dtype()
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["a", "b"], "has the type string; expected lists of numbers"),
        ([[1.0, 2.0], None], "row 2: there is no 'embedding'"),
        ([[1.0, 2.0], [3.0]], r"row 2: 'embedding' has 1 numbers, and 2 in row 1"),
        ([[1.0, 2.0], [3.0, None]], "row 2: 'embedding' lacks a number"),
        (pyarrow.array([[], []], pyarrow.list_(pyarrow.float32())), "row 1: 'embedding' is empty"),
    ],
)
def test_what_are_no_vectors_is_refused(
    tmp_path: Path, store: ShardCache, column: list[Any], words: str
) -> None:
    rows = ParquetRows.of(written(tmp_path / "a.parquet", {"embedding": column}), store)
    with pytest.raises(DataError, match=f"a.parquet.*{words}"):
        rows.vectors("embedding", store)
    assert not list(Path(store.folder).parent.glob("rows/*"))


def test_vectors_of_another_length_in_a_later_part(tmp_path: Path, store: ShardCache) -> None:
    column = [[1.0, 2.0]] * 16_384 + [[1.0, 2.0, 3.0]] * 2
    rows = ParquetRows.of(written(tmp_path / "a.parquet", {"v": column}, 16_384), store)
    with pytest.raises(DataError, match="row 16385: 'v' has 3 numbers, and 2 in the first row"):
        rows.vectors("v", store)


def test_unpacked_once_for_each_version(tmp_path: Path, store: ShardCache) -> None:
    url = written(tmp_path / "a.parquet", {"x": [1, 2]})
    rows = ParquetRows.of(url, store)
    path = rows.table(["x"], store)
    before = os.stat(path)
    assert rows.table(["x"], store) == path
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns
    written(tmp_path / "a.parquet", {"x": [3, 4, 5]})
    os.utime(url, ns=(1, 1))
    again = ParquetRows.of(url, store)
    assert again.table(["x"], store) != path
    assert ArrowRows(again.table(["x"], store)).columns(0, 3) == [[3, 4, 5]]


def test_a_file_changed_under_the_run_is_refused(tmp_path: Path, store: ShardCache) -> None:
    url = written(tmp_path / "a.parquet", {"x": [1, 2]})
    rows = ParquetRows.of(url, store)
    os.utime(url, ns=(1, 1))
    with pytest.raises(RuntimeError, match="a.parquet was changed under the run"):
        rows.table(["x"], store)


def test_damaged_files_are_data_errors(tmp_path: Path, store: ShardCache) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="a.parquet is no Parquet file"):
        ParquetRows.of(str(path), store)
    written(path, {"x": [f"{i}" * 50 for i in range(2000)]})
    data = bytearray(path.read_bytes())
    data[40:4000] = bytes(3960)
    path.write_bytes(data)
    rows = ParquetRows.of(str(path), store)
    with pytest.raises(DataError, match="a.parquet"):
        rows.table(["x"], store)


def test_a_missing_file_is_no_data_error(tmp_path: Path, store: ShardCache) -> None:
    with pytest.raises(FileNotFoundError):
        ParquetRows.of(str(tmp_path / "a.parquet"), store)


def test_without_pyarrow_it_says_what_to_install(
    tmp_path: Path, store: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"penstock\[tables\]"):
        ParquetRows.of(str(tmp_path / "a.parquet"), store)

"""Arrays in .npy files, read by rows."""

import io
import os
from pathlib import Path

import numpy as np
import pytest

from penstock.pipes.decode_fields import decode_field
from penstock.pipes.draws import Draws
from penstock.pipes.errors import DataError
from penstock.pipes.load import FieldLoader
from penstock.pipes.npy import HEADER_BYTES, NpyRow, NpyRows, parse_npy, read_npy
from penstock.pipes.sample import Ref
from penstock.pipes.shards import ShardLister
from penstock.pipes.slot import Slot


def saved(array: np.ndarray, **how: object) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **how)  # type: ignore[arg-type]
    return file.getvalue()


def parsed(data: bytes, name: str = "a.npy") -> NpyRows:
    return parse_npy(data[:HEADER_BYTES], len(data), name)


def numbers(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return (np.arange(np.prod(shape)) * 7 % 251).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "|i1", ">i4", "|b1"])
@pytest.mark.parametrize("shape", [(7,), (7, 5), (1, 5), (7, 1), (6, 2, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_those_that_numpy_loads(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], order: str
) -> None:
    array = np.array(numbers(shape, dtype), order=order)
    data = saved(array)
    rows = parsed(data)
    assert (len(rows), rows.row_shape, rows.dtype) == (shape[0], shape[1:], array.dtype)
    expected = np.load(io.BytesIO(data))
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    for start, end in ((0, shape[0]), (0, 1), (shape[0] // 2, shape[0]), (0, 0)):
        got = rows.read(lambda at, size: data[at : at + size], start, end)
        assert got.dtype == array.dtype.newbyteorder("=")
        assert got.flags.c_contiguous
        assert got.flags.writeable
        np.testing.assert_array_equal(got, expected[start:end])
        out = np.empty_like(got)
        with open(path, "rb") as file:
            rows.read_into(file.fileno(), start, out)
        np.testing.assert_array_equal(out, expected[start:end])


def test_a_row_is_an_extent_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, numbers((5, 4), ">f4"))
    rows = read_npy(str(path))
    extent = rows.extent(str(path), 3)
    np.testing.assert_array_equal(rows.decode(extent.read())[0], np.load(path)[3])


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_row_is_a_field_that_is_loaded_as_an_array(tmp_path: Path, order: str) -> None:
    path = tmp_path / "a.npy"
    array = np.array(numbers((5, 4), ">f2"), order=order)  # type: ignore[call-overload]
    np.save(path, array)
    row = NpyRow(read_npy(str(path)), str(path), 3)
    sample = {"__key__": "k", "embedding": row}
    loaded = FieldLoader(ShardLister("a.tar")).work(sample, Draws(0, Ref(0, 0, 0)), Slot(None))
    decoded = decode_field("embedding", row)
    for got in (loaded["embedding"], decoded):
        assert got.dtype == np.dtype("=f2")
        np.testing.assert_array_equal(got, array[3])
    assert row.read() == array[3].astype("=f2").tobytes()


def test_a_row_that_is_gone_is_a_data_error_that_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, numbers((5, 4), "f4"))
    row = NpyRow(read_npy(str(path)), str(path), 4)
    os.truncate(path, 150)
    with pytest.raises(DataError, match=r"field 'embedding': .*a.npy ends at byte 192"):
        decode_field("embedding", row)


def test_in_fortran_order_no_row_is_an_extent() -> None:
    rows = parsed(saved(np.asfortranarray(numbers((5, 4), "f4"))))
    assert rows.fortran
    with pytest.raises(ValueError, match="a.npy is in Fortran order"):
        rows.extent("a.npy", 0)


@pytest.mark.parametrize("version", [(2, 0), (3, 0)])
def test_headers_of_other_versions(version: tuple[int, int]) -> None:
    array = numbers((5, 4), "f4")
    data = saved(array, version=version)
    got = parsed(data).read(lambda at, size: data[at : at + size], 1, 3)
    np.testing.assert_array_equal(got, array[1:3])


def test_an_empty_array_has_no_rows() -> None:
    assert len(parsed(saved(np.zeros((0, 512), "f2")))) == 0
    assert len(parsed(saved(np.zeros(0, "f2")))) == 0


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array(["a", "b"]), "values of type <U1"),
        (np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]), "expected numbers"),
        (np.float32(3), "expected at least one axis"),
        (np.zeros((3, 0), "f4"), "3 rows of nothing"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        parsed(saved(np.asarray(array)), "bad.npy")
    assert "bad.npy" in str(caught.value)


def test_objects_are_refused_unread() -> None:
    with pytest.raises(DataError, match="would have to be unpickled"):
        parsed(saved(np.array([{}, []], object), allow_pickle=True))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no .npy file"),
        (b"not an array at all", "is no .npy file"),
        (b"PK\x03\x04....", "is an archive"),
        (b"\x93NUMPY\x04\x00\x10\x00\x00\x00{}              \n", "version 4.0"),
        (b"\x93NUMPY\x01\x00\xff\xff{}", "is no .npy file"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "is no .npy file"),
    ],
)
def test_damaged_headers_are_data_errors(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parsed(data)


def test_no_damage_to_a_header_gives_another_error() -> None:
    whole = saved(numbers((5, 4), "f4"))
    for at in range(128):
        for byte in (0, 0x27, 0x28, 0x39, 0xFF):
            damaged = whole[:at] + bytes([byte]) + whole[at + 1 :]
            try:
                rows = parsed(damaged)
            except DataError:
                continue
            assert rows.offset + len(rows) * rows.row_bytes <= len(damaged)


def test_a_long_header_is_refused() -> None:
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}" + b" " * 20_000 + b"\n"
    data = b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + b"1234"
    with pytest.raises(DataError, match="is no .npy file"):
        parsed(data)


def test_a_truncated_file_is_refused_with_its_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, numbers((5, 4), "f4"))
    os.truncate(path, 128 + 79)
    with pytest.raises(DataError, match=r"a.npy has 207 bytes .* promises 208 .*truncated"):
        read_npy(str(path))


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_truncated_later_is_a_data_error(tmp_path: Path, order: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array(numbers((5, 4), "f4"), order=order))  # type: ignore[call-overload]
    rows = read_npy(str(path))
    os.truncate(path, 150)
    with open(path, "rb") as file, pytest.raises(DataError, match="a.npy ends at byte"):
        rows.read_into(file.fileno(), 1, np.empty((4, 4), "f4"))


def test_rows_that_are_not_there_are_refused() -> None:
    rows = parsed(saved(numbers((5, 4), "f4")))
    for start, end in ((0, 6), (-1, 2), (3, 2)):
        with pytest.raises(IndexError, match="a.npy has 5 rows"):
            rows.read(lambda at, size: b"", start, end)


def test_only_a_fitting_array_is_read_into(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, numbers((5, 4), "f4"))
    rows = read_npy(str(path))
    with open(path, "rb") as file:
        for out in (np.empty((2, 4), "f8"), np.empty((2, 8), "f4")[:, ::2]):
            with pytest.raises(ValueError, match="contiguous array of float32"):
                rows.read_into(file.fileno(), 0, out)

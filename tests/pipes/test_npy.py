"""Single rows are what numpy wrote, whatever the version, order and type; damage is bad data."""

import io
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as numpy_format

from penstock.pipes import DataError
from penstock.pipes import npy as module
from penstock.pipes.npy import FEW, HEAD, MOST_ROW, RowFile, npy_prefix, parse_header


def npy(array, version=(1, 0)):
    file = io.BytesIO()
    numpy_format.write_array(file, array, version=version, allow_pickle=True)
    return file.getvalue()


def rows_of(data, name="a.npy", few=16):
    return RowFile(name, len(data), lambda at, size: data[at : at + size], few)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 7),
    dim=st.integers(1, 9),
    dtype=st.sampled_from(["<f2", "<f4", ">f4", "<f8", "<u2", ">u2"]),
    order=st.sampled_from("CF"),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    few=st.integers(0, 7),
)
def test_each_row_is_the_arrays(rows, dim, dtype, order, version, few):
    array = np.arange(rows * dim).reshape(rows, dim).astype(dtype, order=order)
    file = rows_of(npy(array, version), few=few)
    assert (file.rows, file.dim, file.dtype) == (rows, dim, np.dtype(dtype))
    for i in range(rows):
        assert (file.row(i) == array[i]).all()
        again = np.load(io.BytesIO(file.npy(file.raw(i))), allow_pickle=False)
        assert again.dtype == dtype
        assert again.shape == (dim,)
        assert (again == array[i]).all()


def test_a_row_is_read_alone():
    data, reads = npy(np.ones((1000, 8), np.float16)), []

    def read(at, size):
        reads.append(size)
        return data[at : at + size]

    file = RowFile("a.npy", len(data), read)
    file.row(999)
    assert reads == [HEAD, 16]
    data, reads[:] = npy(np.asfortranarray(np.ones((1000, 8), np.float16))), []
    file = RowFile("a.npy", len(data), read)
    file.row(3)
    assert reads == [HEAD, *[2] * 8]


def test_a_file_in_fortran_order_is_read_whole_once_many_of_its_rows_are(monkeypatch):
    array = np.asfortranarray(np.arange(8000, dtype=np.float32).reshape(1000, 8))
    data, reads = npy(array), []

    def read(at, size):
        reads.append(size)
        return data[at : at + size]

    file = RowFile("a.npy", len(data), read)
    for i in range(FEW):
        assert (file.row(i) == array[i]).all()
    assert reads == [HEAD, *[4] * 8 * FEW]
    for i in range(1000):
        assert (file.row(i) == array[i]).all()
    assert reads[1 + 8 * FEW :] == [32_000]
    # Others push it out, and it is read singly again; none is kept that is too large by itself.
    monkeypatch.setattr(module, "MOST_COPIED", 70_000)
    files = [rows_of(data, few=0) for _ in range(3)]
    assert [f.row(7).tolist() for f in files] == [array[7].tolist()] * 3
    assert list(module._COPIES) == files[1:]
    file.row(1)
    assert reads[2 + 8 * FEW :] == [4] * 8
    monkeypatch.setattr(module, "MOST_COPIED", 31_999)
    assert rows_of(data, few=0).row(9).tolist() == array[9].tolist()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (npy(np.ones(5)), r"expected an array \[rows, dimension\], found the shape \(5,\)"),
        (npy(np.ones((2, 3, 4))), r"found the shape \(2, 3, 4\)"),
        (npy(np.ones((2, 0))), r"found the shape \(2, 0\)"),
        (npy(np.array([[{}]], object)), "Python objects, which would have to be unpickled"),
        (b"", "it is no .npy file: it begins with b''"),
        (b"PK\3\4" + bytes(100), "it is no .npy file"),
        (npy(np.ones((2, 3)))[:-1], "makes 176: it is truncated"),
        (npy(np.ones((2, 3)))[:60], "header cannot be read"),
        (npy(np.ones((2, 3))) + b"x", "something was appended to it"),
        (npy(np.ones((2, 3))).replace(b"(2, 3)", b"(-1,3)"), r"shape \(-1, 3\)"),
        (npy(np.ones((2, 3))).replace(b"(2, 3), }     ", b"(9999999, 3), }"), "it is truncated"),
        (npy(np.ones((2, 3))).replace(b"(2, 3), }       ", b"(2, 99999999), }"), "longer than"),
        (npy(np.ones((2, 3))).replace(b"'<f8'", b"'<q('"), "header cannot be read"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 20_000) + b" " * 20_000, "header cannot be read"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "header cannot be read"),
    ],
)
def test_what_holds_no_rows_is_named(data, fault):
    with pytest.raises(DataError, match=rf"^there/a.npy: .*{fault}"):
        rows_of(data, "there/a.npy")
    assert MOST_ROW < 99999999


def test_no_rows_are_rows_too():
    assert rows_of(npy(np.ones((0, 3), order="F"))).rows == 0


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 140), value=st.integers(0, 255), cut=st.integers(0, 150))
def test_any_damage_is_bad_data_or_an_array_of_the_same_bytes(at, value, cut):
    data = bytearray(npy(np.arange(6.0).reshape(2, 3)))
    data[at] = value
    for damaged in (bytes(data), bytes(data[:cut])):
        with suppress(DataError):
            file = rows_of(damaged)
            assert sum(len(file.raw(i)) for i in range(file.rows)) <= len(damaged)


def test_a_prefix_is_numpys():
    array = np.arange(3, dtype=">f4")
    assert npy_prefix(array.dtype, (3,)) + array.tobytes() == npy(array)
    assert parse_header(npy(array)).offset == 128

"""An embedding's type, dimension and values are what was stored, or an error says what they are."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.pipes import DataError
from penstock.pipes.embedding import EmbeddingForm, EmbeddingMember, EmbeddingRow, dtype_name
from penstock.pipes.errors import MissingData
from penstock.pipes.npy_row_file import RowFile

KINDS = {"<f2": torch.float16, ">f2": torch.float16, "<f4": torch.float32, ">f4": torch.float32}
KINDS |= {"<f8": torch.float64, ">f8": torch.float64}


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def row_of(array, row=0, **form):
    data = npy(array)
    file = RowFile("e/img_emb_1.npy", len(data), lambda at, size: data[at : at + size])
    return EmbeddingRow(file, row, EmbeddingForm(**form))


@pytest.mark.parametrize("dtype", KINDS)
def test_the_type_is_kept(dtype):
    array = np.array([[0, 1, 2.5], [3, -4, 5]], dtype)
    tensor = row_of(array, 1).value()
    assert tensor.dtype == KINDS[dtype]
    assert tensor.tolist() == [3, -4, 5]
    tensor += 1  # it is a copy
    assert row_of(array, 1).value().tolist() == [3, -4, 5]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("to", ["float16", "bfloat16", "float32", "float64"])
def test_or_converted(dtype, to):
    tensor = row_of(np.array([[1, 2.5]], dtype), dtype=to).value()
    assert tensor.dtype == getattr(torch, to)
    assert tensor.tolist() == [1, 2.5]


@given(values=hnp.arrays(np.float32, 6, elements=st.floats(-(2.0**90), 2.0**90, width=32)))
def test_bfloat16_as_integers(values):
    whole = torch.from_numpy(values).to(torch.bfloat16)
    bits = whole.view(torch.int16).numpy().view(np.uint16)[None]
    if not whole.any():
        with pytest.raises(MissingData, match="is all zeros"):
            row_of(bits, stored="bfloat16").value()
        return
    for stored in (bits, bits.astype(">u2"), bits.view("V2")):
        assert torch.equal(row_of(stored, stored="bfloat16").value(), whole)
    wide = row_of(bits, stored="bfloat16", dtype="float32").value()
    assert torch.equal(wide, whole.float())


def test_zeros_are_missing_whatever_their_sign():
    for array in (np.zeros((1, 3), np.float16), np.full((1, 3), -0.0, np.float32)):
        with pytest.raises(MissingData, match=r"^row 0 of e/img_emb_1.npy is all zeros: no emb"):
            row_of(array).value()
        with pytest.raises(MissingData, match=r"^row 0 of e/img_emb_1.npy is all zeros"):
            row_of(array).read()
        with pytest.raises(MissingData, match=r"^row 0 of e/img_emb_1.npy is all zeros"):
            row_of(array).check()
    minus = np.full((1, 3), 0x8000, np.uint16)
    with pytest.raises(MissingData, match="is all zeros"):
        row_of(minus, stored="bfloat16").value()
    row_of(np.array([[0, 1e-7]], np.float16)).check()  # the smallest there is


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_bad(value):
    array = np.array([[1, value]], np.float16)
    with pytest.raises(DataError, match="^row 0 of e/img_emb_1.npy holds NaN or infinity"):
        row_of(array).value()
    row_of(array).check()  # it is there
    bits = torch.tensor([[1, value]]).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    with pytest.raises(DataError, match="holds NaN or infinity"):
        row_of(bits, stored="bfloat16").value()
    with pytest.raises(DataError, match="row 0 of .* too large for float16"):
        row_of(np.array([[1e5, 1]], np.float32), dtype="float16").value()


def test_normalized():
    for dtype in ("float16", "float32"):
        array = np.array([[3000, 4000]], dtype)
        tensor = row_of(array, normalize=True).value()
        assert tensor.dtype == getattr(torch, dtype)
        assert torch.allclose(tensor.double(), torch.tensor([0.6, 0.8]).double(), atol=1e-3)
    assert row_of(array, normalize=True, dtype="bfloat16").value().dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "form", "fault"),
    [
        ("u2", {}, "found uint16; where these are the bits of bfloat16, say stored='bfloat16'"),
        ("i4", {}, "expected float16, float32 or float64, found int32$"),
        ("c8", {}, "found complex64"),
        ("?", {}, "found bool"),
        ("f2", {"stored": "bfloat16"}, "stored='bfloat16' wants uint16, .* it has float16"),
        ("i2", {"stored": "bfloat16"}, "it has int16"),
        ("f4", {"dim": 4}, "have 3 dimensions, expected 4"),
    ],
)
def test_other_types_and_dimensions_are_refused(dtype, form, fault):
    with pytest.raises(DataError, match=fault):
        EmbeddingForm(**form).check(np.dtype(dtype), 3)


def test_loaded_undecoded_a_row_is_a_file_of_its_own():
    array = np.arange(6, dtype=">f4").reshape(2, 3, order="F")
    found = np.load(io.BytesIO(row_of(array, 1, dtype="float16").read()), allow_pickle=False)
    assert found.dtype == array.dtype
    assert found.tolist() == array[1].tolist()


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_members_of_a_tar(shape):
    array = np.array([1, 2, 3], np.float16).reshape(shape)
    member = EmbeddingMember("npy", npy(array), EmbeddingForm(dim=3, dtype="float32"))
    assert member.value().tolist() == [1, 2, 3]
    assert member.value().dtype == torch.float32
    member.check()
    kept = np.load(io.BytesIO(member.read()), allow_pickle=False)
    assert (kept.dtype, kept.tolist()) == (np.float16, [1, 2, 3])


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (npy(np.ones((2, 3))), r"expected an array \[dimension\], found the shape \(2, 3\)"),
        (npy(np.array(1.0)), r"holds an array of shape \(\)"),
        (npy(np.ones(0)), "it is empty"),
        (npy(np.ones(3))[:-1], "has 151 bytes and its header promises 152"),
        (npy(np.ones(3, int)), "found int64"),
        (npy(np.zeros(3)), "is all zeros"),
        (npy(np.full(3, np.nan)), "holds NaN"),
        (npy(np.ones(4)), "have 4 dimensions, expected 3"),
        (b"\x80\x02", "is no .npy file"),
    ],
)
def test_members_that_are_no_embedding(data, fault):
    with pytest.raises(DataError, match=f"^member 'npy'.*{fault}"):
        EmbeddingMember("npy", data, EmbeddingForm(dim=3)).value()


def test_names_of_types():
    assert dtype_name(None) is None
    for given_ in ("bfloat16", torch.bfloat16):
        assert dtype_name(given_) == "bfloat16"
    for given_ in (np.float16, np.dtype("<f2"), torch.float16, torch.half):
        assert dtype_name(given_) == "float16"
    for wrong in ("int8", torch.int32, np.uint16):
        with pytest.raises(ValueError, match="dtype is one of bfloat16, float16, float32, float64"):
            dtype_name(wrong)

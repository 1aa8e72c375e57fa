"""Tensors as safetensors bytes, and back."""

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from penstock.transforms.entry_bytes import (
    DTYPES,
    MOST_HEADER,
    MOST_TENSORS,
    entry_bytes,
    header_size,
    read_entry,
    read_layout,
)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        (t.dtype, t.shape, bits(t)) == (other[n].dtype, other[n].shape, bits(other[n]))
        for n, t in one.items()
    )


def every_dtype() -> dict[str, torch.Tensor]:
    found = {}
    for i, (name, dtype) in enumerate(DTYPES.items()):
        raw = torch.arange(i, i + 6 * dtype.itemsize).to(torch.uint8)
        found[name] = (raw % 2 if dtype == torch.bool else raw).view(dtype).reshape(2, 3)
    return found | {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.5).bfloat16()}


def make(header: object, data: bytes = b"") -> bytearray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + data)


def test_every_dtype_comes_back_bit_for_bit_as_the_library_reads_it():
    tensors = every_dtype()
    data = entry_bytes(tensors, {"field": "latents"})
    assert same(read_entry(bytearray(data)), tensors)
    assert same(load(data), tensors)
    assert read_layout(data, len(data)).metadata == {"field": "latents"}
    assert same(read_entry(bytearray(save(tensors))), tensors)


def test_a_view_brings_its_own_bytes_and_no_more():
    whole = torch.randn(64, 64).bfloat16()
    views = {
        "row": whole[3],
        "again": whole[3],
        "turned": whole.T[:2],
        "wide": whole[:1].expand(4, 64),
    }
    data = entry_bytes(views, {})
    assert len(data) < sum(t.numel() * 2 for t in views.values()) + 600
    found = read_entry(bytearray(data))
    assert same(found, views)
    assert found["row"].untyped_storage().nbytes() == 128
    found["row"].zero_()
    assert same({"again": found["again"]}, {"again": whole[3]})


def test_the_tensors_are_the_buffer_where_a_type_can_lie_there():
    data = bytearray(8) + entry_bytes({"a": torch.ones(3)}, {})
    found = read_entry(data, 8)["a"]
    found[0] = 7
    assert bytes(np.float32(7).tobytes()) in bytes(data)
    # Another writer need not align.
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    text += b" " * (5 - len(text) % 8 + 8)
    odd = make(text, np.array([1, 2], "f4").tobytes())
    assert (8 + len(text)) % 4
    assert read_entry(odd)["a"].tolist() == [1.0, 2.0]


def test_what_cannot_be_kept():
    one = torch.ones(2)
    for tensors in ({}, {str(i): one for i in range(MOST_TENSORS + 1)}):
        with pytest.raises(ValueError, match="1 to 1024 tensors"):
            entry_bytes(tensors, {})
    for bad in (one.to_sparse(), torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(ValueError, match="'bad' is .*dense tensors of bool"):
            entry_bytes({"good": one, "bad": bad}, {})
    grown = torch.ones(2, requires_grad=True)
    assert not read_entry(bytearray(entry_bytes({"a": grown}, {})))["a"].requires_grad


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "size", "words"),
    [
        ({}, 0, "no tensor"),
        ([], 0, "no object"),
        (b'{"a":', 0, "no JSON"),
        (b"\xff\xff\xff", 0, "no JSON"),
        (b"[" * 5000, 0, "no JSON"),
        (b'{"a":1,"a":2}', 0, "a name twice"),
        ({"__metadata__": {"a": 1}}, 0, "no object of strings"),
        ({"__metadata__": 3, "a": GOOD}, 8, "no object of strings"),
        ({"a": 3}, 0, "has not dtype"),
        ({"a": GOOD | {"more": 1}}, 8, "has not dtype"),
        ({"a": GOOD | {"dtype": "F4"}}, 8, "of type 'F4'"),
        ({"a": GOOD | {"dtype": ["F32"]}}, 8, "of type"),
        ({"a": GOOD | {"shape": [-2]}}, 8, "no whole numbers"),
        ({"a": GOOD | {"shape": [True, 2]}}, 8, "no whole numbers"),
        ({"a": GOOD | {"shape": [2.0]}}, 8, "no whole numbers"),
        ({"a": GOOD | {"shape": [1] * 17}}, 8, "no whole numbers"),
        ({"a": GOOD | {"shape": [1 << 60]}}, 8, "no whole numbers"),
        ({"a": GOOD | {"data_offsets": [0, 8, 9]}}, 8, "no whole numbers"),
        ({"a": GOOD | {"data_offsets": [8, 0]}}, 8, "has -8 bytes"),
        ({"a": GOOD | {"shape": [3]}}, 8, "has 8 bytes; expected"),
        ({"a": GOOD | {"data_offsets": [1, 9]}}, 9, "begins at byte"),
        ({"a": GOOD, "b": GOOD}, 8, "begins at byte"),
        ({"a": GOOD}, 7, "end at byte"),
        ({"a": GOOD}, 9, "end at byte"),
        ({"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, 2, "neither 0 nor 1"),
    ],
)
def test_damaged_headers_are_refused(header, size, words):
    with pytest.raises(ValueError, match=words):
        read_entry(make(header, b"\x02" * size))


def test_headers_that_are_cut_or_too_long():
    data = entry_bytes({"a": torch.ones(2)}, {})
    for size in range(len(data)):
        with pytest.raises(ValueError, match="it has|its header"):
            read_entry(bytearray(data[:size]))
    with pytest.raises(ValueError, match="expected 2 to 1,048,576"):
        header_size((MOST_HEADER + 1).to_bytes(8, "little"))
    many = {str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(1025)}
    with pytest.raises(ValueError, match="no object of 1 to 1024"):
        read_entry(make(many))


WHOLE = entry_bytes(every_dtype(), {"field": "latents", "target_size": "512x512"})


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6
    ),
    st.integers(-16, 16),
)
def test_mutated_bytes_are_tensors_or_a_ValueError(changes, longer):
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    data = data[: len(data) + longer] if longer < 0 else data + bytes(longer)
    try:
        tensors = read_entry(data)
    except ValueError:
        return
    assert sum(t.numel() * t.element_size() for t in tensors.values()) < len(data)
    for tensor in tensors.values():
        tensor.clone()


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]),
                x,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    st.binary(max_size=64),
)
def test_any_json_is_tensors_or_a_ValueError(header, data):
    with contextlib.suppress(ValueError):
        read_entry(make(header, data))

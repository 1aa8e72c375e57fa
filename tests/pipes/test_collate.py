"""Samples become one dict: tensors stacked, what has many shapes in lists."""

from typing import Any

import numpy as np
import pytest
import torch

from penstock.pipes import DataError
from penstock.pipes.collate import collate
from penstock.pipes.sample import Ref


def batch(*values: Any) -> dict[str, Any]:
    """Return the batch of samples whose field ``x`` has these values."""
    return collate(
        [
            {"__key__": str(i), "__url__": "a.tar", "__ref__": Ref(1, 2, i), "x": value}
            for i, value in enumerate(values)
        ]
    )


def test_every_batch_has_keys_urls_and_refs():
    made = batch("a", "b")
    assert made["__key__"] == ["0", "1"]
    assert made["__url__"] == ["a.tar", "a.tar"]
    assert made["__ref__"].tolist() == [[1, 2, 0], [1, 2, 1]]
    assert made["__ref__"].dtype == torch.int64
    assert made["x"] == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1, 2), torch.tensor([1, 2])),
        ((1, 2.5), torch.tensor([1.0, 2.5])),
        ((True, False), torch.tensor([True, False])),
        ((np.bool_(True), False), torch.tensor([True, False])),
        ((np.int32(3), 4), torch.tensor([3, 4])),
        ((np.float64(0.5), 1), torch.tensor([0.5, 1.0])),
        ((torch.ones(2), torch.zeros(2)), torch.tensor([[1.0, 1], [0, 0]])),
        ((np.arange(2), np.ones(2, int)), torch.tensor([[0, 1], [1, 1]])),
        ((np.array(3.0), np.array(4.0)), torch.tensor([3.0, 4.0], dtype=torch.float64)),
        ((np.arange(4)[::-2], np.arange(2)), torch.tensor([[3, 1], [0, 1]])),
        (
            (np.array([1, 2], ">f4"), np.array([3, 4], ">f4")),
            torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        ),
    ],
)
def test_what_fits_is_stacked(values, expected):
    made = batch(*values)["x"]
    assert isinstance(made, torch.Tensor)
    assert made.dtype == expected.dtype
    assert made.shape == expected.shape
    assert torch.equal(made, expected)


@pytest.mark.parametrize(
    "values",
    [
        ("a", "b"),
        (b"a", b"bc"),
        ({"k": 1}, {"k": 2}),
        (["a"], ["b", "c"]),
        (None, 1),
        (1, "a"),
        (1j, 2j),
        (np.array(["a", "b"]), np.array(["c", "d"])),
    ],
)
def test_what_is_no_number_stays_in_a_list(values):
    made = batch(*values)["x"]
    assert isinstance(made, list)
    assert all(a is b for a, b in zip(made, values, strict=True))


def test_tensors_of_several_shapes_types_or_kinds_stay_in_a_list():
    for values in (
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(2, dtype=torch.int64)),
        (np.ones(2), np.ones((2, 1))),
        (torch.ones(2), None),
        (np.ones(2), None),
    ):
        made = batch(*values)["x"]
        assert isinstance(made, list)
        assert len(made) == 2
    ragged = batch(np.ones(2, np.float32), np.ones(3, np.float32))["x"]
    assert [type(v) for v in ragged] == [torch.Tensor] * 2


def test_read_only_arrays_warn_of_nothing():
    arrays = [np.frombuffer(bytes(8), np.uint8) for _ in range(2)]
    assert batch(*arrays)["x"].shape == (2, 8)
    ragged = batch(np.frombuffer(bytes(8), np.uint8), np.frombuffer(bytes(4), np.uint8))["x"]
    assert [len(v) for v in ragged] == [8, 4]


def test_fields_that_are_ready_are_taken_as_they_are():
    ready = torch.zeros(2, 3)
    samples = [{"__key__": k, "image": ready[i]} for i, k in enumerate("ab")]
    assert collate(samples, {"image": ready})["image"] is ready


def test_a_field_that_one_lacks_is_named_with_both_samples():
    a = {"__key__": "a", "__url__": "1.tar", "txt": "x", "cls": 1}
    b = {"__key__": "b", "__url__": "2.tar", "txt": "x"}
    for pair in ([a, b], [b, a]):
        with pytest.raises(
            DataError,
            match=r"^sample 'b' of 2.tar has no field 'cls', and sample 'a' of 1.tar of the same",
        ):
            collate(pair)

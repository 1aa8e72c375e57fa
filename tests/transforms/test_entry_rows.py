"""Rows of entries, stacked and taken apart."""

import pytest
import torch

from penstock.transforms.entry_rows import pack_rows, stack_rows, unpack_rows


def entry(number: int, *shape: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full(shape or (2,), number), "b": torch.tensor(number)}


def test_rows_that_fit_are_stacked_and_come_apart_again() -> None:
    rows = [entry(1), entry(2), entry(3)]
    packed = pack_rows(rows)
    assert isinstance(packed, dict)
    assert packed["a"].tolist() == [[1, 1], [2, 2], [3, 3]]
    for one, other in zip(unpack_rows(packed, 3), rows, strict=True):
        assert one is not None
        assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize(
    "rows",
    [
        [entry(1), None],
        [None, entry(1)],
        [None, None],
        [entry(1), entry(1, 3)],
        [entry(1), {"a": torch.ones(2)}],
        [entry(1), {**entry(1), "b": torch.tensor(1.0)}],
    ],
)
def test_others_stay_a_list(rows: list[dict[str, torch.Tensor] | None]) -> None:
    packed = pack_rows(rows)
    assert isinstance(packed, list)
    assert all(one is other for one, other in zip(unpack_rows(packed, 2), rows, strict=True))


def test_what_is_no_rows_is_refused() -> None:
    for found in ({}, {"a": torch.ones(3)}, [None], "ab", torch.ones(2)):
        with pytest.raises(ValueError, match="expected the entries of 2 rows"):
            unpack_rows(found, 2)


def test_columns_are_stacked_where_they_fit() -> None:
    whole = stack_rows([entry(1, 2), entry(2, 3)], torch.device("cpu"))
    assert isinstance(whole["a"], list)
    assert isinstance(whole["b"], torch.Tensor)
    assert whole["b"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="different fields: a / a, b"):
        stack_rows([entry(1), {"a": torch.ones(2)}])

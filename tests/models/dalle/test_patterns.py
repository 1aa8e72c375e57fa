"""Who sees whom, kind by kind."""

import pytest
import torch

from penstock.models.dalle import Layout, pattern
from penstock.models.dalle.patterns import KINDS, pattern_rows, sparse_blocks

LAYOUT = Layout(3, 6)


def seen_by(kind: str, row: int, column: int) -> set[tuple[int, int]]:
    """Return the (row, column) of the image that a code sees."""
    at = LAYOUT.text_len + row * LAYOUT.width + column
    image = pattern(kind, LAYOUT)[at, LAYOUT.text_len :].view(6, 6)
    return {(int(r), int(c)) for r, c in image.nonzero()}


@pytest.mark.parametrize("kind", KINDS)
def test_causal_and_itself(kind):
    seen = pattern(kind, LAYOUT)
    assert seen.shape == (39, 39)
    assert not seen.triu(1).any()
    assert seen.diagonal().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_text_before(kind):
    seen = pattern(kind, LAYOUT)
    assert seen[3:, :3].all()
    assert torch.equal(seen[:3, :3], torch.ones(3, 3, dtype=torch.bool).tril())


def test_rows_and_columns():
    assert seen_by("axial_row", 2, 3) == {(2, c) for c in range(4)}
    assert seen_by("axial_col", 2, 3) == {(r, 3) for r in range(3)}


def test_the_window_ends_at_the_code():
    assert seen_by("conv_like", 5, 5) == {(r, c) for r in range(1, 6) for c in range(1, 6)}
    assert seen_by("conv_like", 1, 2) == {(r, c) for r in range(2) for c in range(3)}


def test_full():
    assert len(seen_by("full", 2, 3)) == 2 * 6 + 4


def test_sparse_is_blocks():
    layout = Layout(33, 16)  # 289 positions, 19 blocks, two of text
    blocks = sparse_blocks(layout, 0)
    assert blocks.shape == (19, 19)
    assert blocks[:, :2].tril().sum() == 19 + 18  # all see the text's
    for row in range(19):
        group = set(range(row // 4 * 4, row + 1))
        assert group <= set(blocks[row].nonzero().flatten().tolist())
    # 18 // 4 are drawn among all, of which those behind fall away.
    others = blocks[16:].sum(1) - 2 - torch.tensor([1, 2, 3])
    assert (others <= 4).all()
    assert others.sum() > 0
    assert blocks.sum() < 19 * 20 // 2
    seen = pattern("sparse", layout)
    assert seen[200, 190] == blocks[12, 11]
    assert not seen[200, 201]


def test_sparse_draws_are_the_layers_own_and_fixed():
    layout = Layout(33, 16)
    assert torch.equal(sparse_blocks(layout, 1), sparse_blocks(layout, 1))
    assert not torch.equal(sparse_blocks(layout, 1), sparse_blocks(layout, 2))
    # A checkpoint's meaning: these must never change.
    assert sparse_blocks(layout, 0)[18].nonzero().flatten().tolist() == SPARSE_18


SPARSE_18 = [0, 1, 6, 11, 14, 16, 17, 18]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_rows_of_the_whole(kind):
    whole = pattern(kind, LAYOUT, 2)
    blocks = sparse_blocks(LAYOUT, 2)
    for start, stop in ((0, 2), (2, 20), (38, 39)):
        rows = pattern_rows(kind, LAYOUT, start, stop, blocks=blocks)
        assert torch.equal(rows, whole[start:stop, :stop])


def test_no_such_kind():
    with pytest.raises(ValueError, match="'rows' is none of full, axial_row"):
        pattern("rows", LAYOUT)

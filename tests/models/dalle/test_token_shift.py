"""Channels from the positions before and above."""

import pytest
import torch

from penstock.models.dalle import Layout
from penstock.models.dalle.cache import Cache
from penstock.models.dalle.token_shift import remember, shift_next, shift_tokens

LAYOUT = Layout(3, 4)


def by_hand(x: torch.Tensor) -> torch.Tensor:
    """Shift position by position."""
    half, quarter = (x.shape[2] + 1) // 2, (x.shape[2] + 3) // 4
    out = x.clone()
    for i in range(x.shape[1]):
        if i < 3:
            out[:, i, :half] = x[:, i - 1, :half] if i else 0
            continue
        row, column = divmod(i - 3, 4)
        out[:, i, :quarter] = x[:, i - 4, :quarter] if row else 0
        out[:, i, quarter : 2 * quarter] = x[:, i - 1, quarter : 2 * quarter] if column else 0
    return out


@pytest.mark.parametrize("channels", [8, 6, 5])
@pytest.mark.parametrize("n", [1, 3, 7, 19])
def test_whole_sequences(n, channels):
    x = torch.randn(2, n, channels)
    assert torch.equal(shift_tokens(x, LAYOUT), by_hand(x))


def test_gradient():
    x = torch.randn(2, 19, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: shift_tokens(t, LAYOUT), x)


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_one_by_one(start):
    x = torch.randn(2, 19, 6)
    cache = Cache(19)
    remember(x[:, :start], cache, "a")
    cache.advance(start)
    for i in range(start, 19):
        assert torch.equal(
            shift_next(x[:, i : i + 1], LAYOUT, cache, "a"), by_hand(x)[:, i : i + 1]
        )
        cache.advance(1)

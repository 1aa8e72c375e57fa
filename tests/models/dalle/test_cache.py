"""What the cache keeps is what was put in."""

import torch

from penstock.models.dalle.cache import Cache


def test_positions_follow_each_other():
    cache = Cache(6)
    x = torch.randn(2, 6, 3)
    assert torch.equal(cache.extend("a", x[:, :4]), x[:, :4])
    cache.advance(3)  # one of the four was filling
    assert torch.equal(cache.extend("a", x[:, 5:]), torch.cat([x[:, :3], x[:, 5:]], 1))
    assert cache.length == 3


def test_keys_are_apart():
    cache = Cache(2)
    cache.extend("a", torch.ones(1, 1, 2))
    assert torch.equal(cache.extend("b", torch.zeros(1, 2, 5)), torch.zeros(1, 2, 5))

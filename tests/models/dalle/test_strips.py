"""An image in strips is the image."""

import pytest
import torch

from penstock.models.dalle import Layout
from penstock.models.dalle.strips import Strips

LAYOUT = Layout(3, 4)


@pytest.mark.parametrize("kind", ["axial_row", "axial_col", "conv_like"])
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_there_and_back(kind, rows):
    n = 3 + rows * 4
    strips = Strips(kind, LAYOUT, n)
    qkv = torch.randn(2, n, 3, 2, 5)
    words, image = qkv.split([3, n - 3], 1)
    q, keys = strips.cut(words, image)
    assert torch.equal(strips.together(q), image[:, :, 0])
    assert len(q) == len(keys) == 2 * strips.count
    assert torch.equal(keys[0, :3], words[0, :, 1:])
    mask = strips.mask(2, None, qkv)
    torch.broadcast_to(mask, (2 * strips.count, 1, q.shape[1], keys.shape[1]))
    assert mask.dtype == torch.float32


def test_columns_are_columns():
    strips = Strips("axial_col", LAYOUT, 3 + 8)
    qkv = torch.arange(11.0).view(1, 11, 1, 1, 1).expand(1, 11, 3, 1, 1)
    q, keys = strips.cut(*qkv.split([3, 8], 1))
    assert q[1].flatten().tolist() == [4, 8]
    assert keys[1, :, 0].flatten().tolist() == [0, 1, 2, 4, 8]

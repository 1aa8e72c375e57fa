"""The gated GELU."""

import torch
import torch.nn.functional as F

from penstock.models.dalle.gated import gated


def test_value():
    x = torch.randn(2, 3, 10)
    torch.testing.assert_close(gated(x), x[..., :5] * F.gelu(x[..., 5:]))


def test_gradient():
    x = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gated, x)

"""flex_attention and the mask give the same."""

import pytest
import torch

from penstock.models.dalle import Layout, pattern
from penstock.models.dalle.attention import Attention, Pass, attend
from penstock.models.dalle.sparse import BlockSparse

LAYOUT = Layout(33, 16)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("n", [33, 33 + 48, 289])
@torch.no_grad()
def test_flex_attention_is_the_mask(n, hidden):
    q, k, v = torch.randn(3, 2, n, 2, 16)
    seen = pattern("sparse", LAYOUT, 3)[:n, :n]
    visible = None
    if hidden:
        visible = torch.rand(2, 33) < 0.5
        visible[:, 0] = True
        keys = torch.cat([visible, torch.ones(2, n - 33, dtype=torch.bool)], 1)
        seen = seen & keys[:, None, None]
    found = BlockSparse(LAYOUT, 3)(q, k, v, visible)
    torch.testing.assert_close(found, attend(q, k, v, seen), atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [False, True])
def test_on_a_gpu_as_on_the_cpu(hidden):
    torch.manual_seed(0)
    attention = Attention(32, heads=2, dim_head=16, kind="sparse", layout=LAYOUT)
    x = torch.randn(2, 289, 32)
    visible = torch.rand(2, 33) < 0.5 if hidden else None
    if visible is not None:
        visible[:, 0] = True
    found = []
    for device in ("cpu", "cuda"):
        attention, x = attention.to(device), x.detach().to(device).requires_grad_()
        out = attention(x, Pass(LAYOUT, visible=None if visible is None else visible.to(device)), 0)
        (grad,) = torch.autograd.grad(out.square().sum(), x)
        found.append((out.cpu(), grad.cpu()))
    torch.testing.assert_close(found[0], found[1], atol=1e-2, rtol=1e-2)

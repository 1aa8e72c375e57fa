"""Each kind of attention is dense attention under its pattern."""

import pytest
import torch

from penstock.models.dalle import Layout, pattern
from penstock.models.dalle.attention import Attention, Pass
from penstock.models.dalle.patterns import KINDS
from penstock.models.dalle.rotary import rotary_turns, turn

LAYOUT = Layout(6, 8)


def dense(attention: Attention, x: torch.Tensor, run: Pass, seen: torch.Tensor) -> torch.Tensor:
    """Attend by a whole matrix of scores, of which those that are not seen are left out."""
    qkv = attention.to_qkv(x).unflatten(-1, (3, attention.heads, -1))
    qkv = qkv if run.turns is None else turn(qkv, run.turns)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return attention.to_out((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_is_dense_attention(kind, rows, hidden):
    torch.manual_seed(0)
    n = 6 + rows * 8
    attention = Attention(16, heads=2, dim_head=12, kind=kind, layout=LAYOUT)
    x = torch.randn(3, n, 16, requires_grad=True)
    visible = None
    seen = pattern(kind, LAYOUT)[:n, :n]
    if hidden:
        visible = torch.rand(3, 6) < 0.5
        visible[:, 0] = True
        keys = torch.cat([visible, torch.ones(3, n - 6, dtype=torch.bool)], 1)
        seen = seen & keys[:, None, None]
    run = Pass(LAYOUT, turns=rotary_turns(6, 8, 12)[:n], visible=visible)
    found, expected = attention(x, run, 0), dense(attention, x, run, seen)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    grads = [
        torch.autograd.grad(out, [x, *attention.parameters()], direction)
        for out in (found, expected)
    ]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_without_a_layout_all_is_seen():
    attention = Attention(16, heads=2, dim_head=8)
    x = torch.randn(2, 5, 16)
    visible = torch.tensor([[True, False, True, True, True], [True] * 5])
    found = attention(x, Pass(None, visible=visible), 0)
    torch.testing.assert_close(found, dense(attention, x, Pass(None), visible[:, None, None]))


@pytest.mark.parametrize("kind", ["axial_row", "axial_col", "conv_like"])
def test_no_scores_of_all_codes_with_all(kind, monkeypatch):
    sizes = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(q, k, v, **how):
        sizes.append(q.shape[0] * q.shape[-2] * k.shape[-2])
        return real(q, k, v, **how)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    layout = Layout(6, 16)
    attention = Attention(16, heads=2, dim_head=8, kind=kind, layout=layout)
    attention(torch.randn(1, layout.length, 16), Pass(layout), 0)
    strip = 16 * (5 if kind == "conv_like" else 1)
    assert sum(sizes) == 6 * 6 + 256 * (6 + strip)


def test_large_scores_do_not_overflow():
    attention = Attention(16, heads=2, dim_head=8)
    with torch.no_grad():
        attention.to_qkv.weight.mul_(1e4)
    x = torch.randn(1, 9, 16) * 1e4
    assert attention(x, Pass(None), 0).isfinite().all()

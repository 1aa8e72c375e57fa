"""Layers, shared or not, and their arguments."""

import pytest
import torch

from penstock.models.dalle import Layout, Transformer
from penstock.models.dalle.cache import Cache

LAYOUT = Layout(4, 4)


def make(**settings) -> Transformer:
    torch.manual_seed(0)
    sizes = {"dim": 16, "depth": 4, "heads": 2, "dim_head": 8, "layout": LAYOUT}
    return Transformer(**{**sizes, **settings})


def test_kinds_are_repeated():
    model = make(depth=5, attn_types=("full", "axial_row", "conv_like"))
    kinds = [layer.attention.inner.kind for layer in model.layers]
    assert kinds == ["full", "axial_row", "conv_like", "full", "axial_row"]
    assert [layer.attention.inner.kind for layer in make(attn_types="axial_col").layers] == [
        "axial_col"
    ] * 4


def test_shared_layers():
    model = make(
        attn_types=("full", "axial_row"), shared_attn_ids=(0, 1), shared_ff_ids=(0, 0, 0, 1)
    )
    attention = [layer.attention.inner for layer in model.layers]
    assert attention[0] is attention[2]
    assert attention[1] is attention[3]
    assert attention[0] is not attention[1]
    networks = [layer.feed_forward.inner for layer in model.layers]
    assert networks[0] is networks[2]
    assert networks[3] is not networks[0]
    assert len({id(layer.attention.scale) for layer in model.layers}) == 4


def test_kinds_cannot_share():
    with pytest.raises(ValueError, match="layer 1 is 'axial_row' and shares attention 0"):
        make(attn_types=("full", "axial_row"), shared_attn_ids=(0, 0))


def test_no_such_kind():
    with pytest.raises(ValueError, match="'rows' is none of full"):
        make(attn_types=("full", "rows"))


def test_scales_get_smaller_with_depth():
    model = make(dim=8, depth=26)
    scales = [layer.attention.scale[0].item() for layer in model.layers]
    assert scales == pytest.approx([0.1] * 18 + [1e-5] * 6 + [1e-6] * 2)


@pytest.mark.parametrize("kind", ["full", "axial_row", "axial_col", "conv_like", "sparse"])
@pytest.mark.parametrize("start", [1, 4, 6, 8])
@pytest.mark.parametrize("reversible", [False, True])
@torch.no_grad()
def test_cached_positions_are_those_of_the_whole(kind, start, reversible):
    model = make(attn_types=kind, shift_tokens=True, rotary_emb=True, reversible=reversible)
    for weight in model.parameters():
        weight += 0.2 * torch.randn(weight.shape)
    x, cache = torch.randn(2, 20, 16), Cache(20)
    visible = torch.tensor([[True, False, True, False], [True] * 4])
    whole = model(x, visible)
    found = [model(x[:, :start], visible, cache)]
    found += [model(x[:, i : i + 1], visible, cache) for i in range(start, 20)]
    torch.testing.assert_close(torch.cat(found, 1), whole, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_nothing_sees_what_comes_later():
    model = make(
        attn_types=("full", "axial_row", "axial_col", "conv_like"),
        shift_tokens=True,
        rotary_emb=True,
    )
    x = torch.randn(1, 20, 16)
    before = model(x)
    for i in range(20):
        other = x.clone()
        other[:, i] += 1
        after = model(other)
        assert torch.equal(after[:, :i], before[:, :i])
        assert not torch.equal(after[:, i], before[:, i])


def test_positions_keep_their_precision_in_a_smaller_float():
    model = make(rotary_emb=True).bfloat16()
    assert model._turns.dtype == torch.complex64
    assert model(torch.randn(1, 20, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16

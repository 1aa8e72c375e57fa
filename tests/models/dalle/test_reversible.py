"""Reversible layers: the same numbers, and memory that does not grow with the depth."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.models.dalle import Layout, Transformer

KINDS = ("full", "axial_row", "axial_col", "conv_like", "sparse")
LAYOUT = Layout(5, 6)


def make(depth: int = 3, **settings) -> Transformer:
    torch.manual_seed(0)
    sizes = {"dim": 16, "heads": 2, "dim_head": 6, "attn_types": KINDS, "rotary_emb": True}
    model = Transformer(
        **{**sizes, "depth": depth, "layout": LAYOUT, "shift_tokens": True, **settings}
    )
    with torch.no_grad():
        for half in model.parameters():
            half += 0.1 * torch.randn(half.shape)
    return model


def two_streams(model: Transformer, x: torch.Tensor) -> torch.Tensor:
    """Run the layers as the paper has them, with torch's own gradients."""
    from penstock.models.dalle.attention import Pass

    run = Pass(LAYOUT, turns=model._turns[: x.shape[1]])
    first = second = x
    for layer in model.layers:
        first = first + layer.attention(second, run) * layer.attention.scale
        second = second + layer.feed_forward(first, run) * layer.feed_forward.scale
    return (first + second) / 2


def test_as_with_all_activations_kept():
    model = make(6, reversible=True, shared_ff_ids=(0, 1, 0))
    x = torch.randn(2, LAYOUT.length, 16, requires_grad=True)
    found, expected = model(x), two_streams(model, x)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    wanted = [x, *model.parameters()]
    ours = torch.autograd.grad(found, wanted, direction, retain_graph=True)
    theirs = torch.autograd.grad(expected, wanted, direction)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    again = torch.autograd.grad(found, wanted, direction)  # the graph was kept
    torch.testing.assert_close(ours, again)


def test_frozen_parameters_get_no_gradient():
    model = make(2, reversible=True)
    model.layers[1].attention.requires_grad_(False)
    model(torch.randn(1, LAYOUT.length, 16)).sum().backward()
    grads = {name: p.grad is not None for name, p in model.named_parameters()}
    assert all(has != name.startswith("layers.1.attention") for name, has in grads.items())


def test_dropout_is_the_same_on_the_way_back():
    model = make(2, reversible=True, attn_dropout=0.4, ff_dropout=0.4).double()
    x = torch.randn(1, LAYOUT.length, 16, dtype=torch.float64, requires_grad=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return model(x).square().sum()

    (grad,) = torch.autograd.grad(loss(x), x)
    step = torch.randn_like(x) * 1e-3
    with torch.no_grad():
        slope = (loss(x + step) - loss(x - step)) / 2
    assert slope.item() == pytest.approx((grad * step).sum().item(), rel=1e-3)


def test_the_way_back_draws_nothing_of_others():
    model = make(2, reversible=True, attn_dropout=0.4)
    out = model(torch.randn(1, LAYOUT.length, 16))
    before = torch.get_rng_state()
    out.sum().backward()
    assert torch.equal(before, torch.get_rng_state())


def test_autocast_is_the_same_on_the_way_back():
    model = make(2, reversible=True)
    dtypes = []
    for layer in model.layers:
        layer.attention.inner.to_qkv.register_forward_hook(lambda *a: dtypes.append(a[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, LAYOUT.length, 16)).sum()
    loss.backward()
    assert dtypes == [torch.bfloat16] * 4


class Peak(TorchDispatchMode):
    """Adds up the tensors that are alive, but for those that were there before."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.alive, self.peak = known, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def peak_of(depth: int, reversible: bool) -> int:
    model = make(depth, reversible=reversible, attn_types=KINDS[:4])
    x = torch.randn(8, LAYOUT.length, 16, requires_grad=True)
    for tensor in (x, *model.parameters()):
        tensor.grad = torch.zeros_like(tensor)
    there = [t for p in (x, *model.parameters()) for t in (p, p.grad)]
    with Peak({t.untyped_storage()._cdata for t in there}) as mode:
        model(x).sum().backward()
    return mode.peak


def test_memory_does_not_grow_with_the_depth():
    shallow, deep = peak_of(4, True), peak_of(32, True)
    assert deep <= 1.3 * shallow
    assert peak_of(32, False) > 4 * peak_of(4, False)  # so the measure sees activations

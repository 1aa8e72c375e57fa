"""Layers whose inputs are computed back from their outputs instead of kept."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from .attention import Pass
from .layers import Half


def run_reversibly(layers: Sequence[tuple[Half, Half]], x: Tensor, run: Pass) -> Tensor:
    """Return the mean of the two streams behind all layers, float [B, n, C].

    Both streams begin as ``x``; the first gets what the attention makes of the second, the second
    what the feed-forward network makes of the first (Gomez et al. 2017, arXiv 1707.04585; Kitaev
    et al. 2020, arXiv 2001.04451). In training nothing of a layer is kept: going back, each is run
    again from its outputs, with the dropout that it had.
    """
    if not torch.is_grad_enabled():
        first = second = x
        for attention, feed_forward in layers:
            first = attention.add(first, second, run)
            second = feed_forward.add(second, first, run)
        return (first + second) / 2
    outputs = _Outputs()
    first = second = x
    for layer in layers:
        parameters = [p for half in layer for p in half.parameters()]
        first, second = _Layer.apply(layer, run, outputs, first, second, *parameters)
    return _Mean.apply(outputs, first, second)  # type: ignore[no-any-return]


class _Outputs:
    """The outputs of the layer whose turn it is on the way back."""

    def __init__(self) -> None:
        self._held: tuple[Tensor, Tensor] | None = None

    def put(self, first: Tensor, second: Tensor) -> None:
        self._held = (first, second)

    def take(self) -> tuple[Tensor, Tensor]:
        assert self._held is not None, "reversible layers are gone back through in order"
        held, self._held = self._held, None
        return held


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layer: tuple[Half, Half],
        run: Pass,
        outputs: _Outputs,
        first: Tensor,
        second: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.layer, ctx.run, ctx.outputs, ctx.parameters = layer, run, outputs, parameters
        ctx.settings = _Settings(first)
        attention, feed_forward = layer
        ctx.before_attention = _random_state(first)
        first = attention.add(first, second, run)
        ctx.before_feed_forward = _random_state(first)
        return first, feed_forward.add(second, first, run)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        d_first, d_second = grads
        first, second = ctx.outputs.take()
        attention, feed_forward = ctx.layer
        second, d_first, g_feed = _undo(
            ctx, feed_forward, ctx.before_feed_forward, first, second, d_first, d_second
        )
        first, d_second, g_att = _undo(
            ctx, attention, ctx.before_attention, second, first, d_second, d_first
        )
        ctx.outputs.put(first, second)
        return None, None, None, d_first, d_second, *g_att, *g_feed


def _undo(
    ctx: Any,
    half: Half,
    random: Any,
    x: Tensor,
    stream: Tensor,
    d_x: Tensor,
    d_stream: Tensor,
) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
    """Return the stream before ``half`` was added, the gradient of ``x``, the parameters'."""
    parameters = [p for p in half.parameters() if p.requires_grad]
    with torch.enable_grad(), _as_before(random, x), ctx.settings.again():
        x = x.detach().requires_grad_()
        added = half(x, ctx.run) * half.scale
    found = torch.autograd.grad(added, [x, *parameters], d_stream, allow_unused=True)
    by_parameter = dict(zip(map(id, parameters), found[1:], strict=True))
    before = stream - added.detach()
    d_x = d_x if found[0] is None else d_x + found[0]
    return before, d_x, [by_parameter.get(id(p)) for p in half.parameters()]


class _Mean(torch.autograd.Function):
    """The end of the layers: keeps the outputs, from which all else is computed back."""

    @staticmethod
    def forward(ctx: Any, outputs: _Outputs, first: Tensor, second: Tensor) -> Tensor:
        ctx.outputs = outputs
        ctx.save_for_backward(first, second)
        return (first + second) / 2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.outputs.put(*ctx.saved_tensors)
        return None, grads[0] / 2, grads[0] / 2


class _Settings:
    """Autocast as it was in the forward pass."""

    def __init__(self, like: Tensor) -> None:
        self.device = like.device.type
        self.enabled = torch.is_autocast_enabled(self.device)
        self.dtype = torch.get_autocast_dtype(self.device)
        self.cache = torch.is_autocast_cache_enabled()

    def again(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, self.enabled, self.cache)


def _random_state(like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the states of the generators that dropout draws from."""
    other = torch.cuda.get_rng_state(like.device) if like.is_cuda else None
    return torch.get_rng_state(), other


@contextmanager
def _as_before(state: tuple[Tensor, Tensor | None], like: Tensor) -> Iterator[None]:
    """Draw as from ``state``, and leave the generators as they were."""
    with ExitStack() as stack:
        devices = [like.device] if like.is_cuda else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], like.device)
        yield

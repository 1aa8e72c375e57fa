"""A moving average of the weights that are trained."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class Ema:
    """The exponential moving average of parameters, kept beside them.

    The average is float32 at least: in bfloat16 a decay of 0.999 would round every change away.
    It begins quickly: at step s the decay is min(decay, (1 + s) / (10 + s)), as in TensorFlow's
    ``ExponentialMovingAverage``. Parameters sharded by FSDP2 have averages sharded alike.

    Args:
        named: Names and parameters, as of ``module.named_parameters()``; those that are trained.
        decay: Of the average at each step, at least 0 and below 1.
    """

    def __init__(self, named: Iterable[tuple[str, torch.Tensor]], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self._named = {name: p for name, p in named if p.requires_grad}
        self._average = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self._named.items()
        }

    def decay_at(self, step: int) -> float:
        """Return the decay of the update after optimizer step ``step``, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after optimizer step ``step``, counted from 0."""
        weight = 1 - self.decay_at(step)
        averages = list(self._average.values())
        now = [p.detach().to(a.dtype) for a, p in zip(averages, self._named.values(), strict=True)]
        torch._foreach_lerp_(averages, now, weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the parameters hold the average for a while; then they hold, bit for bit, theirs."""
        with torch.no_grad():
            kept = {name: p.detach().clone() for name, p in self._named.items()}
            for name, p in self._named.items():
                p.copy_(self._average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self._named.items():
                    p.copy_(kept[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the average itself: for a checkpoint, and to be filled from one."""
        return dict(self._average)

"""The draw from a VAE's posterior."""

from collections.abc import Mapping
from typing import Any, Final

import torch

LOGVAR: Final = (-30.0, 20.0)
"""Bounds of the log-variance, diffusers' (``DiagonalGaussianDistribution``)."""


def draw_latents(
    entry: Mapping[str, Any], rng: torch.Generator | None, draw: bool = True
) -> torch.Tensor | list[torch.Tensor]:
    """Return latents, float32: drawn from the posterior (``mean + exp(logvar / 2) * noise``).

    Args:
        entry: ``mean``, and ``logvar`` where it was kept: [B, C, h, w], or lists of [C, h, w].
        rng: Of the noise, on the same device.
        draw: Whether to draw; otherwise, and where there is no log-variance, it is the mean.

    Raises:
        ValueError: There is something to draw and nothing to draw it by.
    """
    mean, logvar = entry["mean"], entry.get("logvar")
    if logvar is None or not draw:
        return [m.float() for m in mean] if isinstance(mean, list) else mean.float()
    if rng is None:
        raise ValueError(
            "latents are drawn from the posterior by the batch's own generator: have fill called "
            "by loader.on_device(device, cache.fill), give rng=, or LatentCache(…, draw=False)"
        )
    if isinstance(mean, list):
        return [_drawn(m, v, rng) for m, v in zip(mean, logvar, strict=True)]
    return _drawn(mean, logvar, rng)


def _drawn(mean: torch.Tensor, logvar: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    noise = torch.randn(mean.shape, generator=rng, device=mean.device, dtype=torch.float32)
    return mean.float() + torch.exp(0.5 * logvar.float().clamp(*LOGVAR)) * noise

"""Flow matching: noised latents, their target, the loss, and which noise levels are trained at.

Of rectified flow (Liu et al. 2022; Esser et al. 2024) as FLUX.1 has it: noise level 0 is the image,
1 is noise, and the model tells the velocity between them. All draws come in as arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from .flow_shift import flux_mu, shift_sigmas

TOKEN = 16
"""Pixels along each side of the patch that one token of FLUX.1 stands for."""

TimestepKind = Literal["uniform", "logit_normal", "sigmoid", "shift", "resolution"]


@dataclass(frozen=True, kw_only=True)
class TimestepSampling:
    """How the noise levels of training are spread over 0 to 1; ``sampling(uniform, tokens)``.

    Each level is made of one uniform draw u, with z = the normal quantile of u:

    - ``uniform``: u itself (torchtitan; diffusers' weighting ``none``);
    - ``logit_normal``: sigmoid(mean + std * z) (Esser et al. 2024; diffusers);
    - ``sigmoid``: sigmoid(std * z), the name that kohya's trainers give it, std being their
      ``sigmoid_scale``;
    - ``shift``: ``logit_normal``, then s -> shift * s / (1 + (shift - 1) * s), more noise where
      shift is above 1 (kohya; its ``discrete_flow_shift`` of FLUX.1 is 3.1582);
    - ``resolution``: ``logit_normal``, then the shift by `flux_mu` of the image's own tokens, as
      FLUX.1 samples (kohya's ``flux_shift``).
    """

    kind: TimestepKind = "logit_normal"
    """Which of them."""
    mean: float = 0.0
    """Of the normal draw: above 0 is more noise."""
    std: float = 1.0
    """Of the normal draw: above 1 spreads the levels towards 0 and 1."""
    shift: float = 3.0
    """Of ``shift``; 1 changes nothing."""

    def __post_init__(self) -> None:
        kinds = TimestepKind.__args__  # type: ignore[attr-defined]
        if self.kind not in kinds:
            raise ValueError(f"kind must be one of {list(kinds)}, got {self.kind!r}")
        if not self.std > 0:
            raise ValueError(f"std must be above 0, got {self.std}")
        if not self.shift > 0:
            raise ValueError(f"shift must be above 0, got {self.shift}")
        if self.kind in ("uniform", "sigmoid") and self.mean != 0:
            raise ValueError(f"{self.kind} has no mean, got {self.mean}: logit_normal has one")
        if self.kind == "uniform" and self.std != 1:
            raise ValueError(f"uniform has no std, got {self.std}: logit_normal has one")
        if self.kind != "shift" and self.shift != 3.0:
            raise ValueError(f"{self.kind} has no shift, got {self.shift}: kind='shift' has one")

    def __call__(self, uniform: torch.Tensor, image_seq_len: int) -> torch.Tensor:
        """Return noise levels, float32 [B], in [0, 1].

        Args:
            uniform: Draws in [0, 1), float64 [B], one a sample.
            image_seq_len: Tokens of the images: (height / 16) * (width / 16).
        """
        draws = uniform.to(torch.float64)
        if self.kind == "uniform":
            return draws.float()
        sigmas = torch.sigmoid(self.mean + self.std * torch.special.ndtri(draws))
        if self.kind == "shift":
            sigmas = self.shift * sigmas / (1 + (self.shift - 1) * sigmas)
        elif self.kind == "resolution":
            sigmas = shift_sigmas(sigmas, flux_mu(image_seq_len))
        return sigmas.float()


def fixed_sigmas(count: int) -> torch.Tensor:
    """Return the middles of ``count`` equal parts of 0 to 1, float32 [count], for validation.

    Raises:
        ValueError: If ``count`` is less than 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    return ((torch.arange(count, dtype=torch.float64) + 0.5) / count).float()


def noised(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Return ``(1 - sigma) * latents + sigma * noise``, in float32: what the model is shown.

    Args:
        latents: Scaled for the transformer, [B, ...].
        noise: Standard normal, of the same shape.
        sigmas: Noise levels, [B], in [0, 1].
    """
    _check_shapes(latents, noise, "noise")
    levels = sigmas.float().reshape(-1, *(1,) * (latents.ndim - 1))
    return (1 - levels) * latents.float() + levels * noise.float()


def velocity(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return ``noise - latents``, in float32: what the model shall tell, at each noise level."""
    _check_shapes(latents, noise, "noise")
    return noise.float() - latents.float()


def flow_loss(
    predicted: torch.Tensor,
    target: torch.Tensor,
    *,
    masks: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the squared error of each sample, float32 [B], a mean over its tokens and channels.

    Args:
        predicted: The model's answer as tokens, [B, n, C]; computed with in float32 whatever it is.
        target: From `velocity`, of the same shape.
        masks: How much each token counts, [B, n], from `token_masks`: the mean is then over the
            masked region, so a small region counts as much as a whole image, and a mask of ones
            changes nothing. Of a sample whose mask is all zero the loss is 0, and so is its
            gradient.
        weights: What each sample's loss is multiplied by, [B].

    Raises:
        ValueError: If the shapes do not fit.
    """
    _check_shapes(predicted, target, "target")
    errors = F.mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=2)  # [B, n]
    if masks is None:
        losses = errors.sum(dim=1) / errors.shape[1]
    else:
        _check_shapes(errors, masks, "masks")
        counts = masks.to(errors)
        area = counts.sum(dim=1)
        whole = torch.where(area > 0, area, torch.ones_like(area))
        losses = (errors * counts).sum(dim=1) / whole
    if weights is not None:
        _check_shapes(losses, weights, "weights")
        losses = losses * weights.to(losses)
    return losses


def token_masks(masks: torch.Tensor) -> torch.Tensor:
    """Return how much of each token's 16 x 16 pixels is in the region, float32 [B, n] in [0, 1].

    Args:
        masks: [B, 1, H, W] of the image's pixels: uint8 with 255 for inside (as decoded), bool, or
            floats in [0, 1].

    Raises:
        ValueError: If it is of another shape, or a side is no multiple of 16.
    """
    if masks.ndim != 4 or masks.shape[1] != 1 or masks.shape[2] % TOKEN or masks.shape[3] % TOKEN:
        raise ValueError(
            f"masks must be [B, 1, H, W] with H and W multiples of {TOKEN}, got {list(masks.shape)}"
        )
    inside = masks.float() / 255 if masks.dtype == torch.uint8 else masks.float()
    return F.avg_pool2d(inside, TOKEN).flatten(1)


def validation_losses(
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    latents: torch.Tensor,
    noise: torch.Tensor,
    *,
    count: int,
    masks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `flow_loss` at each of the noise levels of `fixed_sigmas`, float32 [B, count].

    The levels are gone through one by one, so it takes the memory of one.

    Args:
        model: Takes noised tokens [B, n, C] and noise levels [B], gives velocities [B, n, C].
        latents: Packed tokens, [B, n, C].
        noise: Of the same shape; the same one each time makes figures that can be compared.
        count: How many noise levels.
        masks: As in `flow_loss`.
    """
    target = velocity(latents, noise)
    losses = []
    for sigma in fixed_sigmas(count).tolist():
        sigmas = torch.full((latents.shape[0],), sigma, device=latents.device)
        predicted = model(noised(latents, noise, sigmas), sigmas)
        losses.append(flow_loss(predicted, target, masks=masks))
    return torch.stack(losses, dim=1)


def _check_shapes(one: torch.Tensor, other: torch.Tensor, name: str) -> None:
    # A shape that broadcasts would give a loss, of something else.
    if one.shape != other.shape:
        raise ValueError(f"{name} must be {list(one.shape)}, got {list(other.shape)}")

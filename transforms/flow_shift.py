"""The timestep shift of flow matching: larger images are noised more."""

import math

import torch


def flux_mu(
    image_seq_len: int,
    *,
    base_seq_len: int = 256,
    max_seq_len: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """Return mu of the timestep shift for a sequence of so many image tokens.

    A line through (base_seq_len, base_shift) and (max_seq_len, max_shift), not clamped: 0.5 at
    256 x 256 pixels, 1.15 at 1024 x 1024. The numbers are those of BFL's flux
    (``sampling.get_schedule``) and of diffusers' ``calculate_shift``; SD3 uses the same.

    Args:
        image_seq_len: Image tokens: (height / 16) * (width / 16).
        base_seq_len: Tokens at which mu is ``base_shift``.
        max_seq_len: Tokens at which mu is ``max_shift``.
        base_shift: mu at ``base_seq_len``.
        max_shift: mu at ``max_seq_len``.
    """
    slope = (max_shift - base_shift) / (max_seq_len - base_seq_len)
    return image_seq_len * slope + (base_shift - slope * base_seq_len)


def flux2_mu(image_seq_len: int, num_steps: int) -> float:
    """Return mu of FLUX.2's sampling schedule.

    Between two fitted lines, for 10 and for 200 steps, and beyond; above 4300 tokens the latter
    alone. From BFL's flux2 (``sampling.compute_empirical_mu``).

    Args:
        image_seq_len: Image tokens: (height / 16) * (width / 16).
        num_steps: Sampling steps.
    """
    at_200 = 0.00016927 * image_seq_len + 0.45666666
    if image_seq_len > 4300:
        return at_200
    at_10 = 8.73809524e-05 * image_seq_len + 1.89833333
    slope = (at_200 - at_10) / 190.0
    return slope * num_steps + (at_200 - 200.0 * slope)


def shift_sigmas(sigmas: torch.Tensor, mu: float) -> torch.Tensor:
    """Return noise levels shifted by ``mu``: ``e^mu / (e^mu + 1/sigma - 1)``.

    As BFL's ``time_shift`` and diffusers' FlowMatchEulerDiscreteScheduler do with their exponential
    shift. 0 stays 0 and 1 stays 1.

    Args:
        sigmas: Floats in [0, 1], any shape.
        mu: From `flux_mu`; 0 changes nothing.
    """
    return math.exp(mu) / (math.exp(mu) + (1 / sigmas - 1))

"""The number format that a run computes in."""

from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Return what products are computed in.

    Raises:
        ValueError: No such precision, or the GPU has no bfloat16.
    """
    if precision == "fp32":
        return torch.float32
    if precision != "bf16":
        raise ValueError(f"precision must be bf16 or fp32, got {precision!r}")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: set precision fp32"
        )
    return torch.bfloat16


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return a context in which products are computed in ``dtype``; float32 changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

"""The optimizers that recipes offer, by name."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

Kind = Literal["adamw", "adamw8bit", "adamw8bit_ao", "adamw4bit_ao"]


def make_optimizer(
    kind: Kind,
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay: float = 0.01,
) -> torch.optim.Optimizer:
    """Return an optimizer of these parameters.

    Weight decay (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101) is for matrices alone:
    biases, norms and other vectors have none.

    Args:
        kind: ``adamw``; ``adamw8bit`` (bitsandbytes, CUDA): states of 8 bits
            (https://arxiv.org/abs/2110.02861); ``adamw8bit_ao`` and ``adamw4bit_ao`` (torchao):
            states of 8 or 4 bits on any device, compiled at the first step.
        named: Names and parameters to train.
        rate: Learning rate.
        betas: Decays of the two moments.
        eps: Added to the root of the second moment.
        decay: Weight decay of matrices.

    Raises:
        ValueError: An unknown kind, or one that cannot train these parameters.
        ImportError: The package of this kind is not installed.
    """
    parameters = dict(named)
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("there is no parameter to train")
    first = next(iter(parameters.values()))
    if kind == "adamw":
        return torch.optim.AdamW(
            groups, lr=rate, betas=betas, eps=eps, fused=first.device.type == "cuda"
        )
    if kind not in ("adamw8bit", "adamw8bit_ao", "adamw4bit_ao"):
        raise ValueError(
            f"optimizer must be adamw, adamw8bit, adamw8bit_ao or adamw4bit_ao, got {kind!r}"
        )
    if any(isinstance(p, DTensor) for p in parameters.values()):
        raise ValueError(
            f"optimizer {kind} keeps states that cannot be saved in parts: take adamw with fsdp, "
            "which splits its states among the ranks, or ddp"
        )
    if kind == "adamw8bit":
        return _bitsandbytes(groups, first, rate, betas, eps)
    try:
        from torchao.optim import AdamW4bit, AdamW8bit
    except ImportError as error:
        raise ImportError(f"optimizer {kind} needs torchao: pip install torchao") from error
    small = AdamW8bit if kind == "adamw8bit_ao" else AdamW4bit
    return small(groups, lr=rate, betas=betas, eps=eps)  # type: ignore[no-any-return]


def _bitsandbytes(
    groups: list[dict[str, object]],
    first: nn.Parameter,
    rate: float,
    betas: tuple[float, float],
    eps: float,
) -> torch.optim.Optimizer:
    if first.device.type != "cuda":
        raise ValueError(
            f"optimizer adamw8bit is for CUDA and the parameters are on {first.device.type}: take "
            "adamw or adamw8bit_ao"
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(
            "optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes"
        ) from error
    return AdamW8bit(groups, lr=rate, betas=betas, eps=eps)  # type: ignore[no-any-return]

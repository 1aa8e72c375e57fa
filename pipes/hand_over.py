"""Handing batches from a worker to the trainer's process."""

from typing import Any

import numpy as np
import torch

SMALL = 1 << 16
"""Most bytes of a tensor that goes with the batch's other fields. A larger one goes in shared
memory, a file of its own that the other process must ask for: that takes longer than this copy."""


def hand_over(value: Any) -> Any:
    """Return a batch, or a field, its small tensors replaced by what is unpickled as them."""
    if type(value) is torch.Tensor:
        return _Small(value) if _is_small(value) else value
    if type(value) is dict:
        return {key: hand_over(part) for key, part in value.items()}
    if type(value) is list and value and isinstance(value[0], torch.Tensor | dict):
        return [hand_over(part) for part in value]
    return value


def _is_small(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.nbytes <= SMALL
        and not (tensor.requires_grad or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
    )


class _Small:
    """A tensor that is pickled as its bytes."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        flat = self.tensor.contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().tobytes()
        return _tensor, (data, self.tensor.dtype, tuple(self.tensor.shape))


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    own = np.frombuffer(data, np.uint8).copy()
    return torch.from_numpy(own).view(dtype).view(shape)

"""How many bytes of tensors a computation would take at most, without taking them.

The computation runs on fake tensors, which have shapes and no data. So its layers, what autograd
keeps for the backward pass, and what passes away in between are counted as they are, and no formula
can fall behind them; what an allocator adds (blocks' rounding, fragments) is not counted.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


def peak_bytes(
    build: Callable[[], Callable[[], object]], known: Callable[[], Iterable[torch.Tensor]]
) -> int:
    """Return the most bytes that were alive at once while ``build()()`` ran, beyond the known.

    Args:
        build: Called where every new tensor is a fake one on the CPU; returns what is counted. Of
            it kernels are chosen as on the CPU: attention without a matrix of queries by keys, as
            on a GPU.
        known: Called after it: tensors that are counted elsewhere, such as weights and gradients.
    """
    with FakeTensorMode():
        compute = build()
        count = _Count(known())
        with count:
            compute()
    return count.peak


def fake_parameters(module: torch.nn.Module, gradients: bool = True) -> None:
    """Put fake parameters in place of a module's, which may be on the meta device.

    Those that are trained have gradients already: as after the first of several batches of a step.

    Args:
        module: Changed.
        gradients: Whether to make the gradients.
    """
    for part in module.modules():
        for kind in (part._parameters, part._buffers):
            tensors: dict[str, Any] = kind
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = _fake(tensor, gradients)


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations give, until each is freed."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # held, so their ids stay
        self._alive = {storage._cdata: 0 for storage in self._known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, out)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number in self._alive:
            return
        self._alive[number] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, number)

    def _freed(self, number: int) -> None:
        self.now -= self._alive.pop(number)


def _fake(tensor: torch.Tensor, gradients: bool) -> torch.Tensor:
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if not isinstance(tensor, torch.nn.Parameter):
        return made
    parameter = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    if gradients and tensor.requires_grad:
        parameter.grad = torch.empty_like(made)
    return parameter

"""An optimizer's state, by the parameters' names: tensors for safetensors, the rest for JSON."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def pack_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return an optimizer's state: its own tensors by ``parameter/key``, and the rest.

    Learning rates, decays and the like are the run's arguments and no state: they are not in it.

    Args:
        optimizer: Of any kind whose state lies in its ``state``.
        named: The names of its parameters.

    Returns:
        The tensors, DTensors where the parameters are; and what JSON can hold: the other values by
        parameter, ``{name: {key: number or None}}``, for each parameter that has a state.

    Raises:
        ValueError: A parameter without a name.
        TypeError: A state of a kind that cannot be saved.
    """
    names = {id(p): name for name, p in named.items()}
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, Any] = {}
    for p, state in optimizer.state.items():
        if id(p) not in names:
            raise ValueError(f"a parameter {list(p.shape)} of the optimizer has no name")
        values = rest[names[id(p)]] = {}
        for key, value in state.items():
            name = f"{names[id(p)]}/{key}"
            if isinstance(value, torch.Tensor):
                tensors.update(_plain(name, value))
            elif value is None or isinstance(value, bool | int | float | str):
                values[key] = value
            else:
                raise TypeError(f"state {name} is a {type(value).__name__}, which is not saved")
    return tensors, rest


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, torch.Tensor], rest: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Give an optimizer its state's other values; return the tensors that are to be filled.

    The optimizer makes the tensors itself, in a step of rate 0 with gradients of zeros, so they are
    of its own kinds, on their devices. Fill the parameters afterwards, not before.

    Args:
        optimizer: A new one.
        named: The names of its parameters.
        rest: From `pack_optimizer`.

    Raises:
        ValueError: The state is of other parameters.
    """
    unknown = sorted(set(rest) - set(named))
    if unknown:
        raise ValueError(
            f"the optimizer's state is of {len(unknown)} parameters that this model does not train,"
            f" for one {unknown[0]}: resume with the same model and the same LoRA layers"
        )
    _make_state(optimizer, [named[name] for name in rest])
    for name, values in rest.items():
        optimizer.state[named[name]].update(values)
    return pack_optimizer(optimizer, named)[0]


@torch.no_grad()
def _make_state(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> None:
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        rate = group["lr"]
        group["lr"] = torch.zeros_like(rate) if isinstance(rate, torch.Tensor) else 0.0
        for p in group["params"]:
            p.grad = None
    for p in parameters:
        p.grad = torch.zeros_like(p)
    try:
        optimizer.step()
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)


def _plain(name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that a state's tensor is made of, with their names."""
    if isinstance(value, DTensor):
        if is_traceable_wrapper_subclass(value.to_local()):
            raise TypeError(f"state {name} is quantized and split among ranks, which is not saved")
        yield name, value
    elif is_traceable_wrapper_subclass(value):  # torchao's quantized states
        for inner in value.__tensor_flatten__()[0]:
            yield from _plain(f"{name}/{inner}", getattr(value, inner))
    else:
        yield name, value

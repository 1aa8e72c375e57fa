"""One model on several ranks: DDP, FSDP2, accumulated gradients."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from .world import World

Mode = Literal["ddp", "fsdp"]

# Buffers are not sent round at each step; torch 2.15 has another name for this.
_NEW = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW else "broadcast_buffers": False}


def parallelize(
    module: nn.Module,
    world: World,
    *,
    mode: Mode = "ddp",
    blocks: Sequence[type[nn.Module]] = (),
    dtype: torch.dtype | None = None,
    compile: bool = False,
    backend: str = "inductor",
) -> nn.Module:
    """Return the module on the world's device, ready to be trained by all ranks.

    With one rank it is the module itself. Call what is returned, not a method of it: gradients are
    averaged over the ranks when its backward ends. FSDP2 splits weights, gradients and optimizer
    states among the ranks and must come before the optimizer is made. Make the trained weights
    from a seed, the same on all ranks (DDP takes rank 0's).

    Args:
        module: With ``requires_grad`` set as it is to be trained.
        world: The ranks.
        mode: ``ddp``: each rank holds all; ``fsdp``: each holds a part.
        blocks: Kinds of the repeated submodules. FSDP2 gathers one at a time, and compiling each
            takes a fraction of the time that compiling the whole does.
        dtype: What FSDP2 gathers weights in; sums of gradients stay float32. None: the weights'.
            DDP leaves this to autocast.
        compile: Whether to compile the blocks (or, without, the module) in place.
        backend: torch.compile's.

    Raises:
        ValueError: Unknown mode, nothing to train, no such blocks in it, or (FSDP2) other weights
            on other ranks.
    """
    if mode not in ("ddp", "fsdp"):
        raise ValueError(f"mode must be ddp or fsdp, got {mode!r}")
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(f"{type(module).__name__} has no parameter that requires a gradient")
    parts = [m for m in module.modules() if isinstance(m, tuple(blocks))]
    if blocks and not parts:
        kinds = ", ".join(kind.__name__ for kind in blocks)
        raise ValueError(f"{type(module).__name__} has no {kinds}: say which blocks it repeats")
    if compile:
        for part in parts or [module]:
            part.compile(backend=backend)
    if world.size == 1:
        return module.to(world.device)
    if mode == "fsdp":
        _check_same(trained, world)
        return _sharded(module, parts, world, dtype)
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(
        module.to(world.device),
        device_ids=devices,
        gradient_as_bucket_view=True,
        **_BUFFERS,
    )


def bare(module: nn.Module) -> nn.Module:
    """Return the module that was parallelized: its parameters' names are those it began with."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, the same under every mode."""
    return {name: p for name, p in bare(module).named_parameters() if p.requires_grad}


@contextmanager
def accumulating(module: nn.Module, *, last: bool, keep_whole: bool = True) -> Iterator[None]:
    """Run one of a step's batches, forward and backward; only after the last do the ranks talk.

    Args:
        module: From `parallelize`.
        last: Whether this is the step's last batch.
        keep_whole: With FSDP2: keep whole gradients until the last batch. False splits them after
            each one: less memory, more traffic.
    """
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last or not keep_whole)
    yield


@torch.no_grad()
def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply all gradients.

    The ranks' gradients are averaged over the ranks. Where each batch's loss is a sum over its
    samples, the factor world.size / (samples of the step, on all ranks) makes the gradient that of
    the mean over all of them, however they lie in batches and ranks.
    """
    gradients = _local(p.grad for p in parameters if p.grad is not None)
    if gradients:
        torch._foreach_mul_(gradients, factor)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """Return the norm of all gradients together, which is then at most ``max_norm``. A collective.

    It is computed in float32 at least, over all parts that FSDP2 made. A norm that is not finite is
    returned, and the gradients are left alone: make no step with them.

    Args:
        parameters: All that are trained.
        max_norm: None: only measure.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    norms = torch._foreach_norm(_local(gradients), 2, dtype=wide)
    squares = torch.stack([norm.to(wide).square() for norm in norms])
    split = [isinstance(g, DTensor) for g in gradients]
    if any(split):
        mine = torch.tensor(split, device=squares.device)
        parts = squares[mine].sum()
        first = next(g for g in gradients if isinstance(g, DTensor))
        torch.distributed.all_reduce(parts, group=first.device_mesh.get_group())
        norm = float((parts + squares[~mine].sum()).sqrt())
    else:
        norm = float(squares.sum().sqrt())
    if max_norm is not None and max_norm < norm < float("inf"):
        torch._foreach_mul_(_local(gradients), max_norm / norm)
    return norm


def _local(gradients: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return this rank's parts of what FSDP2 split, in the same memory."""
    return [g.to_local() if isinstance(g, DTensor) else g for g in gradients]


def _sharded(
    module: nn.Module, parts: list[nn.Module], world: World, dtype: torch.dtype | None
) -> nn.Module:
    policy = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=None if dtype is None else torch.promote_types(dtype, torch.float32),
        # Inputs come as the model makes them: rotary tables stay float32.
        cast_forward_inputs=False,
    )
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in [*parts, module]:
        fully_shard(part, mesh=mesh, mp_policy=policy)
    return module.to(world.device)


def _check_same(trained: dict[str, nn.Parameter], world: World) -> None:
    """Look whether the sums of the weights agree: those of another seed never do."""
    here = {name: float(p.detach().to(torch.float64).sum()) for name, p in trained.items()}
    first = world.from_main(here)
    if world.any(here != first):
        wrong = [name for name in here if here[name] != first.get(name)]
        named = f", for one {wrong[0]} on rank {world.rank}" if wrong else ""
        raise ValueError(
            f"the ranks begin with different weights{named}: make them from the same seed"
        )

"""The processes of one run: who this one is, and what they agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ...pipes.rank import place_of

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long a rank waits for another: one may be writing a large checkpoint."""


@dataclass(frozen=True)
class World:
    """One process among those of a run.

    What the ranks tell one another here is CPU data, which goes through gloo on any machine: it
    never waits for a GPU's queue.

    Attributes:
        rank: Number of this process.
        size: How many there are.
        device: Where it computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.sum(0.0)

    def sum(self, *values: float) -> list[float]:
        """Return each value summed over all ranks, in float64. A collective."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def mean(self, total: float | torch.Tensor, count: int) -> float:
        """Return the mean over all ranks of what sums up to ``total`` here. A collective.

        Args:
            total: Sum of this rank's values; a tensor of one element is waited for.
            count: How many values that are; 0 is allowed where another rank has some.
        """
        whole, n = self.sum(float(total), float(count))
        return whole / n if n else float("nan")

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank. A collective."""
        return self.sum(float(flag))[0] > 0

    def from_main(self, value: T) -> T:
        """Return rank 0's value on every rank. A collective; the value must be picklable."""
        if self.size == 1:
            return value
        box: list[Any] = [value if self.main else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[no-any-return]

    def share(self, batches: int) -> int:
        """Return how many of a step's global batches each rank takes.

        A step is made of the same global batches on any number of ranks, so that a run which is
        resumed on another number of them makes the same steps.

        Args:
            batches: Global batches of one optimizer step, over all ranks.

        Raises:
            ValueError: They cannot be dealt evenly.
        """
        if batches < 1 or batches % self.size:
            near = sorted({max(1, batches // self.size) * self.size, self._above(batches)})
            fit = [n for n in range(1, batches + 1) if batches % n == 0]
            raise ValueError(
                f"{batches} batches a step cannot be dealt evenly to {self.size} ranks: "
                f"take {' or '.join(map(str, near))} batches a step"
                + (f", or {' or '.join(map(str, fit))} ranks" if fit else "")
            )
        return batches // self.size

    def _above(self, batches: int) -> int:
        return max(1, -(-batches // self.size)) * self.size


@contextmanager
def join_world(device: str | torch.device | None = None) -> Iterator[World]:
    """Give this process's place, in a process group where there are several.

    RANK, WORLD_SIZE and LOCAL_RANK are as torchrun sets them; without them there is one process. A
    group that is there already is used, and left as it is. CPU tensors go through gloo, CUDA
    tensors through nccl.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:1``; else CUDA where it is, a GPU a process.

    Raises:
        ValueError: There is no such device, or more processes of this machine than GPUs.
        RuntimeError: Several processes, and nothing says how they reach one another.
    """
    rank, size = place_of(None, None)
    where = _device(device, int(os.environ.get("LOCAL_RANK", rank if size > 1 else 0)), size)
    mine = size > 1 and not dist.is_initialized()
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if mine:
        if "MASTER_ADDR" not in os.environ:
            raise RuntimeError(
                f"WORLD_SIZE is {size}, but MASTER_ADDR is not set: start the run by "
                f"torchrun --nproc-per-node {size} -m penstock.recipes.NAME ..."
            )
        backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield World(rank, size, where)
    finally:
        if mine:
            dist.destroy_process_group()


def _device(device: str | torch.device | None, local: int, size: int) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    if where.type != "cuda":
        return where
    if not torch.cuda.is_available():
        raise ValueError(f"device is {device}, but torch sees no GPU here: say device cpu")
    if size > 1 and where.index is not None:
        raise ValueError(f"device is {device} for each of {size} processes: say cuda")
    index = local if where.index is None else where.index
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"GPU {index} is asked for, and there are {torch.cuda.device_count()} here: start at "
            "most one process a GPU (torchrun --nproc-per-node)"
        )
    return torch.device("cuda", index)

"""Prove on a user's own graph that resuming is exact."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .draws import hash64
from .loader import ElasticDataLoader
from .state import LoaderState, merge_states

MakeLoader = Callable[[int, int, int], ElasticDataLoader]

LEGS: tuple[tuple[int, int], ...] = ((0, 1), (2, 1), (0, 3), (1, 2), (3, 1))
"""(workers, ranks) of the runs that continue each other."""


class ResumeError(AssertionError):
    """A resumed run gave another batch than the uninterrupted one."""


@dataclass(frozen=True)
class ResumeReport:
    """What `verify_resume` did.

    Attributes:
        batches: Number of global batches compared, byte for byte.
        legs: (workers, ranks, first global batch, steps) of each run.
        state_bytes: Size of the largest state, as JSON.
    """

    batches: int
    legs: tuple[tuple[int, int, int, int], ...]
    state_bytes: int

    def __str__(self) -> str:
        lines = [f"{self.batches} global batches are bit-identical to the uninterrupted run's:"]
        lines += [
            f"  {workers} workers, {ranks} rank(s): {steps} steps from batch {first}"
            for workers, ranks, first, steps in self.legs
        ]
        return "\n".join([*lines, f"The largest state was {self.state_bytes} bytes of JSON."])


def verify_resume(
    make_loader: MakeLoader,
    *,
    steps: int = 4,
    legs: Sequence[tuple[int, int]] = LEGS,
    seed: int = 0,
    progress: bool = False,
) -> ResumeReport:
    """Return a report that a graph resumes exactly, or raise.

    One run is uninterrupted, in this process. Others continue each other with other numbers of
    workers and ranks: each is interrupted after a random number of steps, its state goes through
    JSON and through two resumes in a row, and all that comes is compared byte for byte.

    Args:
        make_loader: ``make_loader(num_workers, rank, world_size)`` returns a new loader, such as
            ``lambda w, r, n: pipe.loader(w, rank=r, world_size=n)``.
        steps: Largest number of steps in a leg.
        legs: (workers, ranks) of the runs, in order.
        seed: Seed of where the runs are interrupted.
        progress: Show a progress bar.

    Raises:
        ResumeError: A batch differs; the message names it and the field.
        ValueError: The graph has ``repeat=False`` and ends too early.
    """
    from tqdm import tqdm

    plan = _plan(steps, legs, seed)
    total = sum(count * ranks for _, ranks, count in plan)
    bar = tqdm(total=2 * total, desc="verifying resume", unit="batch", disable=not progress)
    expected: dict[int, dict[str, str]] = {}
    for batch in _endless(make_loader(0, 0, 1), total):
        expected[batch["__batch__"]] = fingerprints(batch)
        bar.update()
    state: LoaderState | None = None
    done, position, largest = [], 0, 0
    for workers, ranks, count in plan:
        loaders = [make_loader(workers, rank, ranks) for rank in range(ranks)]
        if state is not None:
            for loader in loaders:
                _load_twice(loader, state)
        for rank, loader in enumerate(loaders):
            for k, batch in enumerate(_endless(loader, count)):
                _compare(batch, expected, position + k * ranks + rank, (workers, ranks))
                bar.update()
        text = json.dumps(merge_states([loader.state_dict() for loader in loaders]))
        for loader in loaders:
            loader.close()
        state, largest = json.loads(text), max(largest, len(text))
        done.append((workers, ranks, position, count))
        position += count * ranks
    bar.close()
    return ResumeReport(position, tuple(done), largest)


def _plan(steps: int, legs: Sequence[tuple[int, int]], seed: int) -> list[tuple[int, int, int]]:
    """Return (workers, ranks, steps) of each leg; the second one makes no step."""
    if steps < 1 or not legs:
        raise ValueError(f"verify_resume needs at least one step and one leg, got {steps}, {legs}")
    plan = []
    for i, (workers, ranks) in enumerate(legs):
        count = 1 + hash64(seed, i) % steps
        plan.append((workers, ranks, count))
        if i == 0:
            plan.append((workers, ranks, 0))
    return plan


def _endless(loader: ElasticDataLoader, count: int) -> Iterator[dict[str, Any]]:
    """Yield ``count`` batches, over the ends of epochs."""
    left = count
    while left:
        before = left
        for batch in loader:
            yield batch
            left -= 1
            if not left:
                return
        if left == before and not loader.graph.lanes.repeat:
            raise ValueError(f"the graph ended {left} batches early; ask for fewer steps")


def _load_twice(loader: ElasticDataLoader, state: LoaderState) -> None:
    for _ in range(2):
        loader.load_state_dict(state)
        if loader.state_dict() != state:
            raise ResumeError("state_dict() right after load_state_dict(s) is not s")


def _compare(
    batch: dict[str, Any], expected: dict[int, dict[str, str]], g: int, run: tuple[int, int]
) -> None:
    words = f"with {run[0]} workers and {run[1]} rank(s)"
    if batch["__batch__"] != g:
        raise ResumeError(f"batch {batch['__batch__']} came {words} where batch {g} was due")
    found = fingerprints(batch)
    differ = sorted(
        k for k in found.keys() | expected[g].keys() if found.get(k) != expected[g].get(k)
    )
    if differ:
        raise ResumeError(
            f"batch {g} {words} is not the uninterrupted run's: {', '.join(differ)} differ. A "
            "function of the graph draws from a generator of its own, or depends on time, on the "
            f"process or on earlier calls. Its samples are {batch['__key__']}"
        )


def fingerprints(batch: dict[str, Any]) -> dict[str, str]:
    """Return a hash of each field of a batch, of every byte, type and shape."""
    return {name: _digest(value) for name, value in batch.items()}


def _digest(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    digest.update(f"<{type(value).__name__}".encode())
    if isinstance(value, torch.Tensor):
        whole = value.detach().cpu().contiguous()
        digest.update(f"{whole.dtype}{tuple(whole.shape)}".encode())
        digest.update(whole.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        for key, inner in value.items():
            _feed(digest, key)
            _feed(digest, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _feed(digest, inner)
    elif isinstance(value, bytes):
        digest.update(value)
    else:
        digest.update(repr(value).encode())
    digest.update(b">")

"""Functions of the user's own: on samples, and on batches."""

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .draws import Draws
from .pipe import Pipe
from .sample import Sample
from .slot import Slot
from .work import WorkPipe


class Mapper(WorkPipe):
    """Yields samples that went through a function, one at a time (``.map(fn)``).

    Mind the names: ``map`` is per SAMPLE, ``transform`` is per BATCH. torchvision's transforms of
    single images go into ``map``.

    While ``fn`` runs, the default generators of Python, numpy and torch (CPU) are seeded from
    (seed, ref) and put back afterwards, so a torchvision v2 chain with random parts is exact too. A
    function with a parameter ``rng`` is given a numpy Generator seeded likewise.

    Args:
        source: Pipe of the work half.
        fn: ``fn(sample)`` or ``fn(sample, rng)``; returns the sample. It may raise `DataError`.
        keeps_caption: Say that ``fn`` leaves ``caption`` as it is, so that the graph's captions can
            be listed (`caption_variants`). Where it does not, that is an error.
    """

    def __init__(
        self, source: Pipe, fn: Callable[..., Sample], *, keeps_caption: bool = False
    ) -> None:
        _check_callable("map", fn)
        self.source: Pipe = source
        self.fn = fn
        self.keeps_caption = keeps_caption
        self._takes_rng = takes_rng(fn)

    def arguments(self) -> dict[str, Any]:
        # What is promised of the function is no difference.
        return {k: v for k, v in super().arguments().items() if k != "keeps_caption"}

    def work(self, sample: Sample, draws: Draws, slot: Slot) -> Sample:
        before = sample.get("caption")
        with seeded(draws.bits("map")):
            out = (
                self.fn(sample, rng=draws.generator("map.rng"))
                if self._takes_rng
                else self.fn(sample)
            )
        if not isinstance(out, dict):
            raise TypeError(
                f"a mapped function must return the sample, a dict; got {type(out).__name__}"
            )
        if self.keeps_caption and out.get("caption") != before:
            raise ValueError(
                f".map(…, keeps_caption=True): the function made {out.get('caption')!r:.80} of the "
                f"caption {before!r:.80}; leave keeps_caption=True out"
            )
        return out


class Transformer(WorkPipe):
    """Yields batches that went through a function (``.transform(t)``).

    Mind the names: ``transform`` is per BATCH, ``map`` is per SAMPLE. Model transforms such as
    FluxTransform go in here. Random generators are seeded as in `Mapper`, by the batch's first ref.

    Args:
        source: Pipe of the work half.
        t: ``t(batch)`` or ``t(batch, rng)``; takes the collated dict and returns one.
            ``__key__``, ``__url__`` and ``__batch__`` are kept whatever it returns.
    """

    per = "batch"

    def __init__(self, source: Pipe, t: Callable[..., Any]) -> None:
        _check_callable("transform", t)
        self.source: Pipe = source
        self.t = t
        self._takes_rng = takes_rng(t)

    def work(self, sample: Sample, draws: Draws, slot: Slot) -> Sample:
        raise TypeError("a transform works on batches")

    def work_batch(self, batch: dict[str, Any], draws: Draws) -> Any:
        """Return what the function makes of the batch."""
        with seeded(draws.bits("transform")):
            if self._takes_rng:
                return self.t(batch, rng=draws.generator("transform.rng"))
            return self.t(batch)


def takes_rng(fn: Callable[..., Any]) -> bool:
    """Return whether ``fn`` has a parameter named ``rng``."""
    try:
        return "rng" in inspect.signature(fn).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's default generators for the body, then put them back."""
    torch_generator: torch.Generator = torch.random.default_generator  # type: ignore[attr-defined]
    # The global numpy generator is what other people's code draws from.
    numpy_state = np.random.get_state()  # noqa: NPY002
    before = random.getstate(), numpy_state, torch_generator.get_state()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    torch_generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch_generator.set_state(before[2])


def _check_callable(method: str, fn: Any) -> None:
    if not callable(fn):
        raise TypeError(f".{method}() takes a function, got {type(fn).__name__}")

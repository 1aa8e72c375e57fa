"""The work half: a batch of refs becomes a batch of tensors.

It is a pure function of the batch's refs and the seed, so any number of processes can run it, and
none of it is ever in a checkpoint.
"""

from abc import abstractmethod
from collections.abc import Callable
from itertools import chain
from typing import Any, Literal

import torch

from .ahead import Samples, fetching
from .collate import collate
from .draws import Draws
from .errors import DataError, name_sample
from .order import Batch, Skipped
from .pipe import Pipe
from .recycled import Recycled
from .sample import KEY, REF, URL, Ref, Sample
from .slot import BatchMemory, Slot
from .urls import base_name

BATCH = "__batch__"
FILLED = "__filled__"


class WorkPipe(Pipe):
    """A pipe of the work half.

    ``per`` says whether `work` takes samples or `work_batch` takes batches.
    """

    half = "work"
    per: Literal["sample", "batch"] = "sample"
    source: Pipe

    @abstractmethod
    def work(self, sample: Sample, draws: Draws, slot: Slot) -> Sample:
        """Return the sample with this step's work done. It may raise `DataError`."""

    def work_batch(self, batch: dict[str, Any], draws: Draws) -> Any:
        """Return the batch with this step's work done, where ``per`` is ``"batch"``."""
        raise TypeError(f"{type(self).__name__} works on samples")


class Decoding(WorkPipe):
    """A pipe that begins the work half: it turns extents into values."""

    def begin(self, sample: Sample) -> Sample:
        """Return the sample with those of its small fields loaded that need no draws.

        It is called for all samples of a batch, one right after another, before `work` is for any:
        between images, each time, this code would have left the processor's caches.
        """
        return sample

    def image_size(self) -> tuple[int, int] | None:
        """Return the (height, width) that all images get, or None."""
        return None

    def check(self, bucketed: bool) -> None:
        """Refuse arguments that do not fit the order half (``bucketed``: it gives sizes)."""

    def masks(self) -> bool:
        """Return whether masks are made."""
        return False

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch whose samples have gone through all that works on samples."""
        return batch


def numbered(pipes: list[WorkPipe]) -> list[tuple[WorkPipe, int]]:
    """Return each pipe with how many of its kind stand before it: two of a kind draw apart."""
    return [(p, sum(type(q) is type(p) for q in pipes[:i])) for i, p in enumerate(pipes)]


class Workshop:
    """Runs a graph's work half on one batch after another.

    Args:
        pipes: The work half's pipes, in order.
        seed: The graph's seed.
        on_error: What a sample's bad data does.
        shared: Make tensors in shared memory, so that handing them to another process copies
            nothing.
    """

    def __init__(
        self, pipes: list[WorkPipe], seed: int, on_error: Literal["raise", "skip"], shared: bool
    ) -> None:
        first = pipes[0]
        assert isinstance(first, Decoding)
        self.decoding = first
        self.per_sample = [(p, n) for p, n in numbered(pipes) if p.per == "sample"]
        self.per_batch = [(p, n) for p, n in numbered(pipes) if p.per == "batch"]
        self.seed = seed
        self.on_error = on_error
        self.shared = shared
        self._recycled = Recycled()

    def run(
        self,
        g: int,
        batch: Batch,
        resolve: Callable[[Ref], Sample],
        name: Callable[[Ref], tuple[str, str]],
    ) -> tuple[dict[str, Any], list[Skipped]]:
        """Return global batch ``g`` made from its refs, and what was passed over.

        With ``on_error="skip"`` a bad sample's place is taken by a whole copy of the next good
        sample of the batch, with the random draws of the place; ``__filled__`` lists the places.

        What lies at URLs is fetched for several samples at once, ahead of the one that is worked
        on; it changes nothing else.

        Args:
            g: Number of the batch.
            batch: Its refs.
            resolve: Gives the sample of a ref.
            name: Gives the (url, key) of a ref.

        Raises:
            DataError: A sample is bad and ``on_error`` is ``"raise"``, or all are.
        """
        made = Samples(batch.refs, resolve)
        with fetching(made.far):
            return self._run(g, batch, made.sample, name)

    def _run(
        self,
        g: int,
        batch: Batch,
        resolve: Callable[[Ref], Sample],
        name: Callable[[Ref], tuple[str, str]],
    ) -> tuple[dict[str, Any], list[Skipped]]:
        slots = self._slots(batch)
        skipped: list[Skipped] = []
        bad: set[int] = set()
        causes: dict[int, str] = {}
        samples: list[Sample] = []
        filled: list[int] = []
        n = len(batch.refs)
        begun = [self._begun(ref, resolve) for ref in batch.refs]
        for i in range(n):
            for j in chain(range(i, n), range(i)):
                if j in bad:
                    continue
                try:
                    # A copy is made from the beginning: it shares no tensor.
                    sample = begun[i] if j == i else self._begun(batch.refs[j], resolve)
                    if isinstance(sample, DataError):
                        raise sample
                    samples.append(self._sample(sample, batch.refs[j], batch.refs[i], slots[i]))
                except DataError as error:
                    if self.on_error == "raise":
                        raise
                    causes[j] = str(error)
                    if j == i:
                        bad.add(i)
                        skipped.append(Skipped(*name(batch.refs[i]), str(error)))
                    continue
                if j != i:
                    filled.append(i)
                break
            else:
                few = "; ".join(causes[j] for j in sorted(causes)[:4])
                more = f"; and {n - 4} more" if n > 4 else ""
                raise DataError(f"batch {g} has no good sample: {few}{more}")
        return self._finish(g, batch, samples, slots, filled), skipped

    def _slots(self, batch: Batch) -> list[Slot]:
        size = batch.size or self.decoding.image_size()
        self._memory = BatchMemory(len(batch.refs), self.shared, self._recycled)
        masked = self.decoding.masks()
        return [Slot(size, self._memory, i, masked) for i in range(len(batch.refs))]

    def _begun(self, ref: Ref, resolve: Callable[[Ref], Sample]) -> Sample | DataError:
        """Return sample ``ref``, or what is wrong with it."""
        try:
            sample = resolve(ref)
        except DataError as error:
            return error
        name = name_sample(sample[URL], sample[KEY])
        try:
            return self.decoding.begin(sample)
        except DataError as error:
            named = DataError(f"{name}: {error}")
            named.__cause__ = error
            return named
        except Exception as error:
            error.add_note(f"in {type(self.decoding).__name__}, on {name}")
            raise

    def _sample(self, sample: Sample, ref: Ref, place: Ref, slot: Slot) -> Sample:
        """Return a sample, ``ref``, with all work done, under the draws of ``place``."""
        url, key = sample[URL], sample[KEY]
        draws = Draws(self.seed, place, (base_name(url), key))
        try:
            for pipe, nth in self.per_sample:
                sample = pipe.work(sample, draws.of(nth), slot)
        except DataError as error:
            raise DataError(f"{name_sample(url, key)}: {error}") from error
        except Exception as error:
            error.add_note(f"in {type(pipe).__name__}, on {name_sample(url, key)}")
            raise
        for name, value in ((KEY, key), (URL, url), (REF, ref)):
            sample.setdefault(name, value)
        return sample

    def _finish(
        self, g: int, batch: Batch, samples: list[Sample], slots: list[Slot], filled: list[int]
    ) -> dict[str, Any]:
        ready: dict[str, Any] = {}
        for name, first in samples[0].items():
            if not isinstance(first, torch.Tensor | dict):
                continue
            if all(p.holds(name, s.get(name)) for p, s in zip(slots, samples, strict=True)):
                ready[name] = self._whole(name, first)
        out = self.decoding.finish(collate(samples, ready))
        out[BATCH] = g
        if self.on_error == "skip":
            out[FILLED] = filled
        return self._transform(out, batch.refs[0])

    def _whole(self, name: str, first: Any) -> Any:
        """Return a field of the batch whose rows are in the batch's memory."""
        if isinstance(first, dict):
            return {key: self._memory.whole((name, key)) for key in first}
        return self._memory.whole(name)

    def _transform(self, out: dict[str, Any], first: Ref) -> dict[str, Any]:
        kept = {k: v for k, v in out.items() if k.startswith("__")}
        for pipe, nth in self.per_batch:
            made = pipe.work_batch(out, Draws(self.seed, first).of(nth))
            if not hasattr(made, "keys"):
                raise TypeError(
                    f"a transform must return a dict of the batch's fields, and "
                    f"{pipe!r:.200} returned {type(made).__name__}"
                )
            out = {**kept, **made}
        return out

"""The loader: one position over all epochs, a state for any number of ranks and workers."""

import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from math import gcd
from typing import Any, Literal

import torch

from .epoch import Epoch
from .graph import Graph
from .length import epoch_length, lane_advice, pass_length
from .on_device import DeviceLoader
from .pipe import Pipe
from .quarantine import Quarantine
from .rank import place_of
from .state import LoaderState, check, describe, gather_states
from .stream import LaneStates, LaneWalker, Made, Stream, replay
from .workers import StatefulDataLoader, Workers, died, worker_start

log = logging.getLogger(__name__)

RESTARTS = 3
"""How often dead workers are replaced between two good batches."""


class ElasticDataLoader(StatefulDataLoader):  # type: ignore[misc]
    """Yields a graph's batches as dicts: tensors stacked, strings in lists (``pipe.loader(…)``).

    ``__key__``, ``__url__``, ``__ref__`` (int64 [B, 3]) and ``__batch__`` (the global batch's
    number) are always there.

    Global batch g is the same whatever the number of ranks and workers: rank r of R gets batches
    G + k R + r, where G is where the loader began. There is one position over all epochs, and only
    yielding a batch moves it: after a ``break``, as after a resume, the next ``for`` goes on. With
    ``repeat=False`` each ``for`` begins anew.

    Args:
        pipe: The graph.
        num_workers: Worker processes; 0 works in this process.
        rank: This consumer's number (default: torch.distributed's, else ``RANK``, else 0).
        world_size: Number of consumers (default: torch.distributed's, else ``WORLD_SIZE``, else 1).
        epoch_batches: Global batches in an epoch, where they cannot be known or another number is
            wanted.
        on_error: ``"raise"``, or ``"skip"`` to pass over samples whose data is bad.
        quarantine: With ``"skip"``, the file to which a line of JSON is appended for each sample
            passed over.
        pin_memory: Copy tensors to page-locked memory, for faster transfer to a GPU.
        prefetch_factor: Batches made ahead per worker (2).
        timeout: Seconds after which a worker that gives nothing counts as hanging; 0 waits without
            end.
        multiprocessing_context: ``"fork"``, ``"spawn"`` or ``"forkserver"``.
        worker_init_fn: Called with the worker's number when it starts.

    Raises:
        ValueError: The graph cannot be loaded; the message says what it lacks.
    """

    def __init__(
        self,
        pipe: Pipe,
        num_workers: int = 0,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        epoch_batches: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        quarantine: str | os.PathLike[str] = "quarantine.jsonl",
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        timeout: float = 600,
        multiprocessing_context: str | None = None,
        worker_init_fn: Callable[[int], None] | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        if epoch_batches is not None and epoch_batches < 1:
            raise ValueError(f"epoch_batches must be at least 1, got {epoch_batches}")
        graph = Graph.of(pipe)
        graph.check_loadable()
        graph.skip = on_error == "skip"
        graph.sample_counts()  # now, so that workers inherit the counts
        self.rank, self.world_size = place_of(rank, world_size)
        with warnings.catch_warnings():
            # torchdata 0.11 calls what newer versions of torch have deprecated.
            warnings.filterwarnings("ignore", message="'set_vital'")
            super().__init__(
                Stream(graph, self.rank, self.world_size, on_error),
                batch_size=None,
                num_workers=num_workers,
                collate_fn=_as_it_is,
                pin_memory=pin_memory,
                prefetch_factor=prefetch_factor,
                multiprocessing_context=multiprocessing_context if num_workers else None,
                worker_init_fn=worker_start(worker_init_fn),
                # torch draws a seed for each iterator; from the default generator it would
                # disturb the trainer's random numbers.
                generator=torch.Generator(),
                # The state travels with each batch; torchdata's own snapshots are never taken.
                snapshot_every_n_steps=1 << 62,
            )
        self.graph = graph
        self.on_error = on_error
        self.quarantine = Quarantine(quarantine)
        self.hang_timeout = timeout
        self.epoch_batches, self._why = epoch_batches, ""
        if epoch_batches is None and graph.lanes.repeat:
            self.epoch_batches, self._why = epoch_length(graph)
        self._says = describe(graph)
        self._stream: Workers | None = None
        self._ahead = None if not num_workers else (prefetch_factor or 2)
        self._careful = 0  # batches to come before workers may run ahead again
        self._resumed = False
        self._set_position(0, 0, 0, {})
        advice = lane_advice(graph)
        if advice:
            warnings.warn(advice, stacklevel=3)

    def _set_position(
        self, position: int, epoch: int, epoch_start: int, states: LaneStates
    ) -> None:
        self._drop_stream()
        self.position = position
        self.epoch = epoch
        self._epoch_start = epoch_start
        self._began = position
        self._states: LaneStates = dict.fromkeys(range(self.graph.lanes.n), (0, "")) | states

    # -- iteration ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.graph.lanes.repeat and not self._resumed:
            self._set_position(0, self.epoch, 0, {})
        self._resumed = False
        return Epoch(self)

    def __len__(self) -> int:
        """Return the number of steps in an epoch, the same on every rank where passes repeat.

        Raises:
            TypeError: It is not known; the message says why, and what to pass.
        """
        if self.epoch_batches is not None:
            return -(-self.epoch_batches // self.world_size)
        if self.graph.lanes.repeat:
            raise TypeError(f"this loader's length is not known: {self._why}")
        return pass_length(self.graph, self.rank, self.world_size)

    @property
    def skipped(self) -> int:
        """Number of samples that were passed over, each time it happened."""
        return self.quarantine.count

    def epoch_ended(self) -> bool:
        """Return whether the present epoch's batches have all been taken."""
        taken = self.position - self._epoch_start
        return self.epoch_batches is not None and taken >= self.epoch_batches

    def end_epoch(self) -> None:
        """Begin to count the next epoch."""
        self.epoch += 1
        self._epoch_start = self.position

    def next_batch(self) -> dict[str, Any]:
        """Return the next batch and move the position behind it.

        Raises:
            StopIteration: All lanes have ended (``repeat=False``).
        """
        restarts = 0
        while True:
            try:
                stream = self._stream or self._start()
                made: Made = next(stream)
            except StopIteration:
                self._drop_stream()
                raise
            except BaseException as error:
                dead = died(self._stream, error)
                self._drop_stream()
                if not dead:
                    raise
                restarts += 1
                if restarts > RESTARTS:
                    walker = LaneWalker(self.graph, self.on_error, self._states)
                    raise RuntimeError(walker.accuse(self.position + self.rank, dead)) from error
                log.warning("replacing workers: %s", dead)
                # A worker that runs ahead takes finished batches with it when it dies on a later
                # one; one step at a time, those come through, and the one that kills is known.
                self._careful = 2 * self.num_workers * (self._ahead or 1)
                continue
            if made.skipped:
                self.quarantine.add(made.g, made.skipped)
            if made.batch is not None:
                return self._yielded(made)

    def _start(self) -> Workers:
        self.dataset.start_at(self.position, self._states)
        self.prefetch_factor = 1 if self._careful else self._ahead
        method = (self.multiprocessing_context or multiprocessing).get_start_method()
        sent = self.graph if self.num_workers and method != "fork" else None
        self._stream = Workers(self._get_iterator, self.hang_timeout, sent)
        return self._stream

    def _yielded(self, made: Made) -> dict[str, Any]:
        step = made.g - self.rank
        if step < self.position or (self.graph.lanes.repeat and step != self.position):
            raise RuntimeError(
                f"batch {made.g} came at position {self.position} of rank {self.rank}: the "
                "workers' order is broken, which is a defect of penstock; please report it"
            )
        if self._careful:
            self._careful -= 1
            if not self._careful:
                self._drop_stream()
        self.position = step + self.world_size
        self._states[made.lane] = (made.g // self.graph.lanes.n + 1, made.state)
        assert made.batch is not None
        return made.batch

    def on_device(
        self, device: torch.device | str, *functions: Callable[..., Any], ahead: int = 2
    ) -> DeviceLoader:
        """Return a loader of these batches on a device, run through functions there."""
        return DeviceLoader(self, device, *functions, ahead=ahead)

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.stop()

    def close(self) -> None:
        """End the workers; the position stays, and the next ``for`` starts new ones."""
        self._drop_stream()

    # -- state ----------------------------------------------------------------------------------

    def state_dict(self) -> LoaderState:
        """Return the position behind the batch last yielded, as JSON; starts no worker.

        With several ranks it holds this rank's lanes only: save `gather_state`, or every rank's.
        """
        own = self._states
        if self.position != self._began:
            apart = gcd(self.graph.lanes.n, self.world_size)
            own = {n: s for n, s in own.items() if (n - self._began - self.rank) % apart == 0}
        return {
            **self._says,
            "position": self.position,
            "epoch": self.epoch,
            "epoch_start": self._epoch_start,
            "states": {str(lane): list(entry) for lane, entry in sorted(own.items())},
        }

    def gather_state(self) -> LoaderState:
        """Return the state of all ranks, on every rank. A collective: every rank must call it."""
        return gather_states(self.state_dict(), self.world_size)

    def load_state_dict(self, state_dict: LoaderState) -> None:
        """Take a position: that of `gather_state`, `merge_states`, or of the only rank.

        The numbers of ranks and workers may have changed.

        Raises:
            ValueError: The state is another graph's, or lacks lanes; the message names what.
        """
        check(state_dict, self._says)
        states = {int(n): (int(left), str(s)) for n, (left, s) in state_dict["states"].items()}
        self._set_position(
            state_dict["position"], state_dict["epoch"], state_dict["epoch_start"], states
        )
        self._resumed = True

    def batch_at(self, g: int, state: LoaderState | None = None) -> dict[str, Any]:
        """Return global batch ``g`` again, made in this process.

        It is reached from ``state`` or from where this loader stands, whichever lies before it and
        is nearer; else from the beginning. The position stays.

        Args:
            g: Number of the batch, as in its ``__batch__``.
            state: A state saved before the batch came.

        Raises:
            IndexError: There is no such batch (``repeat=False``, or g is negative).
        """
        known = [self._states]
        if state is not None:
            check({**state, "states": dict.fromkeys(range(self.graph.lanes.n), 0)}, self._says)
            known.append({int(n): (left, text) for n, (left, text) in state["states"].items()})
        return replay(self.graph, self.on_error, g, known)


def _as_it_is(made: Made) -> Made:
    return made

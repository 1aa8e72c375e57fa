"""The loader: one position over all epochs, and a state that fits any number of ranks and workers."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from math import gcd
from typing import Any, Literal

import torch

from .graph import Graph
from .length import epoch_length, pass_length
from .order import Skipped
from .pipe import Pipe
from .state import LoaderState, check, describe, merge_states
from .stream import LaneStates, LaneWalker, Made, Stream
from .workers import StatefulDataLoader, WorkerDied, Workers, unpicklable, worker_start

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
        graph.sample_counts(skip=on_error == "skip")  # now, so that workers inherit the counts
        self.rank, self.world_size = _place(rank, world_size)
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
                # torch draws a seed for each iterator; from the default generator it would disturb the
                # trainer's random numbers.
                generator=torch.Generator(),
                # The state travels with each batch; torchdata's own snapshots are never taken.
                snapshot_every_n_steps=1 << 62,
            )
        self.graph = graph
        self.on_error = on_error
        self.quarantine = quarantine
        self.skipped = 0
        self.hang_timeout = timeout
        self.epoch_batches, self._why = epoch_batches, ""
        if epoch_batches is None and graph.lanes.repeat:
            self.epoch_batches, self._why = epoch_length(graph)
        self._says = describe(graph)
        self._stream: Workers | None = None
        self._resumed = False
        self._set_position(0, 0, 0, {})
        self._warn_of_lanes()

    def _set_position(self, position: int, epoch: int, epoch_start: int, states: LaneStates) -> None:
        self._drop_stream()
        self.position = position
        self.epoch = epoch
        self._epoch_start = epoch_start
        self._began = position
        self._states: LaneStates = {n: (0, "") for n in range(self.graph.lanes.n)} | states

    # -- iteration ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        if not self.graph.lanes.repeat and not self._resumed:
            self._set_position(0, self.epoch, 0, {})
        self._resumed = False
        return _Epoch(self)

    def __len__(self) -> int:
        """Return the number of steps in an epoch, the same on every rank where passes repeat.

        Raises:
            TypeError: It is not known; the message says why, and what to pass.
        """
        if self.epoch_batches is not None:
            return -(-self.epoch_batches // self.world_size)
        length, why = None, self._why
        if not self.graph.lanes.repeat:
            length, why = pass_length(self.graph, self.rank, self.world_size)
        if length is None:
            raise TypeError(f"this loader's length is not known: {why}")
        return length

    def _epoch_ended(self) -> bool:
        taken = self.position - self._epoch_start
        return self.epoch_batches is not None and taken >= self.epoch_batches

    def _end_epoch(self) -> None:
        self.epoch += 1
        self._epoch_start = self.position

    def _next(self) -> dict[str, Any]:
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
                dead = self._dead(error)
                self._drop_stream()
                if not dead:
                    raise
                restarts += 1
                if restarts > RESTARTS:
                    raise RuntimeError(self._accuse(dead)) from error
                log.warning("replacing workers: %s", dead)
                continue
            if made.batch is not None:
                return self._yielded(made)

    def _dead(self, error: BaseException) -> str:
        """Return the words for the workers that died, or "" where ``error`` is something else.

        The type does not tell: beside torch's RuntimeError, ConnectionResetError and others come.
        """
        if isinstance(error, WorkerDied):
            return str(error)
        if self._stream is None or not isinstance(error, Exception):
            return ""
        return "; ".join(self._stream.dead())

    def _start(self) -> Workers:
        self.dataset.start_at(self.position, self._states)
        try:
            self._stream = Workers(self._get_iterator, self.hang_timeout)
        except WorkerDied:
            raise
        except Exception as error:
            culprit = unpicklable(self.graph) if self.multiprocessing_context else None
            if culprit is None:
                raise
            raise TypeError(
                f"{culprit} cannot be sent to a worker started by "
                f"{self.multiprocessing_context.get_start_method()}: use functions defined at a "
                "module's top level, not lambdas or local ones"
            ) from error
        return self._stream

    def _yielded(self, made: Made) -> dict[str, Any]:
        step = made.g - self.rank
        if step < self.position or (self.graph.lanes.repeat and step != self.position):
            raise RuntimeError(
                f"batch {made.g} came at position {self.position} of rank {self.rank}: the workers' "
                "order is broken, which is a defect of penstock; please report it"
            )
        self.position = step + self.world_size
        self._states[made.lane] = (made.g // self.graph.lanes.n + 1, made.state)
        if made.skipped:
            self._report(made.g, made.skipped)
        assert made.batch is not None
        return made.batch

    def _report(self, g: int, skipped: list[Skipped]) -> None:
        self.skipped += len(skipped)
        lines = [
            json.dumps({"batch": g, "shard": url, "key": key, "reason": reason}) + "\n"
            for url, key, reason in skipped
        ]
        with open(self.quarantine, "a", encoding="utf-8") as file:
            file.write("".join(lines))

    def _accuse(self, dead: str) -> str:
        g = self.position + self.rank
        walker = LaneWalker(self.graph, self.on_error, self._states)
        names = walker.names(g)
        return (
            f"batch {g} could not be made: workers died {RESTARTS + 1} times in a row, last "
            f"{dead}. Its samples are {', '.join(names)}. Look for a decoder or a mapped "
            f"function that crashes, or for a lack of memory; .loader(num_workers=0).batch_at({g}) "
            "makes the batch in this process"
        )

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
        if self.world_size == 1:
            return self.state_dict()
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            raise RuntimeError(
                "gather_state needs torch.distributed; without it, save every rank's state_dict() "
                "and join them with merge_states()"
            )
        states: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(states, self.state_dict())
        return merge_states(states)

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
        lane, place = g % self.graph.lanes.n, g // self.graph.lanes.n
        if g < 0:
            raise IndexError(f"batches are numbered from 0; got {g}")
        known = [(0, ""), self._states[lane]]
        if state is not None:
            check({**state, "states": {n: 0 for n in range(self.graph.lanes.n)}}, self._says)
            left, text = state["states"].get(str(lane), (0, ""))
            known.append((left, text))
        nearest = max(entry for entry in known if entry[0] <= place)
        made = LaneWalker(self.graph, self.on_error, {lane: nearest}).make(g)
        if made.batch is None:
            raise IndexError(f"there is no batch {g}: lane {lane} ends before it")
        return made.batch

    # -- advice ---------------------------------------------------------------------------------

    def _warn_of_lanes(self) -> None:
        lanes = self.graph.lanes.n
        counts = self.graph.sample_counts()
        held = self.graph.held_samples()
        if lanes > 1 and counts is not None and held * lanes > counts["total"] / 10:
            fits = max(1, counts["total"] // (10 * held))
            warnings.warn(
                f"{lanes} lanes hold up to {held * lanes} samples back in half-filled buckets, of "
                f"{counts['total']}: rare shapes will wait for many passes; .lanes({fits}) would fit",
                stacklevel=4,
            )


class _Epoch:
    """What ``for batch in loader`` walks: the rest of the present epoch."""

    def __init__(self, loader: ElasticDataLoader) -> None:
        self._loader = loader
        self._done = False

    def __iter__(self) -> "_Epoch":
        return self

    def __next__(self) -> dict[str, Any]:
        if self._done:
            raise StopIteration
        try:
            if self._loader._epoch_ended():
                raise StopIteration
            return self._loader._next()
        except StopIteration:
            self._done = True
            self._loader._end_epoch()
            raise


def _as_it_is(made: Made) -> Made:
    return made


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return (rank, world size) as given, or torch.distributed's, or the environment's."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"give rank and world_size both, got {rank=} and {world_size=}")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank = int(os.environ.get("RANK", "0"))
            world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be at least 0 and below world_size, got {rank} of {world_size}")
    return rank, world_size

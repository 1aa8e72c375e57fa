"""Batches on the accelerator: copied ahead, and run through what needs it."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .draws import Draws
from .map import takes_rng
from .sample import REF, Ref
from .state import LoaderState, gather_states

if TYPE_CHECKING:
    from .loader import ElasticDataLoader

Batch = dict[str, Any]


class Ahead(NamedTuple):
    """What was taken from the loader and has not been handed out.

    Attributes:
        batch: The batch on the device, or the error that came in its place, or None where the
            epoch has ended.
        done: What its copying and its functions end with (CUDA).
        place: The loader's (position, epoch) behind it.
        state: The loader's state behind it.
    """

    batch: "Batch | BaseException | None"
    done: torch.cuda.Event | None
    place: tuple[int, int]
    state: LoaderState


class DeviceLoader:
    """Yields a loader's batches on a device (``loader.on_device(device, *functions)``).

    Batches are copied ahead of need, on a CUDA device on a stream of its own, and run through
    functions there: a VAE, text encoders. The functions run in this process, in the loader's order,
    without gradients. Position and state are those behind the batch last handed out, whatever was
    taken ahead, and what was taken ahead is not lost by a ``break``.

    A function that has a parameter ``rng`` is given a `torch.Generator` on the device, seeded from
    (seed, the batch's first ref): its draws are the same whatever was interrupted.

    Args:
        loader: The loader; from now on only this one is to take from it.
        device: Where to; ``"cuda"``, ``"cuda:1"``, ``"cpu"``, ….
        functions: Each takes the batch, a dict, and returns one; fields whose names begin with
            ``__`` are kept whatever it returns.
        ahead: Batches taken ahead of the one handed out. Each takes memory on the device.

    Raises:
        ValueError: ``ahead`` is negative.
        TypeError: A function is none.
    """

    def __init__(
        self,
        loader: "ElasticDataLoader",
        device: torch.device | str,
        *functions: Callable[..., Batch],
        ahead: int = 2,
    ) -> None:
        if ahead < 0:
            raise ValueError(f"ahead must be at least 0, got {ahead}")
        for function in functions:
            if not callable(function):
                raise TypeError(f"on_device takes functions, got {type(function).__name__}")
        self.loader = loader
        self.device = torch.device(device)
        self.ahead = ahead
        self._functions = [(function, takes_rng(function)) for function in functions]
        cuda = self.device.type == "cuda"
        self._side = torch.cuda.Stream(self.device) if cuda else None  # type: ignore[no-untyped-call]
        self._queue: deque[Ahead] = deque()
        self._batches: Iterator[Batch] | None = None
        self._last: Ahead | None = None

    def __iter__(self) -> "Iterator[Batch]":
        if not self.loader.graph.lanes.repeat and self._last is not None:
            self._forget()  # each ``for`` begins anew
        return DeviceEpoch(self)

    def __len__(self) -> int:
        return len(self.loader)

    # -- taking ahead ---------------------------------------------------------------------------

    def next_batch(self) -> Batch:
        """Return the next batch of the present epoch.

        Raises:
            StopIteration: The epoch has ended.
        """
        while len(self._queue) <= self.ahead and not self._is_last():
            self._queue.append(self._take())
        entry = self._queue.popleft()
        if isinstance(entry.batch, BaseException):
            # It was not handed out: the next attempt begins where it would have been.
            self._again()
            raise entry.batch
        self._last = entry
        if entry.batch is None:
            self._batches = None
            raise StopIteration
        if entry.done is not None:
            self._hand_over(entry.batch, entry.done)
        return entry.batch

    def _is_last(self) -> bool:
        """Return whether nothing may be taken behind what was taken last."""
        return bool(self._queue) and not isinstance(self._queue[-1].batch, dict)

    def _take(self) -> Ahead:
        if self._batches is None:
            self._batches = iter(self.loader)
            if self._side is not None:  # what is loaded by now, weights for instance, is there
                self._side.wait_stream(torch.cuda.current_stream(self.device))
        batch: Batch | BaseException | None
        done = None
        try:
            batch, done = self._moved(next(self._batches))
        except StopIteration:
            batch = None
        except BaseException as error:
            batch = error
        place = self.loader.position, self.loader.epoch
        return Ahead(batch, done, place, self.loader.state_dict())

    def _moved(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """Return a batch on the device, with the functions' work done, or begun there."""
        if self._side is None:
            return self._run(batch), None
        with torch.cuda.stream(self._side):
            moved = self._run(batch)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._side)
        return moved, done

    def _run(self, batch: Batch) -> Batch:
        refs = batch[REF]
        out = {k: _to(v, self.device) for k, v in batch.items() if not k.startswith("__")}
        names = {k: v for k, v in batch.items() if k.startswith("__")}
        out = {**names, **out}
        with torch.no_grad():
            for nth, (function, wants_rng) in enumerate(self._functions):
                how = {"rng": self._generator(refs, nth)} if wants_rng else {}
                made = function(out, **how)
                if not hasattr(made, "keys"):
                    raise TypeError(
                        f"a function of on_device must return a dict of the batch's fields, and "
                        f"{function!r:.200} returned {type(made).__name__}"
                    )
                out = {**names, **made}
        return out

    def _generator(self, refs: torch.Tensor, nth: int) -> torch.Generator:
        draws = Draws(self.loader.graph.seed, Ref(*refs[0].tolist())).of(nth)
        generator = torch.Generator(self.device)
        return generator.manual_seed(draws.bits("on_device") & 0x7FFFFFFFFFFFFFFF)

    def _hand_over(self, batch: Batch, done: torch.cuda.Event) -> None:
        """Have the present stream wait for a batch, and its memory kept until that has used it."""
        present = torch.cuda.current_stream(self.device)
        present.wait_event(done)
        for tensor in _tensors(batch):
            if tensor.is_cuda:
                tensor.record_stream(present)

    # -- state ----------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Number of global batches before the next: see `ElasticDataLoader`."""
        return self._last.place[0] if self._last else self.loader.position

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._last.place[1] if self._last else self.loader.epoch

    def state_dict(self) -> LoaderState:
        """Return the state behind the batch last handed out: the loader's own, and as small."""
        return self._last.state if self._last else self.loader.state_dict()

    def gather_state(self) -> LoaderState:
        """Return the state of all ranks, on every rank. A collective: every rank must call it."""
        return gather_states(self.state_dict(), self.loader.world_size)

    def load_state_dict(self, state_dict: LoaderState) -> None:
        """Take a position; what was taken ahead is forgotten. Raises as the loader's own."""
        self.loader.load_state_dict(state_dict)
        self._forget()

    def batch_at(self, g: int, state: LoaderState | None = None) -> Batch:
        """Return global batch ``g`` again, on the device; see `ElasticDataLoader.batch_at`."""
        moved, done = self._moved(self.loader.batch_at(g, state))
        if done is not None:
            self._hand_over(moved, done)
        return moved

    def close(self) -> None:
        """End the workers; the position stays behind the batch last handed out."""
        self._again()
        self.loader.close()

    def _again(self) -> None:
        """Put the loader back to behind the batch last handed out."""
        if self._batches is not None and self.loader.graph.lanes.repeat:
            self.loader.load_state_dict(self.state_dict())
        self._forget()

    def _forget(self) -> None:
        self._queue.clear()
        self._batches = None
        self._last = None


class DeviceEpoch:
    """The rest of the present epoch; a class, since an exception would kill a generator."""

    def __init__(self, loader: DeviceLoader) -> None:
        self._loader = loader
        self._done = False

    def __iter__(self) -> "DeviceEpoch":
        return self

    def __next__(self) -> Batch:
        if self._done:
            raise StopIteration
        try:
            return self._loader.next_batch()
        except StopIteration:
            self._done = True
            raise


def _to(value: Any, device: torch.device) -> Any:
    """Return a field with its tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple) and value and not isinstance(value[0], str):
        return type(value)(_to(v, device) for v in value)
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)

"""Worker processes: everything here that leans on how torch's loader is built.

torch gives no public way to keep a dead worker from raising in the trainer's code, nor to say which
worker hangs; these few functions do, with torch >= 2.11 and torchdata 0.11.
"""

import faulthandler
import functools
import multiprocessing
import multiprocessing.reduction
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.utils.data._utils import signal_handling

with warnings.catch_warnings():
    # torchdata 0.11 is older than the torch that it meets here.
    warnings.simplefilter("ignore")
    from torchdata.stateful_dataloader import StatefulDataLoader

if TYPE_CHECKING:
    from .graph import Graph

POLL = 1.0
"""Seconds between two looks at whether the workers live, while a batch is awaited."""


def worker_start(then: Callable[[int], None] | None) -> Callable[[int], None]:
    """Return the function with which each worker begins; ``then`` is the user's own."""
    return functools.partial(_worker_start, then)


def _worker_start(then: Callable[[int], None] | None, worker: int) -> None:
    # SIGUSR2 has a worker write its stack, for the report of a hang.
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True, chain=False)
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    if then is not None:
        then(worker)


def _die_with_parent(parent: int) -> None:
    """End this process when the one that it works for is gone, even by SIGKILL.

    torch's own watch sleeps while the worker waits to hand over a batch, and would leave it behind.
    """
    process = multiprocessing.parent_process()
    while os.getppid() == parent and (process is None or process.is_alive()):
        time.sleep(POLL)
    os._exit(1)


class Workers:
    """An iterator of torch's, its workers' deaths and hangs made this loader's business.

    torch's SIGCHLD handler raises wherever the trainer is when a worker dies; it is put back to
    what it was. The death is then seen within `POLL` seconds, when the next batch is awaited.

    Args:
        make_iterator: Returns torch's iterator, and starts the workers.
        timeout: Seconds that one batch may take; 0: any time.
        sent: The graph, where workers get it pickled.

    Raises:
        TypeError: A function of the graph cannot be pickled; the message names it.
        WorkerDied: A worker died before it was ready.
    """

    def __init__(
        self, make_iterator: Callable[[], Any], timeout: float, sent: "Graph | None"
    ) -> None:
        self._clock = [time.monotonic()]  # since when the trainer has been waiting
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGCHLD) if main else None
        had_handler = signal_handling._SIGCHLD_handler_set
        try:
            self.iterator = make_iterator()
        except Exception as error:
            if str(error).startswith("DataLoader worker (pid"):
                raise WorkerDied(str(error)) from error
            culprit = None if sent is None else unpicklable(sent)
            if culprit is None:
                raise
            raise TypeError(
                f"{culprit} cannot be sent to a worker that is not forked: use functions defined "
                "at a module's top level, not lambdas or local ones"
            ) from error
        finally:
            if main and signal.getsignal(signal.SIGCHLD) is not before:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
                # Another loader of this process shall set it for itself.
                signal_handling._SIGCHLD_handler_set = had_handler
        self.processes: list[Any] = getattr(self.iterator, "_workers", [])
        if self.processes:
            # Where another loader's handler is in force, it must not raise for these workers.
            signal_handling._remove_worker_pids(id(self.iterator))  # type: ignore[attr-defined]
            self.iterator._worker_pids_set = False
            # A weak reference: in a cycle, workers would live until the collector comes by.
            self.iterator._try_get_data = functools.partial(
                _try_get, weakref.ref(self.iterator), self._clock, timeout
            )

    def __next__(self) -> Any:
        self._clock[0] = time.monotonic()
        return next(self.iterator)

    def dead(self) -> list[str]:
        """Return a line about each worker that died; the exception that came does not tell."""
        # A worker that was just killed may not have been reaped yet.
        deadline = time.monotonic() + 0.5
        while (
            self.processes
            and all(w.is_alive() for w in self.processes)
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        return [
            f"worker {i} (pid {w.pid}) {_ending(w.exitcode)}"
            for i, w in enumerate(self.processes)
            if not w.is_alive() and w.exitcode != 0
        ]

    def stop(self) -> None:
        """End the workers."""
        if self.processes:
            self.iterator._shutdown_workers()


def _try_get(
    watched: "weakref.ref[Any]", clock: list[float], timeout: float, _: float = POLL
) -> tuple[bool, Any]:
    """Wait a moment for a batch: torch calls this until one comes. It sees workers that died."""
    iterator: Any = watched()
    got, data = type(iterator)._try_get_data(iterator, POLL)
    if not got and timeout and time.monotonic() - clock[0] > timeout:
        raise TimeoutError(_hang(iterator, timeout))
    return got, data


def _hang(iterator: Any, timeout: float) -> str:
    """Have the workers that owe a batch write their stacks to stderr; return the report."""
    tasks = zip(iterator._workers, iterator._workers_num_tasks, strict=True)
    owing = [worker for worker, owed in tasks if owed and worker.is_alive()]
    for worker in owing:
        os.kill(worker.pid, signal.SIGUSR2)
    time.sleep(0.2)  # let them write before the error is shown
    pids = ", ".join(str(worker.pid) for worker in owing)
    return (
        f"no batch came within timeout={timeout:g} s from the workers (pid {pids}); where they are "
        "is written to stderr above. Pass a longer timeout to .loader() if they only are slow"
    )


def died(workers: "Workers | None", error: BaseException) -> str:
    """Return the words for the workers that died, or "" where ``error`` is something else.

    The type does not tell: beside torch's RuntimeError, ConnectionResetError and others come.
    """
    if isinstance(error, WorkerDied):
        return str(error)
    if workers is None or not isinstance(error, Exception):
        return ""
    return "; ".join(workers.dead())


class WorkerDied(RuntimeError):
    """A worker died while the workers were started."""


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def unpicklable(graph: "Graph") -> str | None:
    """Return the words for the first pipe that cannot be pickled, or None."""
    for step in (*graph.steps, *graph.work):
        for name, value in step.arguments().items():
            held = getattr(step, name, value)
            try:
                multiprocessing.reduction.ForkingPickler.dumps(held)
            except Exception:
                return f"{type(step).__name__}'s {name} ({held!r:.80})"
    return None


__all__ = ["StatefulDataLoader", "WorkerDied", "Workers", "died", "unpicklable", "worker_start"]

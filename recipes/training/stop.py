"""Leave in good order when a scheduler says so."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from .world import World

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stop:
    """Turn SIGTERM and SIGUSR1 into a question that a training loop asks at each step.

    Schedulers send them minutes before they kill. The first one is remembered; a second one does
    at once what it did before. Used as a context, from the main thread; the former handlers come
    back at the end.

        with Stop(world) as stop:
            while step < steps and not stop.asked():
                ...
        # save, and leave

    Args:
        world: The ranks that must agree.
        signals: Which ones.
    """

    def __init__(self, world: World, signals: tuple[signal.Signals, ...] = SIGNALS) -> None:
        self.world = world
        self.signals = signals
        self.signal: signal.Signals | None = None
        """The signal that came here, if one did."""
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
        for number in self.signals:
            self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def asked(self) -> bool:
        """Return whether any rank was told to stop: on all the same answer. A collective."""
        return self.world.any(self.signal is not None)

    def _restore(self) -> None:
        for number, former in self._former.items():
            # None: a handler that was not set from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if former is None else former)
        self._former = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            return
        self._restore()
        os.kill(os.getpid(), number)

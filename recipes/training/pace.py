"""How many images a training takes in a second."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Pace:
    """Counts images over the last steps, without the pauses of validation and saving.

    Args:
        steps: Over how many steps.
        clock: Returns the time in seconds.
    """

    def __init__(self, steps: int = 50, *, clock: Callable[[], float] = time.monotonic) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self._clock = clock
        self._last = clock()
        self._steps: deque[tuple[int, float]] = deque(maxlen=steps)

    def add(self, images: int) -> None:
        """Count the images of a step that ends now."""
        now = self._clock()
        self._steps.append((images, now - self._last))
        self._last = now

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time spent within."""
        began = self._clock()
        try:
            yield
        finally:
            self._last += self._clock() - began

    def rate(self) -> float:
        """Return images per second; 0 before the first step is done."""
        seconds = sum(seconds for _, seconds in self._steps)
        return sum(images for images, _ in self._steps) / seconds if seconds > 0 else 0.0

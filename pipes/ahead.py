"""Fetch what lies far away for several samples at once, while the first of them are worked on."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .sample import Ref, Sample, Stored

FILES_AT_ONCE = 16
"""Files of one batch that a process fetches at once."""


class Ahead(Stored):
    """A field that a thread may fetch before it is read.

    Whoever comes first fetches it, and whoever reads it meanwhile waits; what went wrong is raised
    with every read, and not tried again.

    Args:
        field: The field.
    """

    __slots__ = ("_error", "_lock", "_tried", "field")

    def __init__(self, field: Stored) -> None:
        self.field = field
        self._lock = threading.Lock()
        self._tried = False
        self._error: Exception | None = None

    def fetch(self) -> None:
        """Fetch the field, unless that was tried; what goes wrong is kept for `read`."""
        with self._lock:
            if not self._tried:
                try:
                    self.field.fetch()
                except Exception as error:
                    self._error = error
                self._tried = True

    def read(self) -> bytes:
        """Return the field's bytes; raises what its `fetch` and its `read` raise."""
        self.fetch()
        if self._error is not None:
            raise self._error
        return self.field.read()


@contextmanager
def fetching(fields: Sequence[Ahead], at_once: int | None = None) -> Iterator[None]:
    """Have threads fetch fields, in their order, for as long as the block runs.

    The threads are daemons, and not waited for: where the block fails, a request under way may
    stall for long.
    """
    left, over = deque(fields), threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                field = left.popleft()
            except IndexError:
                return
            field.fetch()

    crew = FILES_AT_ONCE if at_once is None else at_once
    for _ in range(min(crew, len(fields))):
        threading.Thread(target=run, daemon=True, name="penstock-files").start()
    try:
        yield
    finally:
        over.set()


class Samples:
    """The samples of a batch: all are made at once, so that it is known what they need.

    Args:
        refs: Their refs.
        resolve: Makes the sample of a ref.
    """

    def __init__(self, refs: Sequence[Ref], resolve: Callable[[Ref], Sample]) -> None:
        self._resolve = resolve
        self._made: dict[Ref, Sample] = {}
        self.far: list[Ahead] = []
        for ref in refs:
            try:
                sample = dict(resolve(ref))
            except Exception:
                continue  # it is raised when the sample's turn comes
            for name, value in sample.items():
                if isinstance(value, Stored) and value.far:
                    sample[name] = ahead = Ahead(value)
                    self.far.append(ahead)
            self._made[ref] = sample

    def sample(self, ref: Ref) -> Sample:
        """Return the sample of a ref; raises what ``resolve`` raises."""
        made = self._made.get(ref)
        return self._resolve(ref) if made is None else dict(made)

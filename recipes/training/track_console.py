"""A progress bar, and a line for each log."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from PIL import Image
from tqdm import tqdm

from .tracker import IMAGES_PER_SECOND, TRAIN_LOSS, VAL_LOSS, short_name, short_number

FIRST = (TRAIN_LOSS, VAL_LOSS, IMAGES_PER_SECOND)


class ConsoleTracker:
    """Shows a bar with steps, loss and images/s, and above it a line for each log.

    Where the output is no terminal, as in a scheduler's log file, there is no bar, and the lines
    say how far the training is and how long it will take.

    Args:
        steps: Steps of the whole training, where that is known.
        step: The step from which it goes on.
        file: Where to write; standard error without it.
    """

    required = False  # a terminal that was closed ends no training

    def __init__(
        self, *, steps: int | None = None, step: int = 0, file: TextIO | None = None
    ) -> None:
        self._file = sys.stderr if file is None else file
        self._steps, self._first, self._began = steps, step, time.monotonic()
        self._shown: dict[str, float] = {}
        self._bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            file=self._file,
            disable=not self._file.isatty(),
        )

    def progress(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(step - self._bar.n)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line, and the loss and images/s into the bar."""
        # What matters most is at the left, where a narrow terminal shows it.
        names = [*(n for n in FIRST if n in values), *(n for n in values if n not in FIRST)]
        words = [f"{short_name(name)} {short_number(values[name])}" for name in names]
        self._line(step, "  ".join(words))
        self._shown |= {name: values[name] for name in FIRST if name in values}
        if not self._bar.disable:
            shown = {short_name(n): self._shown[n] for n in FIRST if n in self._shown}
            self._bar.set_postfix_str(", ".join(f"{n} {short_number(x)}" for n, x in shown.items()))

    def images(
        self, step: int, name: str, pictures: Sequence[Image.Image], captions: Sequence[str]
    ) -> None:
        """Say that there are pictures."""
        self._line(step, f"{name}: {len(pictures)} picture{'s' if len(pictures) > 1 else ''}")

    def text(self, step: int, name: str, words: str) -> None:
        """Write the words."""
        self._line(step, f"{name}: {' '.join(words.split())}")

    def close(self, *, failed: bool = False) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def _line(self, step: int, words: str) -> None:
        line = _printable(f"{self._where(step)}  {words}", self._file.encoding)
        if self._bar.disable:
            print(line, file=self._file, flush=True)
        else:
            tqdm.write(line, file=self._file)

    def _where(self, step: int) -> str:
        if self._steps is None:
            return f"step {step:,}"
        where = f"step {step:,}/{self._steps:,}"
        done = step - self._first
        if not self._bar.disable or done < 1 or step > self._steps:
            return where
        gone = time.monotonic() - self._began
        left = gone / done * (self._steps - step)
        return f"{where} [{tqdm.format_interval(gone)}<{tqdm.format_interval(left)}]"


def _printable(line: str, encoding: str | None) -> str:
    """Return a line that this terminal can take, without what would move its cursor."""
    line = "".join(c if c.isprintable() else "?" for c in line)
    encoding = encoding or "utf-8"
    return line.encode(encoding, "replace").decode(encoding)

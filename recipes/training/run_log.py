"""The lines of a run's ``log.jsonl``: written, read, and cut where a run goes on."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..write_file import write_file

LOG = "log.jsonl"
WRONG = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class LogLine:
    """What was told at one time.

    Attributes:
        step: Optimizer steps done.
        time: Seconds since 1970, UTC.
        values: Numbers by name.
        images: Name of the pictures; empty where there are none.
        files: Their paths, relative to the run's folder.
        captions: Of each picture.
        text: Name of the words; empty where there are none.
        words: The words.
    """

    step: int
    time: float
    values: Mapping[str, float] = field(default_factory=dict)
    images: str = ""
    files: Sequence[str] = ()
    captions: Sequence[str] = ()
    text: str = ""
    words: str = ""

    def to_json(self) -> bytes:
        """Return the line, with its end: strict JSON, so that ``NaN`` and such are strings.

        A float is written in the digits that give it back to the last bit.
        """
        line: dict[str, Any] = {"step": self.step, "time": round(self.time, 3)}
        if self.values:
            # float() reads "nan" and "inf" back.
            finite = {name: _plain(value) for name, value in self.values.items()}
            line["values"] = finite
        if self.images:
            line |= {"images": self.images, "files": list(self.files)}
            line["captions"] = list(self.captions)
        if self.text:
            line |= {"text": self.text, "words": self.words}
        return json.dumps(line, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> "LogLine":
        """Return what a line says.

        Raises:
            ValueError: If it is not such a line.
        """
        try:
            found = json.loads(line)
            values = {str(name): float(x) for name, x in found.get("values", {}).items()}
            files, captions = (tuple(map(str, found.get(n, ()))) for n in ("files", "captions"))
            images, text, words = (str(found.get(n, "")) for n in ("images", "text", "words"))
            step, time = int(found["step"]), float(found["time"])
        except WRONG as error:
            raise ValueError(f"it is not a line of a log: {error!r}") from error
        return cls(step, time, values, images, files, captions, text, words)


def read_log(path: str | Path) -> list[LogLine]:
    """Return the lines of a log, but for a last one that is not whole.

    Where one thing was told twice of a step, as it is when the computer itself went down between
    telling and saving, only the later is returned.

    Args:
        path: The ``log.jsonl`` of a run that may be under way.

    Raises:
        FileNotFoundError: If there is none.
    """
    last: dict[tuple[int, str, str, frozenset[str]], LogLine] = {}
    for _, line in _whole_lines(Path(path)):
        key = (line.step, line.images, line.text, frozenset(line.values))
        last.pop(key, None)  # so that it comes last
        last[key] = line
    return list(last.values())


def cut_log(path: str | Path, step: int) -> None:
    """Cut what a log has of steps after ``step``; of step 0, all.

    The log is then that of a run which was never interrupted. A torn line goes too.

    Args:
        path: A ``log.jsonl``; it may be missing.
        step: The step from which the run goes on; 0 for a run from the start.
    """
    path = Path(path)
    if not path.exists():
        return
    kept = [data for data, line in _whole_lines(path) if step > 0 and line.step <= step]
    if sum(map(len, kept)) != path.stat().st_size:
        write_file(path, b"".join(kept))


def _whole_lines(path: Path) -> Iterator[tuple[bytes, LogLine]]:
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            if not data.endswith(b"\n"):
                return  # torn by a kill, or being written now
            try:
                yield data, LogLine.from_json(data)
            except ValueError as error:
                warnings.warn(f"{path}, line {number} is left out: {error}", stacklevel=3)


def _plain(value: float) -> float | str:
    return value if value - value == 0.0 else str(value)

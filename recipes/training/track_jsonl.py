"""A run's own record: ``log.jsonl``, and its pictures as PNG."""

import hashlib
import io
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..write_file import write_file
from .grid import picture_grid
from .run_log import LOG, LogLine, cut_log

IMAGES = "images"
STEP = re.compile(r"step-(\d{9,})(?:\.png|-\d+\.png)")


class JsonlTracker:
    """Appends a line to ``log.jsonl`` for all that is told, and writes pictures into ``images/``.

    A line is one JSON object with ``step``, ``time`` (seconds since 1970) and ``values``, or the
    ``files`` and ``captions`` of pictures, or words; see `LogLine`. It is written by one call and
    at once, so that a kill loses nothing that was told and tears at most the last line.

    Pictures of a name lie in ``images/NAME/``: ``step-000000100-00.png`` and so on as they are, and
    ``step-000000100.png``, all of them with their captions.

    Args:
        folder: The run's folder; made if missing.
        step: The step from which the run goes on. What is there of later steps is removed, so that
            folder and log become those of a run without interruption; at 0 that is everything.
    """

    required = True  # what is told nowhere else would be lost

    def __init__(self, folder: str | Path, *, step: int = 0) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        cut_log(self._folder / LOG, step)
        for path in (self._folder / IMAGES).glob("*/step-*.png"):
            found = STEP.fullmatch(path.name)
            if found and (step == 0 or int(found[1]) > step):
                path.unlink()
        self._file = (self._folder / LOG).open("ab", buffering=0)

    def progress(self, step: int) -> None:
        """Do nothing: a line at every step would be a flood."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append the numbers of a step."""
        self._write(LogLine(step, time.time(), values=values))

    def images(
        self, step: int, name: str, pictures: Sequence[Image.Image], captions: Sequence[str]
    ) -> None:
        """Write pictures as PNG, then append their names."""
        folder = self._folder / IMAGES / _file_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for i, picture in enumerate(pictures):
            path = _write_png(folder / f"step-{step:09}-{i:02}.png", picture)
            files.append(path.relative_to(self._folder).as_posix())
        grid = picture_grid(pictures, captions, title=f"{name}, step {step:,}")
        _write_png(folder / f"step-{step:09}.png", grid)
        self._write(LogLine(step, time.time(), images=name, files=files, captions=captions))

    def text(self, step: int, name: str, words: str) -> None:
        """Append words."""
        self._write(LogLine(step, time.time(), text=name, words=words))

    def close(self, *, failed: bool = False) -> None:
        """Close the log."""
        self._file.close()

    def _write(self, line: LogLine) -> None:
        data = line.to_json()
        while data:  # a full disk may take a part before it raises
            data = data[self._file.write(data) or 0 :]


def _write_png(path: Path, picture: Image.Image) -> Path:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return write_file(path, data.getvalue())


def _file_name(name: str) -> str:
    """Return a folder's name: that of the pictures, where it is a plain one."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")[:80]
    if plain == name:
        return plain
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{plain}-{digest}"

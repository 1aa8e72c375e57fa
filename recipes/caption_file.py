"""A manifest of captions that grows line by line, in one part for each process."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .write_file import write_file


def read_captions(path: Path) -> dict[str, str]:
    """Return image to caption, from a manifest and all of its parts, the manifest's first.

    The half line that a killed run left at the end of a file is passed over.

    Raises:
        ValueError: A whole line is none of ours; it names file and line.
    """
    found: dict[str, str] = {}
    for file in [path, *parts_of(path)]:
        if not file.exists():
            continue
        lines = file.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                image, caption = row["image"], row["caption"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{file}, line {number}: expected an object with image and caption, got "
                    f"{line[:80]!r}; mend the line or delete it"
                ) from None
            found.setdefault(image, caption)
    return found


def parts_of(path: Path) -> list[Path]:
    """Return the parts of a manifest that are there."""
    return sorted(path.parent.glob(f"{_escaped(path.name)}.part-*"))


@contextmanager
def open_part(path: Path, rank: int) -> Iterator[IO[bytes]]:
    """Yield a process's part of a manifest, to be appended to, without a half line at its end.

    Raises:
        BlockingIOError: Another process writes it.
    """
    part = path.with_name(f"{path.name}.part-{rank:05d}")
    with part.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is writing {part}: wait for it") from None
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        yield file
        file.flush()
        os.fsync(file.fileno())


def append(file: IO[bytes], image: str, caption: str) -> None:
    """Write a line, and hand it to the system: a killed process takes at most this one with it."""
    file.write(_line(image, caption).encode())
    file.flush()


def merge_parts(path: Path, order: Iterable[str]) -> int:
    """Make one manifest of itself and its parts, and return its number of captions.

    Args:
        path: The manifest; what has its name is whole at any time.
        order: The images in the order in which their lines shall stand; others come behind.
    """
    found = read_captions(path)
    parts = parts_of(path)
    images = [image for image in dict.fromkeys(order) if image in found]
    listed = set(images)
    images += [image for image in found if image not in listed]
    write_file(path, "".join(_line(image, found[image]) for image in images))
    for part in parts:
        part.unlink()
    return len(found)


def _line(image: str, caption: str) -> str:
    return json.dumps({"image": image, "caption": caption}) + "\n"  # ASCII: paths hold anything


def _escaped(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)

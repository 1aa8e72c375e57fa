"""What has been embedded of a shard that is not finished: kept batch by batch."""

import fcntl
import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..pipes.remote import Version
from ..pipes.shard_index import read_npz

MAGIC = b"PEN1"
_HEAD = struct.Struct("<4sQI")


@dataclass(frozen=True)
class Embedded:
    """A run of a shard's samples, embedded.

    Attributes:
        start: Number of the first sample in the shard.
        images: Their images' embeddings, [samples, dimension]; [samples, 0] where none are made.
        texts: Their texts' embeddings, likewise.
        notes: Of each sample its caption, its columns (JSON), what is wrong with its image, and
            with its text.
    """

    start: int
    images: np.ndarray
    texts: np.ndarray
    notes: list[tuple[str, str, str, str]]

    @property
    def end(self) -> int:
        """Number of the sample behind the last."""
        return self.start + len(self.notes)


class Part:
    """The file that a shard's batches are appended to; see `open_part`.

    Attributes:
        batches: What it holds.
    """

    def __init__(self, file: BinaryIO, version: Version) -> None:
        self._file = file
        self.batches: list[Embedded] = []
        end = 0
        for at, data in _frames(file):
            if not at:
                if json.loads(data) != list(version):
                    break
            else:
                self.batches.append(_unpacked(data))
            end = file.tell()
        file.seek(end)
        file.truncate()
        if not end:
            self._write(json.dumps(version).encode())

    @property
    def done(self) -> int:
        """Number of samples that are embedded: the first ones of the shard."""
        return self.batches[-1].end if self.batches else 0

    def append(self, batch: Embedded) -> None:
        """Keep a batch, and hand it to the system: a killed process loses none before it."""
        out = io.BytesIO()
        np.savez(
            out,
            start=np.array(batch.start),
            images=batch.images,
            texts=batch.texts,
            notes=np.frombuffer(json.dumps(batch.notes).encode(), np.uint8),
        )
        self._write(out.getvalue())
        self.batches.append(batch)

    def _write(self, data: bytes) -> None:
        self._file.write(_HEAD.pack(MAGIC, len(data), zlib.crc32(data)) + data)
        self._file.flush()


@contextmanager
def open_part(path: Path, version: Version) -> Iterator[Part]:
    """Yield the part at a path; what is of another version of the shard, or half written, is gone.

    Raises:
        BlockingIOError: Another process writes it.
    """
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is writing {path}: wait for it") from None
        yield Part(file, version)


def _opened(path: Path) -> BinaryIO:
    while True:
        path.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # a process that is done removes an empty folder
            return path.open("ab+")


def samples_done(path: Path, version: Version) -> int:
    """Return how many samples the part at a path holds; 0 where there is none of this version."""
    if not path.exists():
        return 0
    with open_part(path, version) as part:
        return part.done


def _frames(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (number, bytes) of all whole frames, in order."""
    number, left = 0, file.seek(0, os.SEEK_END)
    file.seek(0)
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        magic, size, checksum = _HEAD.unpack(head)
        left -= _HEAD.size + size
        if magic != MAGIC or left < 0 or zlib.crc32(data := file.read(size)) != checksum:
            return
        yield number, data
        number += 1


def _unpacked(data: bytes) -> Embedded:
    found = read_npz(data)
    notes = [tuple(note) for note in json.loads(found["notes"].tobytes())]
    return Embedded(int(found["start"]), found["images"], found["texts"], notes)

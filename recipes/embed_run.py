"""The walk over the shards that a process embeds, batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from ..pipes.errors import DataError
from ..pipes.remote import Version
from ..pipes.sample import REF, Sample
from ..pipes.work import FILLED
from .embed_input import CAPTION, COLUMNS, IMAGE_FAULT, PIXELS, TEXT_FAULT
from .embed_part import Embedded, Part, open_part
from .embed_shard import Record, ShardFiles
from .embedder import Embedder

UNREAD = "it could not be read"


class Job(NamedTuple):
    """A shard that is to be embedded.

    Attributes:
        url: The shard.
        version: Its version.
        files: Where its embeddings go.
    """

    url: str
    version: Version
    files: ShardFiles


class Entry(NamedTuple):
    """A sample that is to be embedded: what `Prepare` has made of it."""

    pixels: torch.Tensor
    caption: str
    columns: str
    image_fault: str
    text_fault: str


@dataclass
class ShardRun:
    """One shard that is being embedded.

    Batches are the shard's own and always the same, so that what comes out depends neither on the
    processes nor on where a run was interrupted.

    Args:
        job: The shard.
        keys: Of its samples.
        rows: The row of each, int64.
        part: What was embedded of it before.
        embedder: The model.
        dtype: Type of the rows.
        batch_size: Samples at a time.
        blank: What stands for a sample that could not be read.
        columns: Names of the columns in the notes.
        progress: Told how many samples were embedded.
    """

    job: Job
    keys: Sequence[str]
    rows: np.ndarray
    part: Part
    embedder: Embedder
    dtype: np.dtype
    batch_size: int
    blank: Entry
    columns: Sequence[str]
    progress: Callable[[int], object]
    _entries: list[Entry] = field(default_factory=list)

    @property
    def expected(self) -> int:
        """Number of the sample that comes next."""
        return self.part.done + len(self._entries)

    def add(self, sample: int, entry: Entry) -> None:
        """Take the next sample; those that were passed over before it could not be read."""
        while self.expected < sample:
            self._take(self.blank)
        if self.expected > sample:
            raise RuntimeError(
                f"sample {sample} of {self.job.url} came behind {self.expected - 1}: the order is "
                "broken, which is a defect of penstock; please report it"
            )
        self._take(entry)

    def finish(self) -> Record:
        """Embed what is left, write the files, and return their record."""
        while self.expected < len(self.keys):
            self._take(self.blank)
        if self._entries:
            self._embed()
        files, batches = self.job.files, self.part.batches
        return files.write(self.job.version, self.keys, self.rows, batches, self.columns)

    def _take(self, entry: Entry) -> None:
        self._entries.append(entry)
        if len(self._entries) == self.batch_size:
            self._embed()

    def _embed(self) -> None:
        entries, start = self._entries, self.part.done
        keys = self.keys[start : start + len(entries)]
        images = texts = np.empty((len(entries), 0), self.dtype)
        if self.embedder.processor is not None:
            pixels = torch.stack([entry.pixels for entry in entries])
            images = self.embedder.images(pixels)
            images = self._rows("image", images, [e.image_fault for e in entries], keys)
        if self.embedder.tokenizer is not None:
            texts = self.embedder.texts([entry.caption for entry in entries])
            texts = self._rows("caption", texts, [e.text_fault for e in entries], keys)
        notes = [(e.caption, e.columns, e.image_fault, e.text_fault) for e in entries]
        self.part.append(Embedded(start, images, texts, notes))
        self._entries = []
        self.progress(len(entries))

    def _rows(
        self, what: str, found: np.ndarray, faults: list[str], keys: Sequence[str]
    ) -> np.ndarray:
        """Return rows of the type that is written, zero where there is a fault."""
        with np.errstate(over="ignore"):
            rows = found.astype(self.dtype)
        rows[[bool(fault) for fault in faults]] = 0
        wild = np.flatnonzero(~np.isfinite(rows).all(1))
        if len(wild):
            raise DataError(
                f"the model gives numbers that are not finite for the {what} of "
                f"{keys[int(wild[0])]!r} of {self.job.url}: try --precision float32 and --dtype "
                "float32"
            )
        return rows


def entries_of(batch: dict[str, Any]) -> Iterator[tuple[int, int, Entry]]:
    """Yield (shard, sample, entry) of a loader's batch, without copies that fill places."""
    filled = set(batch.get(FILLED, ()))
    columns = [batch[name] for name in (PIXELS, CAPTION, COLUMNS, IMAGE_FAULT, TEXT_FAULT)]
    for i, (_, shard, sample) in enumerate(batch[REF].tolist()):
        if i not in filled:
            yield shard, sample, Entry(*(column[i] for column in columns))


class Walk:
    """Embeds shards one after another, as their samples come.

    Args:
        jobs: The shards, in the order of the loader.
        open_keys: Returns the keys of a shard's samples and their rows, by its place in the jobs.
        make: Makes a `ShardRun` of a job, keys, rows and a part.
        skip: Whether a damaged shard is passed over.

    Attributes:
        records: Of the shards that are finished.
        failed: What is wrong with those that are damaged.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        open_keys: Callable[[int], tuple[Sequence[str], np.ndarray]],
        make: Callable[[Job, Sequence[str], np.ndarray, Part], ShardRun],
        skip: bool,
    ) -> None:
        self._jobs = jobs
        self._open_keys = open_keys
        self._make = make
        self._skip = skip
        self._begun = 0  # number of shards that were begun
        self._run: ShardRun | None = None
        self._stack = ExitStack()
        self.records: list[Record] = []
        self.failed: list[str] = []

    def add(self, shard: int, sample: int, entry: Entry) -> None:
        """Take the next sample that the loader gives."""
        while self._begun <= shard:
            self._next()
        assert self._run is not None
        self._run.add(sample, entry)

    def finish(self) -> None:
        """Finish the last shards."""
        while self._begun < len(self._jobs):
            self._next()
        self._end()

    def close(self) -> None:
        """Let go of the shard that is not finished; what was embedded of it is kept."""
        self._stack.close()

    def _next(self) -> None:
        self._end()
        job = self._jobs[self._begun]
        self._begun += 1
        try:
            keys, rows = self._open_keys(self._begun - 1)
        except DataError as error:
            if not self._skip:
                raise
            text = str(error)
            self.failed.append(text if job.url in text else f"{job.url}: {text}")
            return
        part = self._stack.enter_context(open_part(job.files.part, job.version))
        self._run = self._make(job, keys, rows, part)

    def _end(self) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            self.records.append(run.finish())
            run.job.files.forget_part()
        self._stack.close()


class Undone:
    """Says of a sample whether it is still to be embedded.

    Args:
        done: Shard to the number of its first samples that are.
    """

    def __init__(self, done: dict[int, int]) -> None:
        self.done = done

    def __call__(self, sample: Sample) -> bool:
        ref = sample[REF]
        return bool(ref.sample >= self.done.get(ref.shard, 0))

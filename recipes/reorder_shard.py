"""One shard's rows, gathered from wherever they lie, in the order of its samples."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np

from ..pipes.errors import DataError
from ..pipes.make_once import make_once
from .embedding_rows import MOST_ROWS
from .reorder_plan import Plan, Segment
from .row_file import RowFile
from .write_file import write_file


@dataclass(frozen=True)
class Record:
    """What a shard's file was made of.

    Attributes:
        source: Hash of its segments, their files' versions and all else that it depends on.
        bytes: Its size.
        rows: Rows, present or not.
        present: Rows that hold an embedding.
        zero: Embeddings that are zero in the input already, and so count as missing.
        doubled: Embeddings that came twice and were left out.
    """

    source: str
    bytes: int
    rows: int
    present: int
    zero: int
    doubled: int

    @staticmethod
    def load(path: Path) -> "Record | None":
        """Return the record at a path; None where there is none, or none of ours."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return Record(**{field.name: values[field.name] for field in fields(Record)})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


class ShardWriter:
    """Writes the files of one kind of embeddings, shard by shard.

    Args:
        files: Those of the pairs.
        plan: Which rows are whose.
        out: Folder of the ``.npy`` files.
        records: Folder of the records.
        on_duplicate: What two different embeddings of one sample do.
    """

    def __init__(
        self,
        files: Sequence[RowFile],
        plan: Plan,
        out: Path,
        records: Path,
        on_duplicate: Literal["raise", "first"],
    ) -> None:
        self._files = files
        self._plan = plan
        self._out = out
        self._records = records
        self._on_duplicate = on_duplicate
        first = common(files)
        self._dtype, self._dimension = first.rows.native, first.rows.row_size

    def write(self, name: str, shard: int, least: int) -> tuple[Record, bool]:
        """Return the record of a shard's file, which is there then, and whether it was before.

        Args:
            name: The file's name.
            shard: The shard's number.
            least: Rows that it has at least, zero where no embedding is.

        Raises:
            DataError: A sample has two different embeddings, or an index is beyond all reason.
            OSError: A file cannot be read or written.
        """
        segments = self._plan.segments(shard)
        source = self._source(segments, least)
        target, record_path = self._out / name, self._records / f"{name}.json"

        def whole() -> Record | None:
            record = Record.load(record_path)
            fits = record is not None and record.source == source and target.exists()
            return record if fits and target.stat().st_size == record.bytes else None  # type: ignore[union-attr]

        if record := whole():
            return record, True
        made: list[Record] = []

        def write(fd: int) -> None:
            rows, counts = self._gather(shard, segments, least)
            with open(fd, "wb", closefd=False) as file:
                np.save(file, rows)
                made.append(Record(source, file.tell(), len(rows), *counts))

        make_once(str(target), write, lambda: bool(made) or whole() is not None)
        if not made:  # another process was faster
            record = whole()
            assert record is not None
            return record, True
        write_file(record_path, json.dumps(asdict(made[0])) + "\n")
        return made[0], False

    def _source(self, segments: list[Segment], least: int) -> str:
        parts: list[object] = [least, self._on_duplicate]
        for segment in segments:
            file = self._files[segment.pair]
            rows = os.path.basename(self._plan.rows[segment.pair].path)  # its hash is the keys'
            parts.append((file.name, *file.bytes.version, rows, segment.start, segment.end))
        return blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def _gather(
        self, shard: int, segments: list[Segment], least: int
    ) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Return the rows, and how many are present, zero and left out."""
        entries = [self._plan.rows[s.pair].read(s.start, s.end).astype(np.int64) for s in segments]
        count = max([least, *(int(e[-1, 0]) + 1 for e in entries)])
        if count > MOST_ROWS:
            raise DataError(
                f"shard {shard} would have {count:,} rows, more than {MOST_ROWS:,}: its keys were "
                "cut at the wrong digit; give a smaller --index_width"
            )
        out = np.zeros((count, self._dimension), self._dtype)
        origin = np.full((count, 2), -1, np.int64)  # pair and row
        doubled = 0
        for segment, entry in zip(segments, entries, strict=True):
            file = self._files[segment.pair]
            index, rows = entry[:, 0], entry[:, 1]
            found = file.take(rows)
            new = np.append(True, index[1:] != index[:-1])[: len(index)] & (origin[index, 0] < 0)
            out[index[new]] = found[new]
            origin[index[new]] = np.stack([np.full(new.sum(), segment.pair), rows[new]], 1)
            doubled += int((~new).sum())
            if self._on_duplicate == "raise":
                self._compare(
                    shard, out, origin, segment.pair, index[~new], rows[~new], found[~new]
                )
        present = int((origin[:, 0] >= 0).sum())
        return out, (present, present - int(out.any(1).sum()), doubled)

    def _compare(
        self,
        shard: int,
        out: np.ndarray,
        origin: np.ndarray,
        pair: int,
        index: np.ndarray,
        rows: np.ndarray,
        found: np.ndarray,
    ) -> None:
        """Refuse rows that are not what their sample has already, bit for bit."""
        known = np.ascontiguousarray(out[index]).view(np.uint8)
        other = np.flatnonzero((known != np.ascontiguousarray(found).view(np.uint8)).any(1))
        if len(other):
            i = int(other[0])
            first_pair, first_row = origin[index[i]].tolist()
            raise DataError(
                f"sample {int(index[i])} of shard {shard} has two embeddings that differ: row "
                f"{first_row} of {self._files[first_pair].bytes.url} and row {int(rows[i])} of "
                f"{self._files[pair].bytes.url}; keep the first with --on_duplicate first"
            )


def common(files: Sequence[RowFile]) -> RowFile:
    """Return a file that has rows, which all others are like.

    Raises:
        DataError: Two are of different types or dimensions.
        ValueError: None has rows.
    """
    used = [file for file in files if len(file)]
    if not used:
        raise ValueError("none of the files of embeddings has a row")
    first = used[0]
    for file in used:
        if (file.rows.native, file.rows.row_size) != (first.rows.native, first.rows.row_size):
            raise DataError(
                f"{file.bytes.url} has {file.rows.dtype} [{file.rows.row_size}] rows and "
                f"{first.bytes.url} {first.rows.dtype} [{first.rows.row_size}]: they are of "
                "different models or runs"
            )
    return first

"""A shard's embeddings as files: rows by the samples' indexes, and a table of whose they are."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..pipes.make_once import make_once
from ..pipes.npy import read_npy
from ..pipes.remote import Version
from .embed_part import Embedded

KIND_FOLDERS = {"image": "img_emb", "text": "text_emb"}
_RECORD = b"penstock"


@dataclass(frozen=True)
class Record:
    """What a shard's files were made of; it stands in the table, which is written last.

    Attributes:
        version: Of the shard.
        samples: In the shard.
        rows: Of each file.
        faults: Key and fault of each image or text that has no embedding.
    """

    version: list[int]
    samples: int
    rows: int
    faults: list[list[str]]


class ShardFiles:
    """The files of one shard.

    Args:
        out: Folder of all.
        digits: The shard's number, as its name has it.
        kinds: "image", "text" or both.
    """

    def __init__(self, out: Path, digits: str, kinds: Sequence[str]) -> None:
        names = [KIND_FOLDERS[kind] for kind in kinds]
        self.arrays = [out / name / f"{name}_{digits}.npy" for name in names]
        self.kinds = tuple(kinds)
        self.table = out / "metadata" / f"metadata_{digits}.parquet"
        self.part = out / "parts" / f"{digits}.part"

    def record(self, version: Version) -> Record | None:
        """Return the record of files that are whole and of this version of the shard, or None."""
        import pyarrow
        import pyarrow.parquet

        try:
            found = pyarrow.parquet.read_schema(self.table).metadata or {}
            values = json.loads(found[_RECORD])
            record = Record(**{field.name: values[field.name] for field in fields(Record)})
            lengths = {len(read_npy(str(path))) for path in self.arrays}
        except (FileNotFoundError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
            return None
        return record if record.version == list(version) and lengths <= {record.rows} else None

    def write(
        self,
        version: Version,
        keys: Sequence[str],
        rows: np.ndarray,
        batches: Sequence[Embedded],
        columns: Sequence[str],
    ) -> Record:
        """Write the files, each whole or not at all, the table last, and return the record.

        Args:
            version: Of the shard.
            keys: Of its samples.
            rows: The row of each, int64.
            batches: What was made of all of them, in order.
            columns: Names of the columns in the notes.

        Raises:
            OSError: A file cannot be written.
        """
        count = int(rows.max(initial=-1)) + 1
        for kind, path in zip(self.kinds, self.arrays, strict=True):
            parts = [b.images if kind == "image" else b.texts for b in batches]
            found = np.concatenate(parts)
            out = np.zeros((count, found.shape[1]), found.dtype)
            out[rows] = found
            path.parent.mkdir(exist_ok=True)
            _replace(path, partial(_save, out))
        notes = [note for batch in batches for note in batch.notes]
        faults = [
            [key, fault]
            for key, (_, _, *found_faults) in zip(keys, notes, strict=True)
            for fault in found_faults
            if fault
        ]
        record = Record(list(version), len(keys), count, [[_utf8(k), _utf8(f)] for k, f in faults])
        self._write_table(record, keys, rows, notes, columns)
        return record

    def _write_table(
        self,
        record: Record,
        keys: Sequence[str],
        rows: np.ndarray,
        notes: Sequence[tuple[str, str, str, str]],
        columns: Sequence[str],
    ) -> None:
        import pyarrow
        import pyarrow.parquet

        table: dict[str, list[Any]] = {
            name: [None] * record.rows for name in ("image_path", "key", "caption", *columns)
        }
        for key, row, (caption, values, _, text_fault) in zip(
            keys, rows.tolist(), notes, strict=True
        ):
            table["image_path"][row] = table["key"][row] = _utf8(key)
            table["caption"][row] = None if text_fault else _utf8(caption)
            for name, value in zip(columns, json.loads(values), strict=True):
                table[name][row] = None if value is None else _utf8(value)
        schema = pyarrow.schema([(name, pyarrow.string()) for name in table])
        schema = schema.with_metadata({_RECORD: json.dumps(asdict(record)).encode()})
        self.table.parent.mkdir(exist_ok=True)
        made = pyarrow.table(table, schema)
        _replace(self.table, lambda file: pyarrow.parquet.write_table(made, file))

    def forget_part(self) -> None:
        """Delete what was kept batch by batch."""
        if self.part.exists():
            os.unlink(self.part)


def _save(array: np.ndarray, file: BinaryIO) -> None:
    np.save(file, array)


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have ``write`` write a file, whole or not at all, whatever had its name."""
    made: list[bool] = []

    def once(fd: int) -> None:
        with open(fd, "wb", closefd=False) as file:
            write(file)
        made.append(True)

    make_once(str(path), once, lambda: bool(made))


def _utf8(text: str) -> str:
    """Return a text that Parquet can hold: names in a tar may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()

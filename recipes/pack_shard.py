"""A shard of a pack: its place in the plan, its record, and its bytes."""

import fcntl
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from ..pipes.errors import DataError
from .pack_input import PackInput
from .pack_members import Members
from .write_file import write_file

PLAN = "plan.json"
VERSION = 1


@dataclass(frozen=True)
class Shard:
    """Which samples of the input a shard holds.

    Attributes:
        name: Of its file.
        start: Number of its first sample in the input.
        stop: Number of the sample behind its last.
    """

    name: str
    start: int
    stop: int

    def record_path(self, out: Path) -> Path:
        """Return where its record goes: under img2dataset's name, with img2dataset's count."""
        return out / self.name.replace(".tar", "_stats.json")


@dataclass(frozen=True)
class Record:
    """What went into a shard that is whole, and what did not.

    Attributes:
        count: Samples of the input.
        successes: Samples in the shard.
        bytes: Size of the shard; 0: there is none, since there was no sample for it.
        failed: Name and fault of each sample that was left out.
        marks: `PackInput.mark` of each sample of the input.
    """

    count: int
    successes: int
    bytes: int
    failed: list[list[str]]
    marks: str

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_file(path, json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> "Record | None":
        """Return the record at a path; None where there is none, or none of ours."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return Record(**{field.name: values[field.name] for field in fields(Record)})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def make_shards(count: int, samples_per_shard: int) -> list[Shard]:
    """Return the shards of ``count`` samples; the last may have fewer."""
    starts = range(0, count, samples_per_shard)
    return [
        Shard(f"{number:05d}.tar", start, min(start + samples_per_shard, count))
        for number, start in enumerate(starts)
    ]


def check_plan(out: Path, source: PackInput, shards: list[Shard], options: dict[str, Any]) -> None:
    """Write the plan of a pack, or compare it with that of the run that is gone on with.

    Raises:
        ValueError: It is another one, and the message says in what; or there are shards in the
            folder, and no plan.
    """
    plan = {
        "version": VERSION,
        "samples": len(source),
        "options": options,
        "shards": [
            {
                "name": shard.name,
                "samples": shard.stop - shard.start,
                "first": source.key(shard.start),
                "last": source.key(shard.stop - 1),
            }
            for shard in shards
        ],
    }
    path = out / PLAN
    if not path.exists():
        found = sorted(p.name for p in out.glob("*.tar"))
        if found and not path.exists():  # another process may have written it just now
            raise ValueError(f"{out} has shards already ({found[0]}) and no {PLAN}: choose another")
        write_file(path, json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; delete it") from None
    # As JSON has them: a key may hold what UTF-8 does not.
    text = json.dumps(plan, ensure_ascii=False).encode("utf-8", "replace").decode()
    if difference := _difference(known, json.loads(text)):
        raise ValueError(
            f"{path} is of a run that packed something else: {difference}; choose another folder, "
            "or delete the shards and the plan"
        )


def _difference(known: Any, plan: dict[str, Any]) -> str:
    if not isinstance(known, dict) or known.get("version") != VERSION:
        return f"expected version {VERSION}"
    for name in ("samples", "options"):
        if known.get(name) != plan[name]:
            return f"{name} was {known.get(name)}, is {plan[name]}"
    for old, new in zip(known["shards"], plan["shards"], strict=True):
        if old != new:
            return f"{new['name']} held {old['first']} to {old['last']}, would hold " + (
                f"{new['first']} to {new['last']}"
            )
    return ""


def whole_record(out: Path, shard: Shard, source: PackInput) -> Record | None:
    """Return the record of a shard that is whole, None where it must be written.

    Raises:
        ValueError: The input is another one than what the shard was made of; it names the sample.
    """
    path = shard.record_path(out)
    record = Record.load(path)
    if record is None or record.bytes != _size(out / shard.name):
        return None
    marks = record.marks.split()
    for i, mark in zip(range(shard.start, shard.stop), marks, strict=True):
        if source.mark(i) != mark:
            raise ValueError(
                f"{source.name(i)} has changed since it was packed into {out / shard.name}: delete "
                f"{path.name} to have that shard written anew"
            )
    return record


def write_shard(
    out: Path, shard: Shard, source: PackInput, samples: Iterable[tuple[int, Members | DataError]]
) -> Record:
    """Write a shard and then its record, and return the record.

    The same samples make the same bytes. What has the shard's name is whole: it is written under
    another one, to the disk, and renamed.

    Args:
        out: Folder.
        shard: Which one.
        source: Where its samples come from.
        samples: Number in the input, and its files or what is wrong with it.

    Raises:
        BlockingIOError: Another process writes this shard.
        OSError: It cannot be written.
    """
    marks = " ".join(source.mark(i) for i in range(shard.start, shard.stop))
    failed: list[list[str]] = []
    target = out / shard.name
    with _part(target) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for i, found in samples:
                if isinstance(found, DataError):
                    failed.append([source.name(i), str(found)])
                    continue
                for ending, data in found:
                    info = tarfile.TarInfo(f"{i:09d}.{ending}")
                    info.size = len(data)  # its time and its owner are 0
                    tar.addfile(info, io.BytesIO(data))
        file.flush()
        os.fsync(file.fileno())
        count = shard.stop - shard.start
        if len(failed) == count:  # readers of shards refuse one without samples
            target.unlink(missing_ok=True)
            os.unlink(file.name)
        else:
            os.replace(file.name, target)
    record = Record(count, count - len(failed), _size(target), failed, marks)
    record.save(shard.record_path(out))
    return record


@contextmanager
def _part(target: Path) -> Iterator[IO[bytes]]:
    """Yield the empty file that shall become ``target``, locked: a killed run's is taken over."""
    part = target.with_name(f"{target.name}.part")
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is writing {target}: wait for it") from None
        file.truncate(0)
        file.seek(0)  # a tar is padded from where it begins
        try:
            yield file
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

"""Rewriting a cache's shards without what is not wanted, and looking for damage."""

import fcntl
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from .entry_files import list_shards
from .entry_index import SIDECAR, entry_of, sidecar
from .entry_part import PART, EntryPart
from .entry_shard import TAIL, Entry, Found, read_whole, scan_entries
from .own_file import OwnFile

LOCK = "prune.lock"

Keep = Callable[[str], bool]


class Pruned(NamedTuple):
    """What `prune_shards` has done.

    Attributes:
        entries: Entries dropped: not wanted, there twice, or damaged.
        bytes: By how many bytes the shards are smaller.
    """

    entries: int
    bytes: int


class _Plan(NamedTuple):
    """What to do to a shard: the entries that stay in it, and whether it is written anew."""

    path: str
    size: int
    kept: list[Entry]
    dropped: int
    rewrite: bool


def prune_shards(folder: str, keep: Keep, shard_size: int) -> Pruned:
    """Write finished shards anew without entries that are not wanted, are there twice or damaged.

    Small shards become one. New shards are whole on the disk before an old one goes: a kill leaves
    entries twice at most. Shards that processes are writing are left.

    Raises:
        OSError: A file cannot be read or written.
    """
    with OwnFile(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT) as lock:
        lock.lock(fcntl.LOCK_EX)
        plans = _plans(folder, keep, shard_size)
        todo = [plan for plan in plans if plan.rewrite]
        if len(todo) == 1 and not todo[0].dropped:  # one small shard: it would be the same again
            todo = []
        written = _rewrite(folder, todo, shard_size)
        _remove_lone_indexes(folder)
    dropped = sum(plan.dropped for plan in todo)
    return Pruned(dropped, sum(plan.size for plan in todo) - written)


def _plans(folder: str, keep: Keep, shard_size: int) -> list[_Plan]:
    seen: set[int] = set()
    plans = []
    for stem in sorted(list_shards(folder)[0]):
        path = os.path.join(folder, f"{stem}.tar")
        with OwnFile(path) as file:
            found = scan_entries(file.fd, verify=True)
            size = os.fstat(file.fd).st_size
        kept, dropped = [], 0
        for row in found.records.tolist():
            entry = entry_of(row)
            if (
                entry.name in seen
                or entry.offset in found.damaged
                or not keep(f"{entry.name:032x}")
            ):
                dropped += 1
            else:
                seen.add(entry.name)
                kept.append(entry)
        broken = found.problem is not None or found.end + len(TAIL) != size
        if broken:
            warnings.warn(
                f"{path}: byte {found.end} of {size}: what follows is damaged or was cut off, and "
                "is dropped; its entries are made anew when they are asked for",
                RuntimeWarning,
                stacklevel=4,
            )
        plans.append(
            _Plan(
                path,
                size,
                kept,
                dropped + broken,
                bool(dropped) or broken or size < shard_size // 2,
            )
        )
    return plans


def _rewrite(folder: str, plans: list[_Plan], shard_size: int) -> int:
    """Write what is kept of shards to new ones, and remove the old ones; return the bytes."""
    part: EntryPart | None = None
    copied: list[str] = []
    total = 0

    def seal() -> int:
        size = 0
        if part is not None and (path := part.seal()) is not None:
            size = os.stat(path).st_size
        for old in copied:
            for name in (old, sidecar(old)):
                with suppress(FileNotFoundError):
                    os.unlink(name)
        copied.clear()
        return size

    for plan in plans:
        with OwnFile(plan.path) as file:
            for entry in plan.kept:
                if part is not None and part.end + entry.end - entry.offset > shard_size:
                    total += seal()
                    part = None
                part = part or EntryPart.create(folder)
                blocks = read_whole(file.fd, entry)
                if blocks is None:
                    raise OSError(f"{plan.path} was changed while it was read")
                part.append(entry, [blocks])
        copied.append(plan.path)
    return total + seal()


def _remove_lone_indexes(folder: str) -> None:
    sealed, parts = list_shards(folder)
    for name in os.listdir(folder):
        if name.endswith(SIDECAR) and name.removesuffix(SIDECAR) not in sealed | parts:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))


def check_shards(folder: str) -> list[str]:
    """Return what is damaged in a folder, verifying all checksums: a line for each, naming file and
    byte. What a part lacks at its end is no damage."""
    lines = []
    sealed, parts = list_shards(folder)
    for stem in sorted(sealed | parts):
        path = os.path.join(folder, f"{stem}.tar{'' if stem in sealed else PART}")
        try:
            with OwnFile(path) as file:
                found = scan_entries(file.fd, verify=True)
                size = os.fstat(file.fd).st_size
        except FileNotFoundError:
            continue  # finished or pruned meanwhile
        lines += _damage(path, found, size, stem in sealed)
    return lines


def _damage(path: str, found: Found, size: int, sealed: bool) -> list[str]:
    names = {row[3]: f"{row[0]:016x}{row[1]:016x}" for row in found.records.tolist()}
    lines = [
        f"{path}: byte {at}: entry {names[at]} is damaged: its checksum is wrong"
        for at in found.damaged
    ]
    if sealed and found.problem is not None:
        lines.append(f"{path}: byte {found.end} of {size}: {found.problem}")
    elif sealed and found.end + len(TAIL) != size:
        lines.append(f"{path}: byte {found.end} of {size}: expected the shard's end")
    return lines

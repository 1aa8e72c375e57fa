"""Reading the entries of a cache's folder, while other processes write there."""

import errno
import json
import os
import time
from collections.abc import Iterator
from threading import RLock
from typing import Any
from zlib import crc32

from ..transforms.entry import Tensors
from ..transforms.entry_bytes import read_entry
from .entry_files import EntryFiles, Gone
from .entry_index import Place
from .entry_shard import BLOCK, name_number, read_header, source_number
from .errors import DataError

REFRESH = 1.0
"""Seconds between two looks, at least, at what other processes have written."""

TRIES = 20
"""Times that an entry is looked for anew, where its shard is pruned each time."""

OWN = "__entry__"
"""The store's own part of an entry's JSON."""

MUTEX = RLock()
"""Of all stores: none is at work in another thread while the process forks."""


class EntryReader:
    """Finds and reads entries; see `EntryStore`.

    Args:
        folder: The local folder; there need not be one yet.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._files = EntryFiles(folder)
        self._next_look = 0.0

    def __contains__(self, name: str) -> bool:
        """Return whether there is such an entry."""
        return self._find(name_number(name)) is not None

    def read(self, name: str) -> Tensors | None:
        """Return an entry's tensors, in memory of their own, or None where there is none.

        Raises:
            ValueError: ``name`` is none.
            DataError: The entry is damaged; the message names its file and byte.
            OSError: It cannot be read.
        """
        number = name_number(name)
        for _ in range(TRIES):
            place = self._find(number)
            if place is None:
                return None
            try:
                tensors = self._read(place)
            except Gone:  # pruned by another process: it may lie in another shard now
                self.refresh()
                continue
            if tensors is not None:
                return tensors
            with MUTEX:
                self._files.index.drop(number)
        raise FileNotFoundError(
            errno.ENOENT, f"the shard of entry {name} comes and goes", self.folder
        )

    def _find(self, number: int) -> Place | None:
        """Return the place of an entry; at a miss, what others have written is looked at."""
        with MUTEX:
            place = self._files.index.find(number)
            if place is None and time.monotonic() >= self._next_look:
                self.refresh()
                place = self._files.index.find(number)
        return place

    def refresh(self) -> None:
        """Look now at what other processes have written: a miss does it once a second at most.

        Raises:
            DataError: A finished shard is damaged, or none of a cache.
        """
        with MUTEX:
            start = time.monotonic()
            self._files.look()
            taken = time.monotonic() - start
            self._next_look = start + taken + max(REFRESH, 10 * taken)

    def _read(self, place: Place) -> Tensors | None:
        """Return an entry's tensors; None where it is not whole, and was never finished."""
        entry = place.entry
        with MUTEX:
            file, path, sealed = self._files.open(place.shard)
        data = bytearray(BLOCK + entry.data)  # with its header, which says whose tensors they are
        got = os.preadv(file.fd, [data], entry.body)
        good = got == len(data) and data.startswith(entry.member("safetensors") + b"\0")
        if good and not sealed:  # a power cut may have left anything there
            found = read_header(data[:BLOCK])
            good = found is not None and found[2] == crc32(memoryview(data)[BLOCK:])
        if not good:
            if not sealed:
                return None
            raise DataError(
                f"{path}: byte {entry.body}: expected the tensors of entry {entry.name:032x}; the "
                "shard is damaged: .check() names all such entries, .prune() drops them"
            )
        try:
            return read_entry(data, BLOCK)
        except ValueError as error:
            raise DataError(
                f"{path}: byte {entry.body + BLOCK}: the tensors of entry {entry.name:032x} are "
                f"damaged ({error}): .check() names all such entries, .prune() drops them"
            ) from error

    def about(self, source: str) -> list[dict[str, Any]]:
        """Return what was said of all entries of a source, the newest last.

        Raises:
            DataError: It is damaged.
        """
        return self._about(source, TRIES)

    def _about(self, source: str, tries: int) -> list[dict[str, Any]]:
        number = source_number(source)
        found: list[tuple[float, dict[str, Any]]] = []
        with MUTEX:
            if time.monotonic() >= self._next_look:
                self.refresh()
            places = self._files.index.of_source(number)
        for place in places:
            try:
                said = self._said(place)
            except Gone:
                self.refresh()
                return self._about(source, tries - 1) if tries else []
            own = said.pop(OWN, None)
            if isinstance(own, dict) and own.get("source") == source:
                found.append((float(own.get("time", 0)), said))
        found.sort(key=lambda pair: pair[0])
        return [said for _, said in found]

    def _said(self, place: Place) -> dict[str, Any]:
        entry = place.entry
        with MUTEX:
            file, path, _ = self._files.open(place.shard)
        data = os.pread(file.fd, BLOCK + entry.about, entry.offset)
        found = read_header(data[:BLOCK])
        try:
            if found is None or found[0] != entry.member("json"):
                raise ValueError("its header is another")
            said = json.loads(data[BLOCK:])
            if not isinstance(said, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}: byte {entry.offset}: the JSON of entry {entry.name:032x} is damaged "
                f"({error}): .check() names all such entries, .prune() drops them"
            ) from error
        return said

    def names(self) -> Iterator[str]:
        """Yield the names of all entries that there are at the first."""
        self.refresh()
        yield from self._files.index.names()

    def sizes(self) -> tuple[int, int]:
        """Return the number of entries and the bytes of their tensors, looked at anew at the most
        once a second."""
        with MUTEX:
            if time.monotonic() >= self._next_look:
                self.refresh()
            return len(self._files.index), self._files.index.bytes


os.register_at_fork(
    before=MUTEX.acquire, after_in_parent=MUTEX.release, after_in_child=MUTEX.release
)

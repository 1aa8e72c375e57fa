"""The shards of a cache's folder as one process knows them."""

import os
from collections import OrderedDict

import numpy as np

from .entry_index import EntryIndex, sealed_records
from .entry_part import PART
from .entry_shard import Entry, scan_entries
from .own_file import OwnFile

MOST_OPEN = 128
"""Shards kept open at once."""


class Gone(Exception):
    """A shard is no longer in the folder: another process has pruned it."""


class _Shard:
    """A shard: its name without an ending, whether it is finished, and how far it is known."""

    __slots__ = ("known", "sealed", "stem")

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.sealed = False
        self.known = 0


class EntryFiles:
    """Finds the shards of a folder, and the entries in them. Not safe among threads.

    Args:
        folder: The folder; there need not be one yet.

    Attributes:
        index: All entries that are known.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._forget()

    def _forget(self) -> None:
        self.index = EntryIndex()
        self._shards: list[_Shard] = []
        self._numbers: dict[str, int] = {}
        self._open: OrderedDict[int, OwnFile] = OrderedDict()

    def look(self) -> None:
        """Take in what has come since the last look.

        Where a shard has gone, all are looked at anew: what it had may lie in another one.

        Raises:
            DataError: A finished shard is damaged.
            OSError: The folder or a file cannot be read.
        """
        sealed, parts = list_shards(self.folder)
        there = {*sealed, *parts}
        if any(s.stem not in there for s in self._shards if s.sealed or s.known):
            self._forget()
        found: list[tuple[int, np.ndarray]] = []
        for stem in sorted(there):
            number = self._number(stem)
            shard = self._shards[number]
            if not shard.sealed:
                records = self._read(shard, stem in sealed)
                if records is None:  # it was pruned since the listing
                    continue
                if len(records):
                    found.append((number, records))
        self.index.add(found)

    def _number(self, stem: str) -> int:
        number = self._numbers.setdefault(stem, len(self._shards))
        if number == len(self._shards):
            self._shards.append(_Shard(stem))
        return number

    def _read(self, shard: _Shard, sealed: bool) -> np.ndarray | None:
        """Return the entries of a shard that are not known yet; None where it has gone."""
        path = self._path(shard.stem, sealed)
        try:
            with OwnFile(path) as file:
                if not sealed:
                    found = scan_entries(file.fd, shard.known)
                    shard.known = found.end
                    return found.records
                records = sealed_records(path, file.fd)
        except FileNotFoundError:
            if sealed:
                return None
            return self._read(shard, True)  # finished since the listing
        records = records[records["offset"] >= shard.known]
        shard.sealed = True
        return records

    def _path(self, stem: str, sealed: bool) -> str:
        return os.path.join(self.folder, f"{stem}.tar{'' if sealed else PART}")

    def open(self, number: int) -> tuple[OwnFile, str, bool]:
        """Return a shard's open file, its path, and whether it is finished.

        The file stays open as long as the caller keeps it.

        Raises:
            Gone: There is no such shard any more.
            OSError: It cannot be opened.
        """
        shard = self._shards[number]
        path = self._path(shard.stem, shard.sealed)
        file = self._open.get(number)
        if file is not None and file.fd >= 0:  # else a parent's
            self._open.move_to_end(number)
            return file, path, shard.sealed
        try:
            file = OwnFile(path)
        except FileNotFoundError:
            if shard.sealed:
                raise Gone(path) from None
            try:
                file = OwnFile(self._path(shard.stem, True))  # finished since the last look
            except FileNotFoundError:
                raise Gone(path) from None
        self._open[number] = file
        if len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)  # it closes with its last user
        return file, path, shard.sealed

    def wrote(self, stem: str, entry: Entry) -> None:
        """Take in an entry that this process has written behind all others of its part."""
        number = self._number(stem)
        self._shards[number].known = entry.end
        self.index.put(number, entry)

    def adopted(self, stem: str, records: np.ndarray, end: int) -> None:
        """Take in a part that this process goes on with, as it now is."""
        shard = self._shards[self._number(stem)]
        if shard.known > end:  # what was cut off seemed whole
            self._forget()
            self.look()
            return
        self.index.add([(self._numbers[stem], records[records["offset"] >= shard.known])])
        shard.known = end

    def finished(self, stem: str) -> None:
        """Take note that this process has finished a part."""
        self._shards[self._number(stem)].sealed = True


def list_shards(folder: str) -> tuple[set[str], set[str]]:
    """Return the stems of a folder's finished shards, and of those that are being written."""
    sealed, parts = set(), set()
    try:
        with os.scandir(folder) as found:
            for item in found:
                if item.name.endswith(".tar"):
                    sealed.add(item.name[: -len(".tar")])
                elif item.name.endswith(".tar" + PART):
                    parts.add(item.name[: -len(".tar" + PART)])
    except FileNotFoundError:
        pass
    return sealed, parts - sealed

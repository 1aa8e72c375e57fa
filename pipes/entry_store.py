"""The entries of a cache: a folder of tar shards, read and written by any number of processes."""

import errno
import json
import os
import time
from collections.abc import Callable, Container, Mapping
from typing import Any

from ..transforms.entry import Tensors
from ..transforms.entry_bytes import entry_bytes
from .cache_room import parse_size
from .entry_field import pixel_metadata
from .entry_files import list_shards
from .entry_manifest import read_manifest, write_manifest
from .entry_part import PART, EntryPart
from .entry_prune import Pruned, check_shards, prune_shards
from .entry_reader import MUTEX, OWN, EntryReader
from .entry_shard import MOST_ABOUT, MOST_DATA, Entry, entry_blocks, name_number, source_number
from .urls import local_path

MANIFEST = "manifest.json"


class EntryStore(EntryReader):
    """Keeps entries by name in a folder of tar shards: a `penstock.transforms.entry.Store`.

    Any number of processes may write and read at once, with no process that leads. Each writes its
    own shard, an entry by one write: what `write` returned from is found by all, and no kill loses
    it. Two that write one name leave it twice, which does no harm; `prune` drops one. A shard is
    finished at ``shard_size`` and by `close`; what a killed process left is gone on with.

    The folder holds ``<random>.tar`` (webdataset's form: a sample ``<source>-<name>`` with the
    fields ``json`` and ``safetensors``), beside each an index (made again where it is lost),
    ``.tar.part`` what is being written, and ``manifest.json``. It may be moved and copied.

    Where ``about`` has ``field`` (a name), ``target_size``, ``original_size``, ``crop_top_left``
    (two whole numbers each, height before width) or ``flipped``, they go into the tensors' own
    metadata too: shards are then a data set, whose ``.decode()`` gives the tensors by that name,
    and the others with them, and whose bucketers know the size.

    A store is pickled as its arguments. Forked children share its index, and write shards of their
    own.

    Args:
        folder: The folder; it is made at the first write.
        shard_size: Bytes from which on a shard is finished, such as ``"256MB"``.

    Raises:
        ValueError: ``folder`` is not local, or ``shard_size`` is no size.
    """

    def __init__(self, folder: str | os.PathLike[str], *, shard_size: str | int = "256MB") -> None:
        path = local_path(os.fspath(folder))
        if path is None:
            raise ValueError(f"a cache's entries are written to a local folder, got {folder!r}")
        super().__init__(path)
        self.shard_size = parse_size(shard_size) or 0
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1 byte, got {shard_size!r}")
        self._part: EntryPart | None = None

    def __repr__(self) -> str:
        return f"EntryStore({self.folder!r}, shard_size={self.shard_size})"

    def __reduce__(self) -> tuple[Callable[..., "EntryStore"], tuple[str, int]]:
        return _make, (self.folder, self.shard_size)

    # -- writing --------------------------------------------------------------------------------

    def write(self, name: str, tensors: Tensors, about: Mapping[str, Any], source: str) -> None:
        """Keep an entry, unless there is one of this name; it is kept when this returns.

        Args:
            name: From `penstock.transforms.entry_name`.
            tensors: What it holds, at most 1 GiB; dtypes are kept.
            about: What is to be known of it, in JSON values; see the class.
            source: Names what it was made for, whatever the settings.

        Raises:
            ValueError: An argument is none that can be kept.
            OSError: It cannot be written.
        """
        number = name_number(name)
        if self._find(number) is not None:
            return
        now = time.time()
        data = entry_bytes(tensors, pixel_metadata(about))
        own = {OWN: {"source": source, "time": now}}
        said = json.dumps({**about, **own}, allow_nan=False).encode()
        if len(data) > MOST_DATA or len(said) > MOST_ABOUT:
            raise ValueError(
                f"entry {name}: {len(data):,} bytes of tensors and {len(said):,} of JSON; at most "
                f"{MOST_DATA:,} and {MOST_ABOUT:,} are kept"
            )
        entry = Entry(number, source_number(source), 0, len(said), len(data))
        blocks = entry_blocks(entry, said, data, int(now))
        with MUTEX:
            if self._files.index.find(number) is None:
                part = self._own_part(entry.end)
                self._files.wrote(_stem(part.path), part.append(entry, blocks))

    def _own_part(self, size: int) -> EntryPart:
        """Return the part that the next entry, of ``size`` bytes, goes to."""
        if self._part is not None and not self._part.owned:
            self._part = None  # a parent's
        if self._part is not None and self._part.end and self._part.end + size > self.shard_size:
            self._seal_own()
        if self._part is None:
            self._part = self._adopted() or EntryPart.create(self.folder)
        return self._part

    def _adopted(self) -> EntryPart | None:
        """Return a part that a process left when it ended, or None."""
        for stem in sorted(list_shards(self.folder)[1]):
            try:
                part = EntryPart.adopt(os.path.join(self.folder, f"{stem}.tar{PART}"))
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                    continue  # another user's, or a folder that may only be read
                raise
            if part is not None:
                self._files.adopted(stem, part.records, part.end)
                if part.end < self.shard_size:
                    return part
                self._seal(part)
        return None

    def _seal_own(self) -> None:
        part, self._part = self._part, None
        if part is not None and part.owned:
            try:
                self._seal(part)
            except BaseException:
                self._part = part
                raise

    def _seal(self, part: EntryPart) -> None:
        if part.seal() is not None:
            self._files.finished(_stem(part.path))

    def close(self) -> None:
        """Finish the shard that this process writes, and those of processes that have ended.

        Whatever is written after it begins another shard. A store that is never closed loses
        nothing: the next one goes on with its shard.

        Raises:
            OSError: They cannot be written.
        """
        with MUTEX:
            self._seal_own()
            while (part := self._adopted()) is not None:
                self._seal(part)

    def __enter__(self) -> "EntryStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the whole ------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """Return what was last said of the whole cache by `describe`; {} where nothing was.

        Raises:
            DataError: ``manifest.json`` holds no JSON object.
        """
        return read_manifest(os.path.join(self.folder, MANIFEST))

    def describe(self, manifest: Mapping[str, Any]) -> None:
        """Write ``manifest.json``, whole or not at all; one that says the same is left.

        Raises:
            ValueError: It holds a number that is not finite.
            TypeError: It holds no JSON values.
            OSError: It cannot be written.
        """
        write_manifest(os.path.join(self.folder, MANIFEST), manifest)

    def check(self) -> list[str]:
        """Return what is damaged, verifying all checksums: a line for each, with file and byte."""
        return check_shards(self.folder)

    def prune(self, keep: Container[str] | Callable[[str], bool] | None = None) -> Pruned:
        """Drop the entries that are not to be kept; return how many, and their bytes.

        Shards are written anew without them, and without entries that are there twice or damaged;
        small shards become one. New shards are on the disk before old ones go, so that a kill loses
        nothing. Other processes may read and write meanwhile; shards that they write are left.

        Args:
            keep: The names to keep, or a function that says it of each; None: all.

        Raises:
            OSError: A shard cannot be read or written.
        """
        if keep is None:
            keeps: Callable[[str], bool] = _all
        else:
            keeps = keep if callable(keep) else keep.__contains__
        if not os.path.isdir(self.folder):
            return Pruned(0, 0)
        self.close()
        done = prune_shards(self.folder, keeps, self.shard_size)
        self.refresh()
        return done


def _make(folder: str, shard_size: int) -> EntryStore:
    return EntryStore(folder, shard_size=shard_size)


def _all(name: str) -> bool:
    return True


def _stem(path: str) -> str:
    return os.path.basename(path).removesuffix(PART).removesuffix(".tar")

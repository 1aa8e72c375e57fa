"""Check the samples of manifests and folders."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from itertools import islice

import numpy as np

from ..pipes import DataError, ManifestReader
from ..pipes.draws import hash64, permutation
from ..pipes.errors import MissingData
from ..pipes.file_cache import RemoteFile
from ..pipes.image_size import image_size
from ..pipes.read import read_value
from ..pipes.sample import Extent, Sample, Stored
from ..pipes.split_table import PartTable
from ..pipes.table import JoinedTable, Table
from ..pipes.table_folder import FolderTable, Missing
from .tally import Fault, Tally

AT_ONCE = 32
"""Rows looked at together, and in memory together."""


class RowCheck:
    """Looks at the rows of a manifest, or at the images of a folder, in their order.

    Args:
        reader: The rows.
        limit: How many to look at, taken at random; None: all of them.
        seed: Seed of which are taken.
    """

    def __init__(self, reader: ManifestReader, limit: int | None, seed: int = 0) -> None:
        self.reader = reader
        self._source = reader.open(False)
        n = len(reader.table)
        self._rows = np.arange(n)
        if limit is not None and limit < n:
            self._rows = np.sort(permutation(n, hash64(seed))[:limit])

    def __len__(self) -> int:
        """Return the number of rows looked at."""
        return len(self._rows)

    def run(self, tally: Tally, pool: Executor) -> Iterator[int]:
        """Look at all rows; yield, after each, how many there will be."""
        rows = iter(self._rows.tolist())
        while some := list(islice(rows, AT_ONCE)):
            samples = [self._source.sample(row, 0) for row in some]
            list(pool.map(_fetch, samples))
            # Here and not in the threads: the files that are kept open are not for several.
            found = [_read(sample) for sample in samples]
            looked = list(pool.map(lambda one: _look(tally, one), found))
            sizes = np.array([size for size, *_ in looked], np.int64)
            tally.sizes.add(sizes, partial(self._name_of, some))
            for row, sample, (_, digest, fault) in zip(some, samples, looked, strict=True):
                url, key = self._source.name(row, 0)
                tally.add(url, key, digest, fault, _caption_fault(tally, sample))
                yield len(self)
        for folder in _folders(self.reader.table):
            count, names = folder.alone
            tally.findings.counts["lone_caption"] += count
            for name in names:
                inside = name.removeprefix(folder.path + "/")
                tally.findings.example("lone_caption", folder.path, inside, "no image of this name")

    def _name_of(self, rows: list[int], i: int) -> tuple[str, str]:
        return self._source.name(rows[i], 0)

    def name(self, i: int) -> tuple[str, str]:
        """Return URL and key of the ``i``-th row that was looked at."""
        return self._source.name(int(self._rows[i]), 0)


def _fetch(sample: Sample) -> None:
    """Have the cache fetch what lies at URLs, several at a time."""
    for value in sample.values():
        if isinstance(value, RemoteFile):
            with suppress(DataError):  # it comes again where the file is read
                value.fetch()


def _read(sample: Sample) -> bytes | Fault:
    """Return the bytes of a row's image, or why there are none."""
    image = sample["image"]
    try:
        return read_value(image)
    except DataError as error:
        return "no_image", str(error)
    except OSError as error:
        if isinstance(image, Extent):
            return "no_image", f"{image.path} cannot be read: {error}"
        raise  # a server that does not answer


def _look(tally: Tally, found: bytes | Fault) -> tuple[tuple[int, int], int, Fault | None]:
    """Return the size of an image (0 without one, -1 where it has none), its hash, its fault."""
    if not isinstance(found, bytes):
        return (0, 0), 0, found
    try:
        size = image_size(found)
    except DataError:
        size = (-1, -1)
    return size, *tally.look("image", found)


def _caption_fault(tally: Tally, sample: Sample) -> Fault | None:
    """Return what is wrong with a row's caption, without the advice that its error gives."""
    caption = sample.get("caption")
    if isinstance(caption, Missing):
        return "no_caption", caption.reason.partition(": write")[0]
    if isinstance(caption, Stored):
        try:
            caption.read()
        except MissingData as error:
            return "empty_caption", str(error).partition(": write")[0]
        except DataError as error:
            return "no_caption", str(error)
    return tally.caption_fault(sample)


def _folders(table: Table) -> Iterator[FolderTable]:
    """Yield the folders among the tables that a table is made of."""
    if isinstance(table, FolderTable):
        yield table
    elif isinstance(table, PartTable):
        yield from _folders(table.table)
    elif isinstance(table, JoinedTable):
        for one in table.tables:
            yield from _folders(one)

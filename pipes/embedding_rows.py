"""The open embeddings of one process: rows of .npy files, or members of the tars themselves."""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .cached_shard import CachedShard
from .companion import Companion
from .decode_fields import ARRAYS, NO_PICKLE, PICKLES, kind
from .embedding import EmbeddingForm, EmbeddingMember, EmbeddingRow
from .errors import DataError, MissingData
from .key_index import KeyIndex
from .npy_row_file import RowFile
from .read import forget, read_extent
from .read_ahead import ReadAhead
from .remote import ShardReplaced
from .sample import KEY, REF, UNLOADED, URL, Extent, Sample, Typed
from .shard_cache import ShardCache
from .sources import Sources
from .urls import local_path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowJoin:
    """What a joiner of rows says of itself to each process.

    Attributes:
        field: Name of the field that samples get.
        where: What errors call the place of the files.
        files: The .npy files by their numbers.
        digits: The digits of each tar's name, by its URL.
        keys: How keys name rows.
        form: What embeddings look like.
        cache: Where remote files go.
    """

    field: str
    where: str
    files: Mapping[int, str]
    digits: Mapping[str, str]
    keys: KeyIndex
    form: EmbeddingForm
    cache: ShardCache


class _Shard(NamedTuple):
    """A tar's file and the row of each of its samples; or what is wrong with them.

    Attributes:
        rows: int64 [samples]; None where the keys do not tell, and then ``fault`` says why.
        file: The file; None where there is none that can be read, and then ``fault`` names it.
        fault: What is wrong.
        kind: The error that says so.
    """

    rows: "memoryview[int] | None"
    file: RowFile | None
    fault: str = ""
    kind: type[DataError] = DataError


class EmbeddingRows(Companion):
    """Gives samples the rows that their keys name.

    Args:
        how: What is joined.
        sources: The open shards of this process, which know their keys.
    """

    MOST_SAMPLES = 2_000_000

    def __init__(self, how: RowJoin, sources: Sources) -> None:
        self.how = how
        self.holds = any(local_path(url) is None for url in how.files.values())
        self._sources = sources
        self._open: OrderedDict[str, _Shard] = OrderedDict()
        self._samples = 0
        self._cached: dict[int, CachedShard] = {}
        self._gone: set[int] = set()
        self._stats: dict[int, tuple[int, int]] = {}  # of local files: outlive their stay in _open
        self._ahead = ReadAhead()
        self._told = False

    def join(self, sample: Sample) -> Sample:
        how, ref = self.how, sample[REF]
        shard = self._open.get(sample[URL])
        if shard is None:
            shard = self._enter(sample[URL], ref.shard)
        else:
            self._open.move_to_end(sample[URL])
        if shard.rows is None:
            raise DataError(shard.fault)
        row = shard.rows[ref.sample]
        if row < 0:
            how.keys.row(sample[KEY], how.digits[sample[URL]])  # raises
        file = shard.file
        if file is None:
            raise shard.kind(f"wants row {row}: {shard.fault}")
        if row >= file.rows:
            raise MissingData(f"wants row {row}: {file.name} has {file.rows} rows")
        return with_field(sample, how.field, EmbeddingRow(file, row, how.form))

    def check(self, sample: Sample) -> None:
        sample[self.how.field].check()

    def _enter(self, url: str, shard: int) -> _Shard:
        keys = self._sources.keys(shard)
        entry = self._open[url] = self._opened(url, keys)
        self._samples += len(entry.rows or ())
        while self._samples > self.MOST_SAMPLES and len(self._open) > 1:
            self._samples -= len(self._open.popitem(last=False)[1].rows or ())
        return entry

    def _opened(self, url: str, keys: list[str]) -> _Shard:
        digits = self.how.digits[url]
        number = int(digits)
        try:
            rows = self.how.keys.rows(keys, digits)
        except DataError as error:
            return _Shard(None, None, str(error))
        name = self.how.files.get(number)
        if name is None:
            fault = f"there is no .npy file of number {number} in {self.how.where}"
            return _Shard(rows.data, None, fault, MissingData)
        try:
            file = self._file(number, name)
        except FileNotFoundError:
            return _Shard(rows.data, None, f"{name} is gone", MissingData)
        except DataError as error:
            return _Shard(rows.data, None, str(error))
        try:
            self.how.form.check(file.dtype, file.dim)
            _refuse_unsorted(file, rows, self.how.form)
        except DataError as error:
            return _Shard(rows.data, None, f"{name}: {error}")
        if file.fortran and not self._told:
            self._told = True
            log.warning(
                "%s is in Fortran order, so it is kept in memory as a whole to be read by row: "
                "rewritten with numpy.ascontiguousarray it need not be",
                name,
            )
        return _Shard(rows.data, file)

    def _file(self, number: int, name: str) -> RowFile:
        path = local_path(name)
        if path is None:
            cached = self._at(number)
            # Elements by themselves may each be a request.
            return RowFile(name, cached.version.size, cached.read, few=0)
        forget(path)  # it may have been replaced since it was last read
        stat = os.stat(path)
        found = stat.st_size, stat.st_mtime_ns
        if self._stats.setdefault(number, found) != found:
            raise ShardReplaced.of(name)
        return RowFile(name, stat.st_size, lambda at, size: read_extent(Extent(path, at, size)))

    # -- remote files are held with their tars ---------------------------------------------------

    def _at(self, number: int) -> CachedShard:
        if number not in self._cached:
            self._cached[number] = CachedShard(self.how.cache, self.how.files[number])
        return self._cached[number]

    def _beside(self, url: str) -> CachedShard | None:
        """Return the remote file beside a tar, or None where there is none."""
        number = int(self.how.digits[url])
        name = self.how.files.get(number)
        if name is None or number in self._gone or local_path(name) is not None:
            return None
        return self._at(number)

    def hold(self, url: str) -> None:
        file = self._beside(url)
        if file is not None:
            try:
                file.acquire()
            except FileNotFoundError:  # it comes again with each sample
                self._gone.add(int(self.how.digits[url]))

    def release(self, url: str) -> None:
        file = self._beside(url)
        if file is not None:
            file.release()

    def ahead(self, url: str) -> None:
        file = self._beside(url)
        if file is not None:
            self._ahead.fetch(file)


def _refuse_unsorted(file: RowFile, rows: np.ndarray, form: EmbeddingForm) -> None:
    """Refuse rows in the order of the samples: beyond the first gap, each would be another's.

    A sorted file has zeros where there is no sample, though it may end early.
    """
    if not len(rows) or rows.max() < file.rows or file.rows != len(rows):
        return
    gaps = np.setdiff1d(np.arange(file.rows), rows)
    if len(gaps) and not form.is_zero(file.row(int(gaps[0]))):
        raise DataError(
            f"it has {file.rows} rows, as many as the tar has samples, and their keys go up to "
            f"row {rows.max()}: row {gaps[0]} holds an embedding though no sample has this index. "
            "Its rows stand in the order of the samples. Write them anew, each at its key's index, "
            "with zeros between"
        )


class EmbeddingMembers(Companion):
    """Gives samples the embedding that they have in the tar.

    Args:
        field: Name of the field that samples get.
        member: The tar's field; None: the only one that holds an array.
        form: What embeddings look like.
    """

    def __init__(self, field: str, member: str | None, form: EmbeddingForm) -> None:
        self.field = field
        self.member = member
        self.form = form

    def join(self, sample: Sample) -> Sample:
        member = self._member(sample)
        rest = {k: v for k, v in sample.items() if k != member}
        return with_field(rest, self.field, EmbeddingMember(member, sample[member], self.form))

    def check(self, sample: Sample) -> None:
        sample[self.field].check()

    def _member(self, sample: Sample) -> str:
        names = [
            name
            for name, value in sample.items()
            if isinstance(value, UNLOADED) and not isinstance(value, Typed)
        ]
        if self.member is not None:
            found = [self.member] if self.member in names else []
        else:
            found = [name for name in names if kind(name) in ARRAYS]
            found = found or [name for name in names if kind(name) in PICKLES][:1]
        if len(found) > 1:
            raise DataError(f"has several embeddings, {', '.join(found)}: say with member=… which")
        if not found:
            wanted = f"member {self.member!r}" if self.member else f"member {' or '.join(ARRAYS)}"
            raise MissingData(f"has no {wanted} in the tar; its fields are: {', '.join(names)}")
        if kind(found[0]) in PICKLES:
            raise DataError(f"member {found[0]!r} {NO_PICKLE}")
        return found[0]


def with_field(sample: Sample, field: str, value: object) -> Sample:
    """Return the sample with one more field.

    Raises:
        DataError: It has one of that name.
    """
    if field in sample:
        raise DataError(f"has a field {field!r} already: join to another with field=…")
    return {**sample, field: value}

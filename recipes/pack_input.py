"""What is packed: the samples of shards, manifests or folders, by number."""

import os
import zlib
from bisect import bisect_right
from itertools import accumulate

from ..pipes import ManifestReader
from ..pipes.file_cache import RemoteFile
from ..pipes.local_file import source_version
from ..pipes.sample import URL, Extent, Sample
from ..pipes.sources import SourcePipe
from ..pipes.table_arrow import RowImage
from ..pipes.table_folder import CaptionFile, Missing
from ..pipes.tar import TarReader


class PackInput:
    """The samples of a source, in the order in which it lists them.

    Args:
        pipe: A source that is not shuffled.
    """

    def __init__(self, pipe: SourcePipe) -> None:
        self._source = pipe.open(False)
        self._ends = (
            None  # a manifest's shards are its rows
            if isinstance(pipe, ManifestReader)
            else list(accumulate(pipe.shard_sizes(False).tolist()))
        )
        self._count = pipe.shard_count() if self._ends is None else self._ends[-1]
        self._tars = isinstance(pipe, TarReader)
        self._shard_marks: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self._count

    def sample(self, i: int) -> Sample:
        """Return a sample; its fields are not loaded."""
        return self._source.sample(*self._at(i))

    def name(self, i: int) -> str:
        """Return the words for a sample: where it lies, and its key."""
        url, key = self._source.name(*self._at(i))
        return f"{key} of {url}"

    def key(self, i: int) -> str:
        """Return a sample's key in its source."""
        return self._source.name(*self._at(i))[1]

    def mark(self, i: int) -> str:
        """Return 8 hex digits that change when the sample does. Images are not read for it.

        The size and the time of its files count, not where they lie.
        """
        shard, index = self._at(i)
        sample = self._source.sample(shard, index)
        words = [f"{name}={self._mark(value)}" for name, value in sample.items() if name != URL]
        prefix = self._shard_mark(shard, sample[URL]) if self._tars else b""
        text = "\n".join(words).encode("utf-8", "surrogatepass")
        return f"{zlib.crc32(prefix + text):08x}"

    def _at(self, i: int) -> tuple[int, int]:
        if self._ends is None:
            return i, 0
        shard = bisect_right(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)

    def _shard_mark(self, shard: int, url: str) -> bytes:
        if shard not in self._shard_marks:
            self._shard_marks[shard] = repr(source_version(url)).encode()
        return self._shard_marks[shard]

    def _mark(self, value: object) -> str:
        if isinstance(value, Extent):
            place = f"{value.offset}+{value.size}"
            if self._tars:
                return place
            return f"{place} {_time(value.path)}"
        if isinstance(value, CaptionFile):
            return _time(value.path)
        if isinstance(value, RemoteFile):
            return f"{value.url} {value.version}"
        if isinstance(value, RowImage):
            return f"{value.row} {value.table.version}"
        return "missing" if isinstance(value, Missing) else repr(value)


def _time(path: str) -> str:
    stat = os.stat(path)
    return f"{stat.st_size} {stat.st_mtime_ns}"

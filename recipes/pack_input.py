"""What is packed: the samples of shards, manifests or folders, by number."""

import os
import zlib
from bisect import bisect_right
from itertools import accumulate

from ..pipes import ManifestReader, ShardLister
from ..pipes.file_cache import RemoteFile
from ..pipes.local_file import source_version
from ..pipes.open_table import MANIFESTS
from ..pipes.sample import URL, Extent, Sample
from ..pipes.sources import SourcePipe
from ..pipes.table_arrow import RowImage
from ..pipes.table_folder import CaptionFile, Missing
from ..pipes.tar import TarReader
from ..pipes.urls import LIST_ENDINGS, TAR_ENDINGS, expand_urls, local_path


class PackInput:
    """The samples of a source, in the order in which it lists them.

    Args:
        pipe: A source that is not shuffled.
        cache: Folder of the cache.
    """

    def __init__(self, pipe: SourcePipe, cache: str | None = None) -> None:
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


def open_input(
    url: str | list[str],
    *,
    image: str | None = None,
    caption: str | list[str] | None = None,
    image_dir: str | None = None,
    cache: str | None = None,
) -> PackInput:
    """Return what lies at a path or URL: tar shards, manifests, or a folder.

    Args:
        url: Shards as `expand_urls` takes them (a folder of shards too), else what `ManifestReader`
            takes; manifests may have braces and wildcards in their names.
        image: The image's column of a manifest.
        caption: The caption's column of a manifest, or several.
        image_dir: Folder or URL that a manifest's paths of images are relative to.
        cache: Folder of the cache.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It is nothing that can be read, or columns are named for shards.
    """
    urls = [url] if isinstance(url, str) else list(url)
    if not all(map(_is_manifest, urls)):
        if image is not None or caption is not None or image_dir is not None:
            raise ValueError(
                f"{url} are tar shards, which have no columns: image, caption and image_dir are "
                "for manifests and folders"
            )
        pipe: SourcePipe = TarReader(ShardLister(urls, shuffle=False, cache=cache))
        return PackInput(pipe, cache)
    paths = [
        path
        for one in urls
        for path in ([one] if _is_there(one) or not one.endswith(MANIFESTS) else expand_urls(one))
    ]
    pipe = ManifestReader(
        paths, image=image, caption=caption, image_dir=image_dir, shuffle=False, cache=cache
    )
    return PackInput(pipe, cache)


def _is_manifest(url: str) -> bool:
    """Return whether a path or URL is no shard, no folder of shards and no list of shards."""
    path = local_path(url)
    if path is not None and os.path.isdir(path):
        with os.scandir(path) as entries:
            return not any(e.name.endswith(TAR_ENDINGS) and e.name[0] != "." for e in entries)
    ending = os.path.splitext(url)[1].lower()
    if ending in MANIFESTS:
        return True
    return not (url.startswith("@") or ending in LIST_ENDINGS or _is_tar_pattern(url))


def _is_tar_pattern(url: str) -> bool:
    return url.endswith((*TAR_ENDINGS, "/", "*", "}"))


def _is_there(url: str) -> bool:
    path = local_path(url)
    return path is None or os.path.exists(path)


def _time(path: str) -> str:
    stat = os.stat(path)
    return f"{stat.st_size} {stat.st_mtime_ns}"

"""What flows through the pipes: samples, the refs that name them, and extents of files."""

from typing import Any, NamedTuple

Sample = dict[str, Any]
"""One sample, by webdataset's conventions: ``__key__`` (str), ``__url__`` (str, its shard),
``__ref__`` (a `Ref`) and one field per file extension. Until it is loaded, a field is an `Extent`.
A sample's identity is (shard, key): keys recur in other shards."""

KEY = "__key__"
URL = "__url__"
REF = "__ref__"
IMAGE_SIZE = "__image_size__"
"""(height, width) in pixels of the sample's image as displayed (EXIF orientation counted), read
from its header. There only in graphs that have a pipe which asks for it."""


class Ref(NamedTuple):
    """Names one visit of one sample, in three integers.

    Attributes:
        epoch: The pass in which the sample was dealt (with ``resample=True`` the number of the
            shard's draw). It stays with the sample in windows and buckets, and is the "epoch" of
            all random draws.
        shard: Number of the shard, counted over all sources of a graph.
        sample: Number of the sample in its shard.
    """

    epoch: int
    shard: int
    sample: int


class Extent(NamedTuple):
    """A byte range in a local file: a field that has not been loaded.

    Attributes:
        path: The local file.
        offset: First byte.
        size: Number of bytes.
    """

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes.

        Raises:
            DataError: The file ends before the extent does.
            OSError: The file cannot be read.
        """
        from .read import read_extent

        return read_extent(self)


class Stored:
    """A field that has not been loaded, and is no extent of a file: it lies somewhere else.

    Each field of each sample is asked whether it is one; of an abstract class of ``abc`` that would
    take more than twice as long.
    """

    __slots__ = ()

    @property
    def far(self) -> bool:
        """Whether `fetch` has something to do, which several threads can do at once."""
        return False

    def fetch(self) -> None:
        """Bring the bytes near, so that `read` does not wait; raises as `read`. In any thread."""

    def read(self) -> bytes:
        """Return the bytes.

        Raises:
            DataError: There are none, and the message says why.
            OSError: They cannot be read.
        """
        raise NotImplementedError


class Typed(Stored):
    """A `Stored` field that knows its value: decoding asks it, whatever the field's name is."""

    __slots__ = ()

    def value(self) -> Any:
        """Return what decoding makes of the field; raises as `read`."""
        raise NotImplementedError


UNLOADED = (Extent, Stored, bytes)
"""Types of the fields that the work half decodes; values of other types are what they are."""

"""The index of a shard: which samples it has, and where their fields lie."""

import json
import os
import secrets
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from io import BytesIO
from typing import BinaryIO

import numpy as np

VERSION = 1
"""Version of the file format: a file of another one is refused (and then made anew)."""

IMAGE_FIELDS = (
    *("image", "jpg", "jpeg", "png", "webp", "avif"),
    *("gif", "bmp", "tif", "tiff", "jfif"),
)
"""Names of fields that hold an image; the first of them that a sample has counts."""

_TEXT = ("utf-8", "surrogateescape")


def image_field(fields: Sequence[str]) -> str | None:
    """Return the field that holds a sample's image, or None.

    It is the first of `IMAGE_FIELDS` that is there (in any case of letters), else the first field
    whose last dotted part is one of them, as in ``seg.png``.
    """
    lower = [name.lower() for name in fields]
    for name in IMAGE_FIELDS:
        if name in lower:
            return fields[lower.index(name)]
    for field, name in zip(fields, lower, strict=True):
        if name.rpartition(".")[2] in IMAGE_FIELDS:
            return field
    return None


class ShardIndex:
    """The immutable index of one shard: keys, and name, offset and size of every field.

    Held in a few arrays (about 50 bytes for a sample of three fields), the tuples of field names in
    a table of their own, since shards have few different ones. Made by `build` and `load`.
    """

    __slots__ = (
        *("_errors", "_fingerprint", "_images", "_key_ends", "_keys", "_offsets", "_schema"),
        *("_schemas", "_sizes", "_starts", "image_sizes"),
    )

    image_sizes: np.ndarray | None
    """int32 [n, 2]: (height, width) of each sample's image as displayed; (0, 0) without an image,
    (-1, -1) where its header could not be read. None where nobody has asked yet."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        """Take the arrays of a file, checked by `_check`; see `_arrays` for what they hold."""
        self._keys = arrays["keys"].tobytes()
        self._schemas = [tuple(names) for names in json.loads(arrays["schemas"].tobytes())]
        self._images = [_position(names) for names in self._schemas]
        counts = np.array([len(names) for names in self._schemas], dtype=np.int64)
        counts = counts[arrays["schema"]]
        # Memoryviews: an element or a slice takes a third less time than of the array itself.
        self._starts = _smallest(np.cumsum(counts) - counts).data
        self._key_ends = _native(arrays["key_ends"]).data
        self._schema = _native(arrays["schema"]).data
        self._offsets = _native(arrays["offsets"]).data
        self._sizes = _native(arrays["sizes"]).data
        sizes = arrays.get("image_sizes")
        self.image_sizes = None if sizes is None else _native(sizes)
        texts = json.loads(arrays["image_errors"].tobytes()) if "image_errors" in arrays else {}
        self._errors = {int(i): str(text) for i, text in texts.items()}
        self._fingerprint: int | None = None

    def __reduce__(self) -> tuple[type["ShardIndex"], tuple[dict[str, np.ndarray]]]:
        return ShardIndex, (self._arrays(),)

    @classmethod
    def build(cls, samples: Iterable[tuple[str, list[tuple[str, int, int]]]]) -> "ShardIndex":
        """Return the index of ``samples``: pairs of a key and its fields' (name, offset, size)."""
        keys: list[bytes] = []
        schemas: dict[tuple[str, ...], int] = {}
        schema, offsets, sizes = array("q"), array("q"), array("q")
        for key, members in samples:
            keys.append(key.encode(*_TEXT))
            names = tuple([member[0] for member in members])
            schema.append(schemas.setdefault(names, len(schemas)))
            offsets.extend([member[1] for member in members])
            sizes.extend([member[2] for member in members])
        return cls(
            {
                "keys": np.frombuffer(b"".join(keys), np.uint8),
                "key_ends": _smallest(np.cumsum([len(key) for key in keys], dtype=np.int64)),
                "schemas": np.frombuffer(json.dumps(list(schemas)).encode(), np.uint8),
                "schema": _smallest(np.array(schema, np.int64)),
                "offsets": _smallest(np.array(offsets, np.int64)),
                "sizes": _smallest(np.array(sizes, np.int64)),
            }
        )

    def __len__(self) -> int:
        return len(self._schema)

    def key(self, i: int) -> str:
        """Return the key of sample ``i``."""
        start = self._key_ends[i - 1] if i else 0
        return self._keys[start : self._key_ends[i]].decode(*_TEXT)

    def keys(self) -> list[str]:
        """Return the keys of all samples."""
        ends = self._key_ends.tolist()
        return [
            self._keys[start:end].decode(*_TEXT)
            for start, end in zip([0, *ends[:-1]], ends, strict=False)
        ]

    def members(self, i: int) -> list[tuple[str, int, int]]:
        """Return the (field, offset, size) of each field of sample ``i``, in the tar's order."""
        names = self._schemas[self._schema[i]]
        start = self._starts[i]
        end = start + len(names)
        # Not strict=True, which takes as long as the rest.
        return list(zip(names, self._offsets[start:end], self._sizes[start:end]))  # noqa: B905

    def image_extent(self, i: int) -> tuple[str, int, int] | None:
        """Return the (field, offset, size) of sample ``i``'s image, or None; see `image_field`."""
        schema = self._schema[i]
        position = self._images[schema]
        if position is None:
            return None
        at = self._starts[i] + position
        return self._schemas[schema][position], self._offsets[at], self._sizes[at]

    def entry_extent(self, i: int) -> tuple[int, int] | None:
        """Return the (offset, size) of the cache's entry that sample ``i`` has, or None."""
        for field, offset, size in self.members(i):
            if field.rpartition(".")[2] == "safetensors":
                return offset, size
        return None

    def image_error(self, i: int) -> str | None:
        """Return why the image header of sample ``i`` could not be read, or None."""
        return self._errors.get(i)

    def with_image_sizes(self, sizes: np.ndarray, errors: dict[int, str]) -> "ShardIndex":
        """Return this index with image sizes.

        Args:
            sizes: Integers [n, 2], as in `image_sizes`.
            errors: Sample to cause, where the size is (-1, -1).
        """
        if sizes.shape != (len(self), 2):
            raise ValueError(f"image sizes must have the shape ({len(self)}, 2), got {sizes.shape}")
        arrays = self._arrays()
        arrays["image_sizes"] = sizes.astype(np.int32)  # a copy
        arrays["image_errors"] = np.frombuffer(json.dumps(errors).encode(), np.uint8)
        return ShardIndex(arrays)

    @property
    def fingerprint(self) -> int:
        """64-bit hash of keys, field names and sizes: not of offsets, image sizes or file times."""
        if self._fingerprint is None:
            digest = blake2b(digest_size=8)
            # In fixed types: what is the smallest that holds the offsets is no difference.
            for part in (self._key_ends, self._schema, self._sizes):
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(np.asarray(part).astype("<i8").tobytes())
            digest.update(self._keys)
            digest.update(json.dumps(self._schemas).encode())
            self._fingerprint = int.from_bytes(digest.digest(), "little")
        return self._fingerprint

    def save(self, path: str, *, source_size: int, source_mtime_ns: int) -> None:
        """Write the index to ``path`` as one .npz, whole or not at all.

        Args:
            path: Where to write.
            source_size: Size in bytes of the file that the index is of.
            source_mtime_ns: The file's time in nanoseconds: with its size, what tells whether the
                index is up to date.
        """
        source = np.array([VERSION, source_size, source_mtime_ns], dtype=np.int64)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, penstock_index=source, **self._arrays())

    @classmethod
    def load(cls, path: str) -> tuple["ShardIndex", int, int]:
        """Return an index, and the size and time (ns) of the file that it was made from.

        Raises:
            ValueError: If the file is damaged, no index, or of another version.
        """
        with open(path, "rb") as file:
            data = file.read()
        try:
            arrays = read_npz(data)
            version, size, mtime_ns = arrays["penstock_index"].tolist()
            if version != VERSION:
                raise ValueError(f"expected version {VERSION}, found {version}")
            index = cls(arrays)
            index._check()
        except Exception as err:  # bytes that are no index break numpy and zipfile in any way
            cause = f"{type(err).__name__}: {err}"
            raise ValueError(f"{path} is no index of a shard ({cause}); delete it") from err
        return index, size, mtime_ns

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return what a file holds; keys, schemas and image_errors are UTF-8 in uint8 [bytes].

        key_ends [n]: where each key ends in ``keys``; schema [n]: which of ``schemas`` (JSON, lists
        of field names) a sample has; offsets and sizes [fields of all samples]; image_sizes [n, 2].
        """
        arrays = {
            "keys": np.frombuffer(self._keys, np.uint8),
            "key_ends": np.asarray(self._key_ends),
            "schemas": np.frombuffer(json.dumps(self._schemas).encode(), np.uint8),
            "schema": np.asarray(self._schema),
            "offsets": np.asarray(self._offsets),
            "sizes": np.asarray(self._sizes),
        }
        if self.image_sizes is not None:
            arrays["image_sizes"] = self.image_sizes
            arrays["image_errors"] = np.frombuffer(json.dumps(self._errors).encode(), np.uint8)
        return arrays

    def _check(self) -> None:
        """Raise ValueError where the arrays do not fit each other, as a foreign file's may not."""
        n = len(self)
        ends, schema = np.asarray(self._key_ends), np.asarray(self._schema)
        offsets, sizes = np.asarray(self._offsets), np.asarray(self._sizes)
        numbers = (ends, schema, offsets, sizes)
        members = self._starts[-1] + len(self._schemas[self._schema[-1]]) if n else 0
        fits = (
            all(part.ndim == 1 and part.dtype.kind in "iu" for part in numbers)
            and all(part.min(initial=0) >= 0 for part in numbers)
            and len(ends) == n
            and len(offsets) == len(sizes) == members
            and bool(np.all(ends[1:] >= ends[:-1]))
            and (self._key_ends[-1] if n else 0) == len(self._keys)
            and all(isinstance(name, str) for names in self._schemas for name in names)
            and (self.image_sizes is None or self.image_sizes.shape == (n, 2))
        )
        if not fits:
            raise ValueError("its arrays do not fit each other")


def _position(names: tuple[str, ...]) -> int | None:
    field = image_field(names)
    return None if field is None else names.index(field)


def _native(values: np.ndarray) -> np.ndarray:
    """Return a read-only view, in this machine's order of bytes."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("=")).view()
    values.flags.writeable = False
    return values


def _smallest(values: np.ndarray) -> np.ndarray:
    """Return non-negative integers in the smallest type that holds them."""
    most = int(values.max(initial=0))
    for kind in (np.uint8, np.uint16, np.uint32):
        if most <= np.iinfo(kind).max:
            return values.astype(kind)
    return values


def read_npz(data: bytes) -> dict[str, np.ndarray]:
    with np.load(BytesIO(data), allow_pickle=False) as file:
        # Uncompressed alone, as they are written: no file unpacks to more than its size.
        if any(info.compress_type for info in file.zip.infolist()):
            raise ValueError("it is compressed")
        return {name: file[name] for name in file.files}


@contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Yield a new file that takes the name ``path`` when all went well, its data on the disk."""
    part = f"{path}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(part)
        raise

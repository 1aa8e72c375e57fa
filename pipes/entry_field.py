"""Fields that hold a cache's entry: tensors in the safetensors format."""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ..transforms.entry import Tensors
from ..transforms.entry_bytes import Layout, check_values, header_size, read_entry, read_layout
from .errors import DataError
from .read import open_extent, read_value
from .sample import Extent, Stored

SAFETENSORS = "safetensors"
"""Extension of the fields."""

WINDOW = 1024
"""Bytes read at first: an entry's header ends there."""

SIZES = ("target_size", "original_size", "crop_top_left")
"""What an entry's metadata may say of the pixels that were encoded, such as ``"1024x768"``: height
before width, as `Decoder` gives them with an image."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_PAIR = re.compile(r"(\d{1,7})x(\d{1,7})")


class Rows(Protocol):
    """Gives a sample's rows of the tensors of its batch."""

    def row(
        self, name: tuple[str, str], shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor | None:
        """Return the sample's row of a tensor, None where other samples' rows are different."""

    def row_bytes(self, name: tuple[str, str]) -> memoryview:
        """Return the memory of a row that was given."""


def entry_field(fields: Sequence[str]) -> str | None:
    """Return the first field that holds an entry, or None."""
    return next((f for f in fields if f.rpartition(".")[2].lower() == SAFETENSORS), None)


def entry_size(extent: Extent, fd: int) -> tuple[int, int] | None:
    """Return the (height, width) of the pixels that an entry was made of; None: it says none.

    Args:
        extent: Where it lies.
        fd: The open file.

    Raises:
        DataError: It is damaged.
        OSError: It cannot be read.
    """
    return _head(extent, fd).pairs.get("target_size")


def read_field_entry(
    field: str, value: Extent | Stored | bytes, rows: Rows, size: tuple[int, int] | None
) -> dict[str, Any]:
    """Return what an entry gives a sample: its tensors, under the name that its metadata has.

    With them, where the metadata has it, `SIZES` (int64 [2]) and ``flipped``.

    Args:
        field: The field, whose name the tensors get where the metadata has none.
        value: The field's value.
        rows: Where tensors may be put.
        size: (height, width) that the batch's images have; None: each its own.

    Raises:
        DataError: It is damaged, or of pixels of another size.
        OSError: It cannot be read.
    """
    fd = open_extent(value) if isinstance(value, Extent) else None
    if isinstance(value, Extent) and fd is not None:
        head = _head(value, fd)
    else:
        data = bytearray(read_value(value))
        head = _head_of(data, len(data), "")
    made = head.pairs.get("target_size", size)
    if size is not None and made is not None and made != size:
        raise DataError(
            f"its entry is of {made[0]} x {made[1]} pixels, and its batch of {size[0]} x {size[1]}:"
            " a cache is read with the bucketer's arguments that it was filled with, since nothing "
            "is cropped any more"
        )
    name = head.name or field
    if isinstance(value, Extent) and fd is not None:
        tensors = _tensors(name, value, fd, head.layout, rows)
    else:
        try:
            tensors = read_entry(data)
        except ValueError as error:
            raise DataError(f"it is no entry: {error}") from error
    out: dict[str, Any] = {name: tensors}
    for key, pair in head.pairs.items():
        out[key] = np.array(pair, np.int64)
    if head.flipped is not None:
        out["flipped"] = head.flipped
    return out


def pixel_metadata(about: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata that `read_field_entry` knows, from what is said of an entry."""
    found = {}
    if isinstance(name := about.get("field"), str) and _NAME.fullmatch(name):
        found["field"] = name
    for key in SIZES:
        pair = about.get(key)
        if isinstance(pair, list | tuple) and len(pair) == 2:
            pair = f"{pair[0]}x{pair[1]}"
        if isinstance(pair, str) and _PAIR.fullmatch(pair):
            found[key] = pair
    if isinstance(about.get("flipped"), bool):
        found["flipped"] = str(about["flipped"]).lower()
    return found


class _Head(NamedTuple):
    """What an entry's header says: its layout, and what its metadata does."""

    layout: Layout
    name: str | None
    pairs: dict[str, tuple[int, int]]
    flipped: bool | None


def _head(extent: Extent, fd: int) -> _Head:
    data = os.pread(fd, min(WINDOW, extent.size), extent.offset)
    try:
        end = header_size(data)
    except ValueError as error:
        raise _no_entry(f"byte {extent.offset} of {extent.path}: ", error) from error
    if end > len(data):
        data = os.pread(fd, min(end, extent.size), extent.offset)
    return _head_of(data[:end], extent.size, f"byte {extent.offset} of {extent.path}: ")


def _head_of(data: bytes | bytearray, size: int, where: str) -> _Head:
    """Return what a header says; ``where`` begins an error."""
    try:
        return _parsed(bytes(data[: header_size(data)]), size)
    except DataError as error:
        raise DataError(f"{where}{error}") from None
    except ValueError as error:
        raise _no_entry(where, error) from error


@functools.lru_cache(maxsize=256)  # of one shape, nearly all have the same header
def _parsed(data: bytes, size: int) -> _Head:
    layout = read_layout(data, size)
    metadata = layout.metadata
    name = metadata.get("field")
    if name is not None and not _NAME.fullmatch(name):
        raise DataError(f"its entry would be called {name!r:.80}; expected letters, digits and _")
    pairs = {}
    for key in SIZES:
        if key in metadata:
            found = _PAIR.fullmatch(metadata[key])
            if found is None:
                raise DataError(
                    f"its entry's {key} is {metadata[key]!r:.80}; expected such as '512x768'"
                )
            pairs[key] = int(found[1]), int(found[2])
    flipped = metadata["flipped"] == "true" if "flipped" in metadata else None
    return _Head(layout, name, pairs, flipped)


def _no_entry(where: str, error: ValueError) -> DataError:
    return DataError(f"{where}it is no entry: {error}")


def _tensors(name: str, extent: Extent, fd: int, layout: Layout, rows: Rows) -> Tensors:
    """Read an entry's tensors, each straight into its row of the batch where there is one."""
    tensors: Tensors = {}
    views: list[memoryview] = []
    for key, part in layout.parts.items():
        tensor = rows.row((name, key), part.shape, part.dtype)
        if tensor is not None:
            views.append(rows.row_bytes((name, key)))
        else:
            tensor = torch.empty(part.shape, dtype=part.dtype)
            views.append(tensor.view(-1).view(torch.uint8).numpy().data)
        tensors[key] = tensor
    want = layout.end - layout.start
    got = os.preadv(fd, [view for view in views if view.nbytes], extent.offset + layout.start)
    if got < want:
        raise DataError(
            f"{extent.path} ends at byte {extent.offset + layout.start + got}, in the middle of an "
            f"extent of {extent.size} bytes from byte {extent.offset}: the file was truncated"
        )
    for key, tensor in tensors.items():
        if tensor.dtype == torch.bool:
            try:
                check_values(key, tensor)
            except ValueError as error:
                raise _no_entry(f"byte {extent.offset} of {extent.path}: ", error) from error
    return tensors

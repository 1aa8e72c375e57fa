"""An entry's tensors as bytes: the safetensors format.

A file is eight bytes (the header's length, little-endian), the header (JSON: for each tensor its
dtype, shape and byte range, and ``__metadata__``, strings by name), and the tensors' bytes without
a gap. See https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .entry import Tensors

MOST_HEADER = 1 << 20
"""Most bytes of a header; an entry's has hundreds."""

MOST_TENSORS = 1024
"""Most tensors of an entry."""

METADATA = "__metadata__"

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The types that entries may have, by the format's names."""

_TYPES = frozenset(DTYPES.values())


class Part(NamedTuple):
    """Where a tensor lies.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        start: Its first byte, counted from the file's begin.
        end: The byte behind its last.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class Layout(NamedTuple):
    """What a header says.

    Attributes:
        parts: The tensors, in the order in which their bytes lie.
        metadata: The strings that the file holds besides.
        start: Where the tensors' bytes begin.
        end: Where they end: the file's size.
    """

    parts: dict[str, Part]
    metadata: dict[str, str]
    start: int
    end: int


def entry_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return tensors in the safetensors format; a view's bytes are its own, and no more.

    Args:
        tensors: Dense tensors by name, of a type of `DTYPES`, on any device.
        metadata: Strings that go into the header.

    Raises:
        ValueError: There is no tensor, or too many, or one that is not dense or of no such type.
    """
    from safetensors.torch import save

    if not 0 < len(tensors) <= MOST_TENSORS:
        raise ValueError(f"an entry has 1 to {MOST_TENSORS} tensors, got {len(tensors)}")
    own: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.dtype not in _TYPES:
            raise ValueError(
                f"tensor {name!r} is {tensor.dtype}, {tensor.layout}; an entry has dense tensors "
                f"of {', '.join(str(t).removeprefix('torch.') for t in DTYPES.values())}"
            )
        # A clone: the library refuses tensors that share memory. Its cost is that of one copy.
        own[name] = tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    return save(own, dict(metadata) or None)


def header_size(head: bytes | bytearray | memoryview) -> int:
    """Return the byte at which the tensors begin, from a file's first eight bytes.

    Raises:
        ValueError: They are fewer, or the header would be longer than `MOST_HEADER`.
    """
    if len(head) < 8:
        raise ValueError(f"it has {len(head)} bytes; expected the eight of a header's length")
    size = int.from_bytes(head[:8], "little")
    if not 2 <= size <= MOST_HEADER:
        raise ValueError(f"its header would have {size:,} bytes; expected 2 to {MOST_HEADER:,}")
    return 8 + size


def read_layout(head: bytes | bytearray | memoryview, size: int) -> Layout:
    """Return what a file's header says.

    Args:
        head: The file's first bytes, to the header's end at least.
        size: Size of the file.

    Raises:
        ValueError: It is no header of a file of this size, in every detail.
    """
    start = header_size(head)
    if start > min(len(head), size):
        raise ValueError(f"its header ends at byte {start}, and it has {min(len(head), size)}")
    try:
        header = json.loads(bytes(head[8:start]).decode(), object_pairs_hook=_once)
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"its header is no JSON: {error}") from error
    metadata = header.pop(METADATA, {}) if isinstance(header, dict) else {}
    if not isinstance(header, dict) or len(header) > MOST_TENSORS:
        raise ValueError(f"its header is no object of 1 to {MOST_TENSORS} tensors")
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"its {METADATA} is no object of strings")
    parts = sorted(
        ((name, _part(name, value, start)) for name, value in header.items()),
        key=lambda named: (named[1].start, named[1].end),
    )
    at = start
    for name, part in parts:
        if part.start != at:
            raise ValueError(f"tensor {name!r} begins at byte {part.start}; expected byte {at}")
        at = part.end
    if at != size:
        raise ValueError(f"its tensors end at byte {at}, and it has {size} bytes")
    if not parts:
        raise ValueError("it holds no tensor")
    return Layout(dict(parts), metadata, start, size)


def read_entry(data: bytearray, start: int = 0) -> Tensors:
    """Return the tensors that lie in ``data``, whose memory they are.

    Args:
        data: The file's bytes, from ``start`` to the end. They are the tensors' from now on.
        start: Where the file begins, a multiple of 8.

    Raises:
        ValueError: It is no safetensors file, or damaged.
    """
    view = memoryview(data)[start:]
    layout = read_layout(view, len(view))
    tensors = {}
    for name, part in layout.parts.items():
        tensor = tensor_of(data, part, start)
        check_values(name, tensor)
        tensors[name] = tensor
    return tensors


def tensor_of(data: bytearray, part: Part, start: int = 0) -> torch.Tensor:
    """Return the tensor that lies in ``data``, in its own memory where it can be used there."""
    count = math.prod(part.shape)
    if not count:
        return torch.empty(part.shape, dtype=part.dtype)
    at = start + part.start
    if at % part.dtype.itemsize:  # another writer's: the library aligns
        flat = torch.empty(count, dtype=part.dtype)
        flat.view(torch.uint8).copy_(
            torch.frombuffer(data, dtype=torch.uint8, count=part.end - part.start, offset=at)
        )
    else:
        flat = torch.frombuffer(data, dtype=part.dtype, count=count, offset=at)
    return flat.view(part.shape)


def check_values(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor of bool in which a byte is neither 0 nor 1.

    Raises:
        ValueError: It is one; what torch does with it is not defined.
    """
    if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise ValueError(f"tensor {name!r} is of bool, and has a byte that is neither 0 nor 1")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a name twice")
    return found


def _part(name: str, value: Any, start: int) -> Part:
    """Return where a tensor lies, from its part of the header."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} has not dtype, shape and data_offsets, and no more")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise ValueError(f"tensor {name!r} is of type {kind!r:.40}; expected {', '.join(DTYPES)}")
    if not _whole(shape) or len(shape) > 16 or not _whole(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has a shape or offsets that are no whole numbers")
    first, end = offsets
    if end - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"tensor {name!r} has {end - first} bytes; expected those of {kind} {shape}"
        )
    return Part(dtype, tuple(shape), start + first, start + end)


def _whole(numbers: Any) -> bool:
    """Return whether it is a list of whole numbers from 0 on, of a size that files have."""
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)

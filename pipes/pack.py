"""Pack the refs that a lane's buckets hold into a short string.

A checkpoint of a lane must stay small (4 KB with 20 buckets of 32) and be made after every batch,
in microseconds. Refs that wait together come from few shards, so each is written as a number in a
table of (epoch, shard) and a sample number, in as few bytes (1, 2, 4, 8) as the largest needs.
"""

import binascii
import zlib
from array import array
from collections.abc import Sequence

import numpy as np

from .sources import Sources

_SHARD_BITS = 32


def _put(values: np.ndarray) -> bytes:
    """Return non-negative int64 values as a width in bytes, then that many bytes of each."""
    top = int(values.max()) if len(values) else 0
    width = 1 if top < 1 << 8 else 2 if top < 1 << 16 else 4 if top < 1 << 32 else 8
    return bytes((width,)) + values.astype(f"<u{width}").tobytes()


def _take(data: bytes, at: int, count: int) -> tuple[np.ndarray, int]:
    width = data[at]
    values = np.frombuffer(data, f"<u{width}", count, at + 1)
    return values.astype(np.int64), at + 1 + count * width


def pack_refs(bins: "Sequence[array[int]]", sources: Sources) -> str:
    """Return the refs in ``bins`` (flat arrays of epoch, shard, sample) as base64 text.

    With them go 32 bits of each shard's fingerprint, since a ref into a shard that has changed
    would be another sample, and a CRC-32 of all.
    """
    refs = np.frombuffer(b"".join(bins), np.int64).reshape(-1, 3)
    lengths = np.array([len(b) for b in bins], np.int64) // 3
    homes, which = np.unique((refs[:, 0] << _SHARD_BITS) | refs[:, 1], return_inverse=True)
    shards = homes & ((1 << _SHARD_BITS) - 1)
    prints = {s: sources.fingerprint(s) & 0xFFFFFFFF for s in set(shards.tolist())}
    packed = b"".join(
        (
            len(bins).to_bytes(4, "little"),
            len(homes).to_bytes(4, "little"),
            _put(lengths),
            _put(homes >> _SHARD_BITS),
            _put(shards),
            _put(np.array([prints[s] for s in shards.tolist()], np.int64)),
            _put(which),
            _put(refs[:, 2]),
        )
    )
    check = zlib.crc32(packed).to_bytes(4, "little")
    return binascii.b2a_base64(check + packed, newline=False).decode()


def unpack_refs(text: str, buckets: int, sources: Sources) -> "list[array[int]]":
    """Return the flat arrays of `pack_refs`.

    Raises:
        ValueError: A shard that a ref points into has changed, or the text is damaged.
    """
    data = _unwrap(text, buckets)
    count = int.from_bytes(data[4:8], "little")
    lengths, at = _take(data, 8, buckets)
    epochs, at = _take(data, at, count)
    shards, at = _take(data, at, count)
    prints, at = _take(data, at, count)
    total = int(lengths.sum())
    which, at = _take(data, at, total)
    index, at = _take(data, at, total)
    for shard, print_ in sorted(set(zip(shards.tolist(), prints.tolist(), strict=True))):
        if sources.fingerprint(shard) & 0xFFFFFFFF != print_:
            raise ValueError(
                f"shard {sources.url(shard)} has changed since this state was saved, and the state "
                "holds samples of it: restore the shard, or begin a new run"
            )
    refs = np.stack([epochs[which], shards[which], index], axis=1)
    ends = np.cumsum(lengths)
    return [
        array("q", refs[end - n : end].tobytes())
        for n, end in zip(lengths.tolist(), ends.tolist(), strict=True)
    ]


def _unwrap(text: str, buckets: int) -> bytes:
    """Return the bytes that were packed, checked, of this number of buckets."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise ValueError(f"the state of a lane is damaged: {error}") from error
    packed = data[4:]
    if len(packed) < 8 or zlib.crc32(packed) != int.from_bytes(data[:4], "little"):
        raise ValueError(
            "the state of a lane is damaged: its checksum is wrong; take an earlier checkpoint"
        )
    found = int.from_bytes(packed[:4], "little")
    if found != buckets:
        raise ValueError(
            f"the state of a lane is damaged: it is of {found} buckets, and the graph has {buckets}"
        )
    return packed

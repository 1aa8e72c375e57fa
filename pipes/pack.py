"""Pack the refs that a lane's buckets hold into a short string.

A checkpoint of a lane must stay small (4 KB with 20 buckets of 32) and be made after every batch,
in microseconds. Numbers are written less the least of them, in as many bits as the largest needs,
side by side. Refs that wait together come from few shards of tars, so that each is a number in a
table of (epoch, shard), and a sample number; a manifest's row is a shard of its own, and a table
would only cost: there is one where it has at most half as many entries as there are refs.
"""

import binascii
import zlib
from array import array
from collections.abc import Sequence

import numpy as np

from .sources import Sources

_SHARD_BITS = 32
_WORD_BITS = 63


def _put(*columns: np.ndarray) -> bytes:
    """Return columns of non-negative int64 values: how many; bits and least of each; the rest.

    A row's values less the least stand side by side in one word, in as few bits as it needs, or
    in several words where those are more than 63.
    """
    count = len(columns[0])
    heads = [count.to_bytes(4, "little")]
    words: list[tuple[int, np.ndarray]] = []
    for values in columns:
        low, bits = 0, 0
        if count:
            low = int(values.min())
            bits = (int(values.max()) - low).bit_length()
        heads.append(bits.to_bytes(1, "little") + low.to_bytes(8, "little"))
        if words and words[-1][0] + bits <= _WORD_BITS:
            before, word = words.pop()
            words.append((before + bits, word << bits | (values - low)))
        else:
            words.append((bits, values - low))
    return b"".join([*heads, *(_to_bits(word, bits) for bits, word in words)])


def _to_bits(values: np.ndarray, bits: int) -> bytes:
    if not bits:
        return b""
    kind, width = (">u4", 4) if bits <= 32 else (">u8", 8)
    octets = values.astype(kind).view(np.uint8)
    digits = np.unpackbits(octets).reshape(-1, 8 * width)[:, 8 * width - bits :]
    return np.packbits(np.ascontiguousarray(digits).ravel()).tobytes()


def _from_bits(data: bytes, at: int, count: int, bits: int) -> np.ndarray:
    packed = np.frombuffer(data, np.uint8, -(-count * bits // 8), at)
    digits = np.zeros((count, 64), np.uint8)
    digits[:, 64 - bits :] = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return np.packbits(digits.ravel()).view(">i8").astype(np.int64)


def _take(data: bytes, at: int, columns: int) -> tuple[list[np.ndarray], int]:
    """Return the columns of a `_put` that begins at byte ``at``, and where it ends."""
    count = int.from_bytes(data[at : at + 4], "little")
    at += 4
    heads = []
    words: list[int] = []
    for _ in range(columns):
        bits, low = data[at], int.from_bytes(data[at + 1 : at + 9], "little")
        at += 9
        if words and words[-1] + bits <= _WORD_BITS:
            words[-1] += bits
        else:
            words.append(bits)
        heads.append((bits, low, len(words) - 1))
    found = []
    for bits in words:
        found.append(_from_bits(data, at, count, bits))
        at += -(-count * bits // 8)
    values = []
    for bits, low, word in reversed(heads):
        values.append((found[word] & ((1 << bits) - 1)) + low)
        found[word] = found[word] >> bits
    return values[::-1], at


def pack_refs(bins: "Sequence[array[int]]", sources: Sources) -> str:
    """Return the refs in ``bins`` (flat arrays of epoch, shard, sample) as base64 text.

    With them go 32 bits of each shard's fingerprint, since a ref into a shard that has changed
    would be another sample, and a CRC-32 of all. Shards of a source that is refused as a whole
    where it has changed have none.
    """
    refs = np.frombuffer(b"".join(bins), np.int64).reshape(-1, 3)
    lengths = np.array([len(b) for b in bins], np.int64) // 3
    epochs, shards, samples = refs.T.copy()
    marked: list[int] = []
    parts: list[bytes] = []
    if sources.prints:
        homes, which = np.unique((epochs << _SHARD_BITS) | shards, return_inverse=True)
        home_shards = homes & ((1 << _SHARD_BITS) - 1)
        marked = _marked(home_shards, sources)
        if 2 * len(homes) <= len(refs):
            parts = [_put(homes >> _SHARD_BITS, home_shards), _put(which, samples)]
    parts = parts or [_put(epochs, shards, samples)]
    prints = [sources.fingerprint(shard) % (1 << 32) for shard in marked]
    head = [bytes((len(parts),)), len(prints).to_bytes(4, "little")]
    packed = b"".join([*head, np.array(prints, "<u4").tobytes(), _put(lengths), *parts])
    check = zlib.crc32(packed).to_bytes(4, "little")
    return binascii.b2a_base64(check + packed, newline=False).decode()


def unpack_refs(text: str, buckets: int, sources: Sources) -> "list[array[int]]":
    """Return the flat arrays of `pack_refs`.

    Raises:
        ValueError: A shard that a ref points into has changed, or the text is damaged.
    """
    data = _unwrap(text)
    prints = np.frombuffer(data, "<u4", int.from_bytes(data[1:5], "little"), 5)
    (lengths,), at = _take(data, 5 + prints.nbytes, 1)
    if len(lengths) != buckets:
        raise ValueError(
            f"the state of a lane is damaged: it is of {len(lengths)} buckets, and the graph has "
            f"{buckets}"
        )
    if data[0] == 1:
        (epochs, shards, samples), _ = _take(data, at, 3)
    else:
        (epochs, shards), at = _take(data, at, 2)
        (which, samples), _ = _take(data, at, 2)
        epochs, shards = epochs[which], shards[which]
    for shard, print_ in zip(_marked(shards, sources), prints.tolist(), strict=True):
        if sources.fingerprint(shard) % (1 << 32) != print_:
            raise ValueError(
                f"shard {sources.url(shard)} has changed since this state was saved, and the state "
                "holds samples of it: restore the shard, or begin a new run"
            )
    refs = np.stack([epochs, shards, samples], axis=1)
    ends = np.cumsum(lengths)
    return [
        array("q", refs[end - n : end].tobytes())
        for n, end in zip(lengths.tolist(), ends.tolist(), strict=True)
    ]


def _marked(shards: np.ndarray, sources: Sources) -> list[int]:
    """Return the shards whose fingerprints go along, each once, in their order."""
    return sorted(set(shards[sources.printed(shards)].tolist())) if sources.prints else []


def _unwrap(text: str) -> bytes:
    """Return the bytes that were packed, checked."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise ValueError(f"the state of a lane is damaged: {error}") from error
    packed = data[4:]
    if not packed or zlib.crc32(packed) != int.from_bytes(data[:4], "little"):
        raise ValueError(
            "the state of a lane is damaged: its checksum is wrong; take an earlier checkpoint"
        )
    return packed

"""The values in the body of a Parquet page: byte strings, and the numbers that go with them.

The encodings are those of https://parquet.apache.org/docs/file-format/data-pages/encodings/.
"""

from typing import NamedTuple

import numpy as np


class Values(NamedTuple):
    """Values in bytes: where each lies; a size of -1 where there is none."""

    data: memoryview
    starts: np.ndarray
    sizes: np.ndarray

    def value(self, i: int) -> bytes | None:
        """Return the ``i``-th value."""
        start, size = int(self.starts[i]), int(self.sizes[i])
        return None if size < 0 else bytes(self.data[start : start + size])


def here(levels: memoryview, most: int, rows: int) -> np.ndarray:
    """Return which rows have a value: those whose definition level is ``most``; bool [rows]."""
    found: np.ndarray = read_hybrid(levels, most.bit_length(), rows) == most
    return found


def packed_levels(body: memoryview, rows: int, most: int) -> tuple[np.ndarray, memoryview]:
    """Return which rows have a value, and the values, of a page of version 1."""
    size = int.from_bytes(body[:4], "little")
    if size > len(body) - 4:
        raise ValueError("its levels are longer than it")
    return here(body[4 : 4 + size], most, rows), body[4 + size :]


def plain(body: memoryview, count: int) -> Values:
    """Return values that stand one behind the other, each behind its size in 4 bytes."""
    if count * 4 > len(body):
        raise ValueError(f"{count} values do not fit")
    starts, sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    at = 0
    for i in range(count):
        size = int.from_bytes(body[at : at + 4], "little")
        at += 4
        if at + size > len(body):
            raise ValueError("a value ends behind its end")
        starts[i], sizes[i] = at, size
        at += size
    return Values(body, starts, sizes)


def read_hybrid(data: bytes | memoryview, bits: int, count: int) -> np.ndarray:
    """Return ``count`` numbers of ``bits`` bits in Parquet's mix of runs and packed numbers, int64.

    Raises:
        ValueError: The bytes end before the numbers do.
    """
    if not 0 <= bits <= 32:
        raise ValueError(f"numbers of {bits} bits")
    parts: list[np.ndarray] = []
    at = have = 0
    width = -(-bits // 8)
    while have < count:
        head = shift = 0
        while True:  # a varint
            if at >= len(data) or shift > 35:
                raise ValueError("its numbers end too early")
            head |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if data[at - 1] < 128:
                break
        number = (head >> 1) * 8 if head & 1 else head >> 1
        size = number // 8 * bits if head & 1 else width
        if not number or at + size > len(data):
            raise ValueError("its numbers end too early")
        some = min(number, count - have)
        if head & 1:
            octets = np.frombuffer(data, np.uint8, size, at)
            digits = np.unpackbits(octets, bitorder="little")[: some * bits].reshape(some, bits)
            parts.append(digits.astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64)))
        else:
            value = int.from_bytes(data[at : at + width], "little")
            parts.append(np.full(some, value, np.int64))
        at += size
        have += some
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)

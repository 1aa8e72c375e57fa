"""Read a struct in Thrift's compact protocol: how Parquet writes the headers of its pages.

The protocol is https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from typing import Any

_MOST_DEPTH = 16
_MOST_ITEMS = 100_000

Struct = dict[int, Any]
"""Number of a field to its value: bool, int, bytes, a list, or another struct."""


class Truncated(ValueError):
    """The bytes end before the struct does."""


def read_struct(data: bytes, at: int = 0) -> tuple[Struct, int]:
    """Return the struct that begins at byte ``at``, and where it ends.

    Raises:
        Truncated: The bytes end before it does.
        ValueError: It is no struct.
    """
    return _Reader(data, at).struct(0)


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at

    def struct(self, depth: int) -> tuple[Struct, int]:
        if depth > _MOST_DEPTH:
            raise ValueError(f"structs are nested more than {_MOST_DEPTH} deep")
        found: Struct = {}
        field = 0
        while head := self.byte():
            step, kind = head >> 4, head & 15
            field = field + step if step else self.zigzag()
            # A field's type holds its value where that is a bool.
            found[field] = kind == 1 if kind in (1, 2) else self.value(kind, depth)
        return found, self.at

    def value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):  # a bool in a list is a byte
            return self.byte()
        if kind in (4, 5, 6):
            return self.zigzag()
        if kind == 7:
            return self.take(8)
        if kind == 8:
            return self.take(self.varint())
        if kind in (9, 10):
            return self.items(depth)
        if kind == 12:
            return self.struct(depth + 1)[0]
        raise ValueError(f"there is no type {kind}")

    def items(self, depth: int) -> list[Any]:
        head = self.byte()
        count, kind = head >> 4, head & 15
        if count == 15:
            count = self.varint()
        if count > _MOST_ITEMS or depth > _MOST_DEPTH:
            raise ValueError(f"a list of {count} items")
        return [self.value(kind, depth + 1) for _ in range(count)]

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise Truncated
        self.at += 1
        return self.data[self.at - 1]

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise Truncated
        self.at += size
        return self.data[self.at - size : self.at]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def zigzag(self) -> int:
        value = self.varint()
        return value >> 1 ^ -(value & 1)

"""Entries of a cache in a tar file: how they lie there, and how they are found.

An entry is two members, ``<source>-<name>.json`` (what is said of it) and ``<source>-<name>
.safetensors`` (its tensors), each a header of 512 bytes and a body padded to 512: a tar that any
program reads, and a sample to webdataset. The header's place for the owner's name holds the body's
CRC-32, so that headers alone say which entries there are and whether they are whole.
"""

import os
import re
import zlib
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from .errors import DataError

BLOCK = 512
TAIL = bytes(2 * BLOCK)
"""Two blocks of zeros end a tar."""

MOST_DATA = 1 << 30
"""Most bytes of an entry's tensors: what one write takes, with room to spare."""

MOST_ABOUT = 1 << 20
"""Most bytes of what is said of an entry."""

WINDOW = 8192
"""Bytes read at once: both headers of most entries."""

RECORD = np.dtype(
    [
        *((name, "<u8") for name in ("high", "low", "source", "offset")),
        *((name, "<u4") for name in ("about", "data")),
    ]
)
"""An entry's place: name (high and low half), hash of its source, first byte, sizes of bodies."""

_NAME = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(rb"([0-9a-f]{16})-([0-9a-f]{32})\.(json|safetensors)\0+")
_CRC = re.compile(rb"crc32-([0-9a-f]{8})\0+")
_LOW = (1 << 64) - 1


class Entry(NamedTuple):
    """Where an entry lies in its shard.

    Attributes:
        name: Its name as a number.
        source: Hash of its source, as a number.
        offset: Its first byte.
        about: Bytes of its JSON.
        data: Bytes of its tensors.
    """

    name: int
    source: int
    offset: int
    about: int
    data: int

    @property
    def body(self) -> int:
        """The byte at which the tensors' header block begins."""
        return self.offset + BLOCK + padded(self.about)

    @property
    def end(self) -> int:
        """The byte behind its last block."""
        return self.body + BLOCK + padded(self.data)

    @property
    def record(self) -> tuple[int, ...]:
        """It as a row of `RECORD`."""
        return self.name >> 64, self.name & _LOW, *self[1:]

    def member(self, ending: str) -> bytes:
        """Return the name of one of its members."""
        return f"{self.source:016x}-{self.name:032x}.{ending}".encode()


class Found(NamedTuple):
    """What a scan has found.

    Attributes:
        records: The whole entries, `RECORD` [entries], in their order.
        end: Where they end.
        problem: What stands there that is neither an entry nor the archive's end; None: nothing.
        damaged: Offset of each entry whose checksum is wrong; only where they were asked for.
    """

    records: np.ndarray
    end: int
    problem: str | None
    damaged: list[int]


def name_number(name: str) -> int:
    """Return an entry's name as a number of 128 bits.

    Raises:
        ValueError: It is no name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"an entry's name is 32 digits of 0-9a-f, as entry_name makes; got {name!r:.80}"
        )
    return int(name, 16)


def source_number(source: str) -> int:
    """Return the 64-bit hash under which what an entry was made for is kept."""
    digest = blake2b(source.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def padded(size: int) -> int:
    """Return the bytes that a body takes in the tar."""
    return (size + BLOCK - 1) // BLOCK * BLOCK


def header(member: bytes, size: int, crc: int, time: int) -> bytes:
    """Return a member's header block (POSIX.1-1988 ustar), a function of these four alone."""
    fields = b"".join(
        (
            member.ljust(100, b"\0"),
            b"0000644\x000000000\x000000000\x00",
            b"%011o\0%011o\0" % (size, time),
            b" " * 8 + b"0" + bytes(100),
            b"ustar\x0000",
            b"crc32-%08x" % crc,
        )
    ).ljust(BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def entry_blocks(entry: Entry, about: bytes, data: bytes, time: int) -> list[bytes]:
    """Return an entry's whole blocks, in pieces to be written one behind the other."""
    blocks = []
    for ending, body in (("json", about), ("safetensors", data)):
        blocks.append(header(entry.member(ending), len(body), zlib.crc32(body), time))
        blocks += [body, bytes(padded(len(body)) - len(body))]
    return blocks


def read_header(block: bytes | bytearray) -> tuple[bytes, int, int, int] | None:
    """Return (member, size, CRC-32, time) from a block of `header`; None where it is none."""
    key, crc = _KEY.fullmatch(block[:100]), _CRC.fullmatch(block[265:297])
    if key is None or crc is None:
        return None
    try:
        size, time = int(block[124:135], 8), int(block[136:147], 8)
    except ValueError:
        return None
    parsed = bytes(block[: len(block[:100].rstrip(b"\0"))]), size, int(crc[1], 16), time
    return parsed if size >= 0 <= time and header(*parsed) == block else None


def scan_entries(fd: int, start: int = 0, end: int | None = None, *, verify: bool = False) -> Found:
    """Return the whole entries of an open shard, reading headers alone.

    Args:
        fd: The file.
        start: Where to begin: an entry's first byte.
        end: Where to end; None: at the file's end.
        verify: Read the bodies too, and find those whose checksum is wrong.
    """
    size = os.fstat(fd).st_size if end is None else end
    rows: list[tuple[int, ...]] = []
    damaged = []
    at, problem = start, None
    while at < size:
        window = os.pread(fd, min(WINDOW, size - at), at)
        if not window[:BLOCK].strip(b"\0") and len(window) >= BLOCK:
            break
        found = _entry(fd, at, window, size)
        if isinstance(found, str):
            problem = found
            break
        if verify and not whole(fd, found):
            damaged.append(at)
        rows.append(found.record)
        at = found.end
    return Found(np.array(rows, RECORD), at, problem, damaged)


def whole(fd: int, entry: Entry) -> bool:
    """Return whether an entry is there and both its bodies have their checksums."""
    return _sound(os.pread(fd, entry.end - entry.offset, entry.offset), entry)


def read_whole(fd: int, entry: Entry) -> bytes | None:
    """Return an entry's blocks, or None where it is damaged."""
    blocks = os.pread(fd, entry.end - entry.offset, entry.offset)
    return blocks if _sound(blocks, entry) else None


def _sound(blocks: bytes, entry: Entry) -> bool:
    if len(blocks) != entry.end - entry.offset:
        return False
    for ending, at, size in (
        ("json", 0, entry.about),
        ("safetensors", entry.body - entry.offset, entry.data),
    ):
        found = read_header(blocks[at : at + BLOCK])
        body = memoryview(blocks)[at + BLOCK : at + BLOCK + size]
        if found is None or found[:3] != (entry.member(ending), size, zlib.crc32(body)):
            return False
    return True


def _entry(fd: int, at: int, window: bytes, size: int) -> Entry | str:
    """Return the entry at ``at``, or what is wrong there."""
    first = read_header(window[:BLOCK])
    if first is None or not first[0].endswith(b".json") or first[1] > MOST_ABOUT:
        return "expected the header of an entry's JSON"
    key = first[0].removesuffix(b".json")
    body = BLOCK + padded(first[1])
    block = (
        window[body : body + BLOCK]
        if body + BLOCK <= len(window)
        else os.pread(fd, BLOCK, at + body)
    )
    second = read_header(block)
    if second is None or second[0] != key + b".safetensors" or second[1] > MOST_DATA:
        return "expected the header of the same entry's tensors"
    source, name = key.split(b"-")
    entry = Entry(int(name, 16), int(source, 16), at, first[1], second[1])
    return entry if entry.end <= size else "the file ends inside an entry"


def scan_sealed(path: str, fd: int) -> np.ndarray:
    """Return the entries of a finished shard, `RECORD` [entries].

    Raises:
        DataError: It is damaged, or holds anything but entries.
    """
    size = os.fstat(fd).st_size
    found = scan_entries(fd)
    problem = found.problem
    if problem is None and found.end + len(TAIL) != size:
        problem = "expected two blocks of zeros, which end a shard"
    if problem is not None:
        raise DataError(
            f"{path}: byte {found.end} of {size}: {problem}; the shard is damaged, truncated or "
            "none of a cache: copy it again, or move it away (its entries are then made anew)"
        )
    return found.records

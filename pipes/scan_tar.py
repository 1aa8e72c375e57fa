"""Index a tar file by one pass over its headers.

Formats: old v7, ustar (POSIX.1-1988), pax (POSIX.1-2001) and GNU, as tar(5) of libarchive and GNU
tar's manual describe them. Samples are grouped by webdataset's rules.
"""

import os
import zlib
from collections.abc import Iterator

from .errors import DataError
from .sample import IMAGE_SIZE, KEY, REF, URL
from .shard_index import ShardIndex

BLOCK = 512
WINDOW = 8192
"""Bytes read at once: the headers of small members (captions, JSON) come with the one before."""

LONGEST = 1 << 20
"""Most bytes of a long name or of extended headers; real ones have hundreds."""

_ZEROS = bytes(BLOCK)
_RESERVED = frozenset((KEY, URL, REF, IMAGE_SIZE))
_FILES = (b"0", b"\0", b"7", b"S")  # 7: contiguous, as good as a file; S: GNU's sparse files
_NO_BODY = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_EXTENDED = (b"x", b"g", b"L", b"K", b"X")  # pax, pax for all, GNU's long names; X: Solaris's pax
_SPARSE = {"GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size"}
_KEYWORDS = {"path", "size"} | _SPARSE


def scan_tar(path: str, url: str) -> ShardIndex:
    """Return the index of an uncompressed tar file, reading headers alone.

    Samples are grouped as webdataset 1.0 does: of ``a/b.c.jpg`` the key is ``a/b`` and the field
    ``c.jpg``, in lower case. Left out are all but regular files, names without a dot, and
    webdataset's own ``__meta__`` files; and, unlike in webdataset, whatever lies in a ``__MACOSX``
    folder and all dot files (there ``a/._b.jpg`` makes a sample ``a/``). Samples stand in the order
    of their first members. Members of a sample that are not adjacent are one sample all the same
    (webdataset would make two of one key).

    Args:
        path: The local file.
        url: Its name in errors.

    Raises:
        DataError: If the tar is damaged, truncated, or has the same field of a sample twice; the
            message names ``url`` and the byte.
    """
    samples: dict[str, list[tuple[str, int, int]]] = {}
    fd = os.open(path, os.O_RDONLY)
    try:
        for name, offset, size in _Scan(fd, url).files():
            parts = split_name(name)
            if parts is not None:
                samples.setdefault(parts[0], []).append((parts[1], offset, size))
    finally:
        os.close(fd)
    for key, members in samples.items():
        _check_fields(key, members, url)
    return ShardIndex.build(samples.items())


def split_name(name: str) -> tuple[str, str] | None:
    """Return the (key, field) of a member by its name, or None for one that is left out."""
    folder, slash, base = name.rpartition("/")
    stem, dot, field = base.partition(".")
    if not stem or not dot:
        return None
    if name.startswith("__"):
        first = name.partition("/")[0]
        if first.endswith("__") and len(first) >= 4:
            return None
    if "__MACOSX" in folder and "__MACOSX" in folder.split("/"):
        return None
    return folder + slash + stem, field.lower()


def _check_fields(key: str, members: list[tuple[str, int, int]], url: str) -> None:
    fields = {member[0] for member in members}
    if len(fields) < len(members):
        first: dict[str, int] = {}
        for field, offset, _ in members:
            if field in first:
                raise DataError(
                    f"{url}: sample {key!r} has the field {field!r} twice, at bytes {first[field]} "
                    f"and {offset}: names must differ before the first dot; write the shard again"
                )
            first[field] = offset
    if not _RESERVED.isdisjoint(fields):
        name = min(_RESERVED & fields)
        raise DataError(f"{url}: sample {key!r} has a field {name!r}, which is a reserved name")


class _Scan:
    """Walks the headers of one open tar file."""

    def __init__(self, fd: int, url: str) -> None:
        self._fd = fd
        self._url = url
        self._size = os.fstat(fd).st_size
        self._window = b""
        self._window_start = 0

    def files(self) -> Iterator[tuple[str, int, int]]:
        """Yield the (name, offset, size) of each regular file."""
        if not self._size:
            raise self._error(0, "a tar header, but the file is empty")
        at, begun = 0, False  # begun: an extended header has been read, its member has not
        for_all: dict[str, bytes] = {}
        for_next: dict[str, bytes] = {}
        while (header := self._header(at, begun)) is not None:
            kind = header[156:157]
            size = self._number(header[124:136], at)
            if kind in _EXTENDED:
                body = self._body(at, size)
                if kind == b"L":
                    for_next["path"] = body.partition(b"\0")[0]
                elif kind == b"g":
                    for_all |= self._records(body, at)
                elif kind != b"K":
                    for_next |= self._records(body, at)
                at += BLOCK + _padded(size)
                begun = kind != b"g"
                continue
            known = for_all | for_next if for_all else for_next
            if known.get("size"):
                size = self._decimal(known["size"], at)
            end = at + BLOCK + (0 if kind in _NO_BODY else _padded(size))
            if end > self._size:
                raise self._error(at, f"a member of {size:,} bytes, but the file ends before")
            if kind in _FILES:
                name = (known.get("path") or _name(header)).decode("utf-8", "surrogateescape")
                if kind == b"S" or (known and _SPARSE & known.keys()):
                    raise DataError(
                        f"{self._url}: byte {at}: {name!r} is stored as a sparse file, which "
                        "cannot be read in place; write the shard again without tar's --sparse"
                    )
                yield name, at + BLOCK, size
            at, begun, for_next = end, False, {}

    def _header(self, at: int, begun: bool) -> bytes | None:
        """Return the block of a valid header, or None at the end of the archive."""
        block = self._block(at)
        if len(block) < BLOCK:
            if block or begun:
                raise self._error(at, "a header of 512 bytes, but the file ends before")
            return None
        if block == _ZEROS and not begun:
            if self._block(at + BLOCK) not in (_ZEROS, b""):
                raise self._error(at + BLOCK, "a second block of zeros, as at a tar's end")
            return None
        # The sum of all bytes, with blanks in the checksum's own place. An Adler-32 begins with 1 +
        # the sum of the bytes, modulo 65521, and takes a tenth of the time of sum().
        adler = zlib.adler32(block[156:], zlib.adler32(block[:148])) & 0xFFFF
        stored = self._number(block[148:156], at)
        if adler != (stored - 8 * 32 + 1) % 65521 and stored != _signed_sum(block):
            raise self._error(at, "a tar header, but its checksum is wrong")
        return block

    def _block(self, at: int) -> bytes:
        """Return the 512 bytes at ``at``, fewer at the file's end."""
        start = at - self._window_start
        if not 0 <= start <= len(self._window) - BLOCK:
            self._window, self._window_start = os.pread(self._fd, WINDOW, at), at
            start = 0
        return self._window[start : start + BLOCK]

    def _body(self, at: int, size: int) -> bytes:
        """Return the body of the extended header at ``at``."""
        if size > LONGEST:
            raise self._error(at, f"an extended header, but its {size:,} bytes are too many")
        body = os.pread(self._fd, size, at + BLOCK)
        if len(body) < size or at + BLOCK + _padded(size) > self._size:
            raise self._error(at, f"an extended header of {size} bytes, but the file ends before")
        return body

    def _records(self, body: bytes, at: int) -> dict[str, bytes]:
        """Return a pax header's records (``30 path=...``) of those keywords that matter here."""
        found: dict[str, bytes] = {}
        start = 0
        while start < len(body) and body[start]:  # some writers fill up with zeros
            blank = body.find(b" ", start)
            digits = body[start:blank]
            length = int(digits) if blank > 0 and digits.isdigit() and len(digits) < 8 else 0
            keyword, equals, value = body[blank + 1 : start + length].partition(b"=")
            if not equals or value[-1:] != b"\n" or start + length > len(body):
                raise self._error(at, "pax records ('LENGTH KEYWORD=VALUE'), but found others")
            name = keyword.decode("utf-8", "replace")
            if name in _KEYWORDS:
                found[name] = value[:-1]
            start += length
        return found

    def _number(self, field: bytes, at: int) -> int:
        """Return the value of a number field: octal digits, or base 256 (GNU) by its first bit."""
        if field[0] & 0x80:
            value = int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
            if not field[0] & 0x40:  # else negative
                return value
        else:
            try:
                value = int(field.partition(b"\0")[0].strip() or b"0", 8)
            except ValueError:
                value = -1
            if value >= 0:
                return value
        raise self._error(at, f"a tar header, but found {field!r} in place of a number")

    def _decimal(self, value: bytes, at: int) -> int:
        if not value.isdigit() or len(value) > 20:
            raise self._error(at, f"a size in the pax header, but found {value[:20]!r}")
        return int(value)

    def _error(self, at: int, expected: str) -> DataError:
        return DataError(
            f"{self._url}: byte {at} of {self._size}: expected {expected}; the shard is damaged, "
            "truncated or no tar: fetch or write it again"
        )


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # GNU's format (magic "ustar  ") has times in the prefix's place.
    if header[257:263] == b"ustar\0" and header[345]:
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _signed_sum(block: bytes) -> int:
    """Return the checksum that some old tars made: of signed bytes."""
    blanked = block[:148] + b" " * 8 + block[156:]
    return sum(byte - 256 if byte > 127 else byte for byte in blanked)

"""Unpack gzip and Zstandard, whole or not at all."""

import gzip
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from .errors import DataError
from .fetch import write_at

CHUNK = 1 << 20
"""Bytes that are read, or unpacked, at once."""

# No name of a tar's first member begins so: neither is UTF-8.
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


def is_packed(head: bytes) -> bool:
    """Return whether a file that begins with these 4 bytes is compressed."""
    return head.startswith((_GZIP, _ZSTD))


def unpack(url: str, source: BinaryIO, fd: int, limit: int) -> None:
    """Write the content of a compressed file to ``fd``, from its byte 0.

    Args:
        url: What errors name.
        source: The compressed file, whole.
        fd: A file open for writing.
        limit: Most bytes that it may have.

    Raises:
        DataError: The data is damaged, or larger than ``limit``.
    """
    head = source.read(4)
    source.seek(0)
    written = 0
    try:
        for chunk in _gunzip(source) if head.startswith(_GZIP) else _unzstd(source):
            if written + len(chunk) > limit:
                raise DataError(
                    f"{url}: unpacks to more than {limit:,} bytes; if it is no decompression "
                    "bomb, raise max_unpacked"
                )
            write_at(fd, chunk, written)
            written += len(chunk)
    except _BadData as err:
        raise DataError(f"{url}: its compressed data is damaged or truncated: {err}") from err


class _BadData(Exception):
    """Compressed data that cannot be unpacked."""


def _gunzip(source: Any) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=source) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as err:
        raise _BadData(err) from err


def _unzstd(source: BinaryIO) -> Iterator[bytes]:
    """Yield the content of all frames; `stream_reader` would take a truncated one for its end."""
    import zstandard

    # One block of at least 4 bytes may unpack to 128 KiB, all of it at once: 1 KiB to 32 MiB.
    step = 1024
    frame = None
    try:
        while packed := source.read(CHUNK):
            for start in range(0, len(packed), step):
                rest = packed[start : start + step]
                while rest:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(rest)
                    rest = b""
                    if frame.eof:
                        rest, frame = frame.unused_data, None
    except zstandard.ZstdError as err:
        raise _BadData(err) from err
    if frame is not None:
        raise _BadData("it ends inside a frame")

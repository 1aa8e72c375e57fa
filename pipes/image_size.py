"""The size of an image as it is displayed, read from its header: nothing is decoded.

JPEG, PNG and WebP have a parser here, which takes 1 to 4 µs (Pillow: 20 to 100); the rest goes
through Pillow. Orientation is EXIF's tag 0x0112 and nothing else: XMP's copy of it is ignored, as
browsers do.
"""

import os
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from .errors import DataError
from .open_image import open_image, quiet, reading
from .sample import Extent

JPEG: Final = b"\xff\xd8\xff"
PNG: Final = b"\x89PNG\r\n\x1a\n"
WINDOW: Final = 4096
"""Bytes of an extent that are read at first: nearly every header ends there, and it is one page."""

_SEGMENT = struct.Struct(">HH").unpack_from  # marker, length with itself
_FRAME = struct.Struct(">HH").unpack_from  # height, width
_PNG_CHUNK = struct.Struct(">I4s").unpack_from
_PNG_SIZE = struct.Struct(">II").unpack_from
_RIFF_CHUNK = struct.Struct("<4sI").unpack_from
_FRAME_MARKERS = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}  # not DHT, JPG, DAC
_BARE_MARKERS = frozenset((0xFF00, 0xFF01, *range(0xFFD0, 0xFFD9)))  # no segment behind them
_EXIF: Final = b"Exif\0\0"


class _Order(NamedTuple):
    """How a TIFF structure of one byte order is read; an entry is tag, type, (count), value."""

    long: struct.Struct
    short: struct.Struct
    entry: struct.Struct


_ORDERS: Final = {
    magic: _Order(*(struct.Struct(order + form) for form in ("I", "H", "HH4x2s2x")))
    for magic, order in ((b"II*\0", "<"), (b"MM\0*", ">"))
}


class Header(NamedTuple):
    """An image's size as stored, in pixels, and its EXIF orientation (1 to 8, 1 = upright)."""

    height: int
    width: int
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) as displayed: orientations 5 to 8 lie on their side."""
        size = (self.height, self.width)
        return size[::-1] if self.orientation >= 5 else size


_NOTHING: Final = Header(0, 0, 0)


class _More(NamedTuple):
    """A header that is longer than the data: go on at ``at`` (bytes from the data's begin), with
    at least ``need`` bytes. ``known`` is what has been found; orientation 0 is not found yet."""

    at: int
    need: int
    known: Header


_Parser = Callable[[bytes, int, Header], Header | _More]


def image_size(data: bytes) -> tuple[int, int]:
    """Return the (height, width) in pixels of an image as displayed, EXIF orientation counted.

    Raises:
        DataError: If ``data`` is no image, ends inside the header, or says 0 pixels.
    """
    return image_header(data).upright


def image_header(data: bytes) -> Header:
    """Return the stored size and the orientation of an image in memory; raises as `image_size`."""
    start = _start(data)
    if start is None:
        return _checked(_with_pillow(data))
    found = start[0](data, start[1], _NOTHING)
    if isinstance(found, _More):
        found = _at_the_end(found, data)
    return _checked(found)


def read_image_size(extent: Extent, fd: int | None = None) -> tuple[int, int]:
    """Return the (height, width) in pixels of the image that lies in ``extent``, as displayed.

    Reads `WINDOW` bytes and more only as needed: long segments (thumbnails, profiles, workflows)
    are jumped over; formats that Pillow must open are read whole.

    Args:
        extent: Where the image lies.
        fd: The extent's file where the caller has it open; it is opened and closed otherwise.

    Raises:
        DataError: If there is no image, it ends inside its header, or says 0 pixels.
        OSError: If the file cannot be read.
    """
    if fd is not None:
        return _read_header(fd, extent).upright
    fd = os.open(extent.path, os.O_RDONLY)
    try:
        return _read_header(fd, extent).upright
    finally:
        os.close(fd)


def _read_header(fd: int, extent: Extent) -> Header:
    data = first = os.pread(fd, min(WINDOW, extent.size), extent.offset)
    start = _start(first)
    if start is None:
        if extent.size > len(first):
            first = os.pread(fd, extent.size, extent.offset)
        return _checked(_with_pillow(first))
    parse, at = start
    base, known = 0, _NOTHING
    while isinstance(found := parse(data, at, known), _More):
        here = base + found.at
        if here + found.need > extent.size:
            return _checked(_at_the_end(found, first))
        want = min(max(WINDOW, found.need), extent.size - here)
        data = os.pread(fd, want, extent.offset + here)
        if len(data) < found.need:
            raise DataError(
                "the file ends inside the image: it is shorter than its shard's index says"
            )
        base, at, known = here, 0, found.known
    return _checked(found)


def _start(data: bytes) -> tuple[_Parser, int] | None:
    """Return the parser that takes ``data``, and where it begins; None where Pillow must look."""
    if data.startswith(JPEG):
        return _parse_jpeg, 2
    if data.startswith(PNG):
        return _parse_png, 8
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _parse_webp, 0
    return None


def _parse_jpeg(data: bytes, at: int, known: Header) -> Header | _More:
    """Walk the segments to the first frame header. Only an Exif segment is read whole."""
    orientation, end = known.orientation, len(data)
    while at + 10 <= end:
        marker, length = _SEGMENT(data, at)
        if marker in _FRAME_MARKERS:
            height, width = _FRAME(data, at + 5)
            return Header(height, width, orientation or 1)
        if marker == 0xFFE1 and not orientation and data.startswith(_EXIF, at + 4):
            if at + 2 + length > end:
                return _More(at, 2 + length, _NOTHING)
            orientation = tiff_orientation(data[at + 10 : at + 2 + length])
        elif marker == 0xFFFF or marker < 0xFF00:  # fill, or bytes that libjpeg skips too
            at = data.find(b"\xff", at + 1)
            at = end if at < 0 else at
            continue
        elif marker in _BARE_MARKERS:
            at += 2
            continue
        elif marker == 0xFFD9 or marker == 0xFFDA:
            raise DataError("the JPEG has no frame header before its data")
        at += 2 + max(2, length)
    return _More(at, 10, Header(0, 0, orientation))


def _parse_png(data: bytes, at: int, known: Header) -> Header | _More:
    """Read IHDR, and the chunks up to the first IDAT for an eXIf.

    An eXIf behind the pixels is not looked for: PNG's third edition wants it before them.
    """
    end = len(data)
    if not known.height:
        if end < at + 25:
            return _More(at, 25, known)
        if not data.startswith(b"\0\0\0\rIHDR", at):
            raise DataError("the PNG does not begin with an IHDR chunk")
        width, height = _PNG_SIZE(data, at + 8)
        known = Header(height, width, 1)
        at += 25
        if not height or not width:
            return known
    while at + 8 <= end:
        length, kind = _PNG_CHUNK(data, at)
        if kind == b"IDAT" or kind == b"IEND":
            return known
        if kind == b"eXIf":
            if at + 8 + length > end:
                return _More(at, 8 + length, known)
            return known._replace(orientation=tiff_orientation(data[at + 8 : at + 8 + length]))
        at += 12 + length
    return _More(at, 8, known)


def _parse_webp(data: bytes, at: int, known: Header) -> Header | _More:
    """Read the first chunk, and where VP8X promises an EXIF chunk, look for it."""
    end = len(data)
    if not known.height:
        if end < 30:
            return _More(0, 30, known)
        kind = data[12:16]
        if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            return Header(height & 0x3FFF, width & 0x3FFF, 1)
        if kind == b"VP8L" and data[20] == 0x2F:
            bits = int.from_bytes(data[21:25], "little")
            return Header((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, 1)
        if kind != b"VP8X":
            raise DataError(
                f"the WebP begins with a chunk {kind!r} that is none of VP8, VP8L, VP8X"
            )
        size = [int.from_bytes(data[i : i + 3], "little") + 1 for i in (27, 24)]
        known = Header(size[0], size[1], 1)
        if not data[20] & 0x08:
            return known
        at = 30
    while at + 8 <= end:
        kind, length = _RIFF_CHUNK(data, at)
        if kind == b"EXIF":
            if at + 8 + length > end:
                return _More(at, 8 + length, known)
            exif = data[at + 8 : at + 8 + length]
            return known._replace(orientation=tiff_orientation(exif.removeprefix(_EXIF)))
        at += 8 + length + (length & 1)
    return _More(at, 8, known)


def tiff_orientation(tiff: bytes) -> int:
    """Return EXIF's orientation (1 to 8) from a TIFF structure; 1 where there is no valid one."""
    order = _ORDERS.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    start = order.long.unpack_from(tiff, 4)[0] + 2
    if start > len(tiff):
        return 1
    count = order.short.unpack_from(tiff, start - 2)[0]
    whole = min(count, (len(tiff) - start) // 12)
    for tag, kind, value in order.entry.iter_unpack(tiff[start : start + 12 * whole]):
        if tag == 0x0112:
            orientation: int = order.short.unpack(value)[0] if kind == 3 else 1
            return orientation if 1 <= orientation <= 8 else 1
    return 1


def _with_pillow(data: bytes) -> Header:
    with reading(), quiet():
        image = open_image(data)
        width, height = image.size
        exif = image.info.get("exif", b"")  # none in TIFFs, which Pillow turns by itself
    return Header(height, width, tiff_orientation(bytes(exif).removeprefix(_EXIF)))


def _checked(header: Header) -> Header:
    if header.height < 1 or header.width < 1:
        raise DataError(f"the image says that it is {header.height} x {header.width} pixels")
    return header


def _at_the_end(found: _More, data: bytes) -> Header:
    """Return what is known where the data is over: at times all but whether there is EXIF."""
    if found.known.height:
        return found.known
    name = "JPEG" if data.startswith(JPEG) else "PNG" if data.startswith(PNG) else "WebP"
    raise DataError(f"the {name} ends before its size")

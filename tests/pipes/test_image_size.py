import io
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from penstock.pipes import image_size as module
from penstock.pipes.errors import DataError
from penstock.pipes.image_size import image_size, read_image_size
from penstock.pipes.sample import Extent

Encode = Callable[..., bytes]
SIZES = [(1, 1), (3, 7), (37, 16), (130, 257)]
TURNED = {
    "jpeg": {"format": "JPEG"},
    "progressive": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP"},
    "webp-lossless": {"format": "WEBP", "lossless": True},
    "tiff": {"format": "TIFF"},
    "avif": {"format": "AVIF", "speed": 10},
}


@pytest.fixture(scope="module")
def encode() -> Encode:
    def make(height: int, width: int, orientation: int | None = None, **options: object) -> bytes:
        image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        if orientation is not None:
            exif = Image.Exif()
            exif[0x010F] = "a maker whose name does not fit into the entry"
            exif[0x0112] = orientation
            options["exif"] = exif
        file = io.BytesIO()
        image.save(file, **options)
        return file.getvalue()

    return make


@pytest.fixture
def read(tmp_path) -> Callable[[bytes], tuple[int, int]]:
    """Reads the size of bytes that lie in the middle of a file."""
    path = tmp_path / "shard.tar"

    def at_offset(data: bytes) -> tuple[int, int]:
        path.write_bytes(b"\xff" * 700 + data + b"\xff\xc0" * 400)
        return read_image_size(Extent(str(path), 700, len(data)))

    return at_offset


@pytest.fixture
def pread_bytes(monkeypatch) -> list[int]:
    """Collects the number of bytes of each read."""
    counts: list[int] = []
    pread = os.pread

    def counted(fd: int, n: int, offset: int) -> bytes:
        counts.append(n)
        return pread(fd, n, offset)

    monkeypatch.setattr(module.os, "pread", counted)
    return counts


def size_by_pillow(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).size[::-1]


def insert_segments(jpeg: bytes, marker: int, payloads: list[bytes]) -> bytes:
    parts = (struct.pack(">BBH", 0xFF, marker, len(p) + 2) + p for p in payloads)
    return jpeg[:2] + b"".join(parts) + jpeg[2:]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("name", TURNED)
@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8])
def test_agrees_with_pillow_for_every_orientation(encode, read, name, orientation):
    for height, width in SIZES[1:2] if name == "avif" else SIZES:
        data = encode(height, width, orientation, **TURNED[name])
        turned = orientation is not None and orientation >= 5
        assert size_by_pillow(data) == ((width, height) if turned else (height, width))
        assert image_size(data) == size_by_pillow(data)
        assert read(data) == size_by_pillow(data)


@pytest.mark.parametrize("format", ["GIF", "BMP", "PPM", "ICO", "JPEG2000"])
@pytest.mark.parametrize("size", SIZES)
def test_formats_that_have_no_orientation(encode, read, format, size):
    if format == "ICO":
        size = (32, 32)
    data = encode(*size, format=format, **({"sizes": [(32, 32)]} if format == "ICO" else {}))
    assert image_size(data) == read(data) == size


def test_animations_have_the_size_of_their_canvas(read):
    frames = [Image.new("RGB", (33, 21), c) for c in ("red", "green", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        file = io.BytesIO()
        frames[0].save(file, format, save_all=True, append_images=frames[1:])
        assert image_size(file.getvalue()) == read(file.getvalue()) == (21, 33)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_in_both_byte_orders(encode, order, orientation):
    magic = b"II*\0" if order == "<" else b"MM\0*"
    other = struct.pack(order + "HHII", 0x0100, 4, 1, 6)
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = magic + struct.pack(order + "IH", 8, 2) + other + entry + bytes(4)
    data = insert_segments(encode(30, 50, format="JPEG"), 0xE1, [b"Exif\0\0" + tiff])
    assert image_size(data) == size_by_pillow(data) == ((50, 30) if orientation == 6 else (30, 50))


@pytest.mark.parametrize(
    "tiff",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0",
        b"II*\0\x08\0\0\0\xff\xff",
        b"XX*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0),
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 9, 0),
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 0, 0),
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)[:-1],
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 2, 1, 6, 0),
    ],
)
def test_broken_exif_is_no_orientation(encode, tiff):
    data = insert_segments(encode(30, 50, format="JPEG"), 0xE1, [b"Exif\0\0" + tiff])
    assert image_size(data) == (30, 50)


def test_only_the_first_exif_counts(encode):
    data = encode(30, 50, 6, format="JPEG")
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 1, 0)
    first = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    assert image_size(insert_segments(data, 0xE1, [first])) == (30, 50)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x/>"
    assert image_size(insert_segments(data, 0xE1, [xmp])) == (50, 30)


def test_exif_whose_entries_lie_far_behind(encode, read):
    entry = struct.pack("<HHHIHH", 1, 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 50_000) + bytes(49_992) + entry + bytes(4)
    data = insert_segments(encode(30, 50, format="JPEG"), 0xE1, [exif])
    assert image_size(data) == read(data) == size_by_pillow(data) == (50, 30)


def test_tables_before_the_frame(encode, read):
    data = insert_segments(encode(30, 50, format="JPEG"), 0xC4, [bytes(17)])
    assert image_size(data) == read(data) == size_by_pillow(data) == (30, 50)


def test_fill_bytes_bare_markers_and_rubbish_between_segments(encode, read):
    data = encode(30, 50, 6, format="JPEG")
    for between in (b"\xff" * 9, b"\xff\x01", b"\xff\xd0\xff\xff", b"\xff\0ab"):
        odd = data[:2] + b"\xff\xfe\0\2" + between + data[2:]
        assert image_size(odd) == read(odd) == (50, 30)


def test_long_jpeg_headers_are_jumped_over(encode, read, pread_bytes):
    data = insert_segments(encode(40, 90, 6, format="JPEG"), 0xE2, [bytes(65000)] * 4)
    assert read(data) == image_size(data) == (90, 40)
    assert sum(pread_bytes) < 7 * module.WINDOW
    exif = Image.Exif()
    exif[0x0112] = 8
    thumbnail = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0") + bytes(60000)
    data = insert_segments(encode(40, 90, format="JPEG"), 0xE1, [thumbnail])
    data = insert_segments(data, 0xEF, [bytes(4096 - n) for n in range(10)])
    assert read(data) == image_size(data) == (90, 40)


def test_long_png_headers_are_jumped_over(encode, read, pread_bytes):
    data = encode(40, 90, format="PNG")
    exif = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(5000)
    workflow = png_chunk(b"tEXt", b"prompt\0" + b"x" * 300_000)
    data = data[:33] + workflow * 3 + png_chunk(b"eXIf", exif) + data[33:]
    assert read(data) == image_size(data) == size_by_pillow(data) == (90, 40)
    assert sum(pread_bytes) < 7 * module.WINDOW


def test_webp_exif_behind_the_pixels(encode, read, pread_bytes):
    noise = Image.effect_noise((300, 200), 90).convert("RGB")
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 5
    noise.save(file, "WEBP", lossless=True, exif=exif)
    data = file.getvalue()
    assert len(data) > 50_000
    assert read(data) == image_size(data) == size_by_pillow(data) == (300, 200)
    assert sum(pread_bytes) <= 2 * module.WINDOW
    unpromised = bytearray(data)
    unpromised[20] &= ~0x08
    assert image_size(bytes(unpromised)) == size_by_pillow(bytes(unpromised)) == (200, 300)


def test_one_read_is_enough_for_usual_headers(encode, read, pread_bytes):
    for name in ("jpeg", "png", "webp"):
        read(encode(1000, 2000, 6, **TURNED[name]))
    assert pread_bytes == [4096] * 3 or max(pread_bytes) <= 4096


def test_an_open_file_is_used_and_left_open(encode, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(40, 90, format="JPEG"))
    with path.open("rb") as file:
        extent = Extent("/nonexistent", 0, path.stat().st_size)
        assert read_image_size(extent, file.fileno()) == (40, 90)
        assert read_image_size(extent, file.fileno()) == (40, 90)


@pytest.mark.parametrize("name", [*TURNED, "gif", "bmp"])
def test_every_prefix_is_a_data_error_or_the_size(encode, read, name):
    data = encode(37, 16, 6, **TURNED.get(name, {"format": name}))
    for n in range(0, min(len(data), 900), 1 if len(data) < 1200 else 3):
        for size_of in (image_size, read):
            try:
                assert size_of(data[:n]) in ((37, 16), (16, 37))
            except DataError:
                continue
    if name in ("jpeg", "progressive"):
        with pytest.raises(DataError, match="the JPEG ends before its size"):
            image_size(data[:100])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image: no bytes at all"),
        (b"<html>404", r"not an image: begins with b'<html>404'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image: begins with"),
        (b"\xff\xd8\xff\xda\0\x08" + bytes(20), "no frame header before its data"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "does not begin with an IHDR"),
        (b"RIFF\0\0\0\0WEBPVP9 " + bytes(40), "b'VP9 '"),
        (b"BM" + bytes(60), "cannot be decoded"),
    ],
)
def test_errors_say_the_cause(data, message):
    with pytest.raises(DataError, match=message):
        image_size(data)


def test_no_pixels_at_all_is_an_error(encode, read):
    jpeg = bytearray(encode(40, 90, format="JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 7] = bytes(2)
    png = bytearray(encode(40, 90, format="PNG"))
    png[16:20] = bytes(4)
    for data, size in ((bytes(jpeg), "0 x 90"), (bytes(png), "40 x 0")):
        for size_of in (image_size, read):
            with pytest.raises(DataError, match=f"says that it is {size} pixels"):
                size_of(data)


def test_a_file_shorter_than_the_extent(encode, tmp_path):
    data = insert_segments(encode(40, 90, format="JPEG"), 0xE2, [bytes(65000)])
    path = tmp_path / "shard.tar"
    path.write_bytes(data[:5000])
    with pytest.raises(DataError, match="shorter than its shard's index says"):
        read_image_size(Extent(str(path), 0, len(data)))
    with pytest.raises(FileNotFoundError):
        read_image_size(Extent(str(tmp_path / "none"), 0, 10))


HEADS = [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1\0\x40Exif\0\0II*\0", b"\x89PNG\r\n\x1a\n"]
HEADS += [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFF\0\1\0\0WEBPVP8X", b"RIFF\0\1\0\0WEBP"]
HEADS += [b"GIF89a", b"BM", b"II*\0\x08\0\0\0", b"MM\0*", b"\0\0\0\x1cftypavif", b"P6\n"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=st.sampled_from(HEADS), tail=st.binary(max_size=200), window=st.sampled_from([12, 40]))
def test_any_bytes_give_a_size_or_a_data_error(head, tail, window, tmp_path_factory):
    data = head + tail
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)

    def outcome(size_of: Callable[[], tuple[int, int]]) -> tuple[int, int] | None:
        try:
            size = size_of()
        except DataError:
            return None
        assert min(size) > 0
        return size

    whole = outcome(lambda: image_size(data))
    old, module.WINDOW = module.WINDOW, window  # small windows: many continuations
    try:
        assert outcome(lambda: read_image_size(Extent(str(path), 0, len(data)))) == whole
    finally:
        module.WINDOW = old


@settings(max_examples=150)
@given(
    name=st.sampled_from(["jpeg", "png", "webp", "tiff"]),
    spots=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_headers_give_a_size_or_a_data_error(encode, name, spots):
    data = bytearray(encode(37, 16, 6, **TURNED[name]))
    for at, value in spots:
        data[at % len(data)] = value
    with suppress(DataError):
        assert min(image_size(bytes(data))) > 0

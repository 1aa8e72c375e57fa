"""Decoded images that are kept: what is made from them is the same, to the last bit."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.pipes.decode_image import DecodePolicy, decode, jpeg_scale, probe
from penstock.pipes.decode_pixels import DecodedImages, open_pixels
from penstock.pipes.geometry import Crop, cover_crop, stored_crop
from penstock.pipes.image_size import image_header


def file_of(mode, kind, **save):
    """Return the bytes of an image 97 x 142 with pixels in this mode."""
    y, x = np.mgrid[0:97, 0:142]
    rgba = np.stack([x, y * 2, (x * y) % 251, 255 - x], 2).astype(np.uint8)
    image = Image.fromarray(rgba)
    image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **save)
    return out.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


FILES = {
    "jpeg": lambda: file_of("RGB", "JPEG", quality=90),
    "jpeg on its side": lambda: file_of("RGB", "JPEG", quality=90, exif=exif(6)),
    "jpeg grey": lambda: file_of("L", "JPEG"),
    "jpeg cmyk": lambda: file_of("CMYK", "JPEG"),
    "png": lambda: file_of("RGB", "PNG"),
    "png alpha": lambda: file_of("RGBA", "PNG"),
    "png palette": lambda: file_of("P", "PNG", transparency=3),
    "webp": lambda: file_of("RGBA", "WEBP", lossless=True),
    "gif": lambda: file_of("P", "GIF"),
    "tiff": lambda: file_of("RGB", "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_no_pixel_differs(name):
    data = FILES[name]()
    policy = DecodePolicy(alpha="mask", matte=(10, 200, 30))
    height, width = probe(data, policy)
    kept = DecodedImages(1 << 30)
    regions = [
        (cover_crop((height, width), (32, 32), anchor=(0.5, 0.5)), (32, 32), False),
        (cover_crop((height, width), (16, 24), anchor=(0.1, 0.9)), (16, 24), True),
        (Crop(3.5, 7.25, 40.0, 50.0), (64, 80), False),
        (None, None, False),
    ]
    for _ in range(2):
        for crop, size, flip in regions:
            outs = []
            for keeper in (None, kept):
                mask = torch.zeros((1, *(size or (height, width))), dtype=torch.uint8)
                image = decode(
                    data, policy, crop=crop, size=size, flip=flip, mask_out=mask, kept=keeper
                )
                outs.append((image, mask))
            assert torch.equal(outs[0][0], outs[1][0])
            assert torch.equal(outs[0][1], outs[1][1])
    scales = {
        8 if crop is None else jpeg_scale(stored_crop(crop, (height, width), 1), size)
        for crop, size, _ in regions
    }
    if name == "jpeg":
        assert len(kept) == len(scales) > 1
    elif "jpeg" not in name:
        assert len(kept) == 1


def test_each_is_decoded_once(monkeypatch):
    calls = []
    real = open_pixels.__globals__["_open"]
    monkeypatch.setitem(open_pixels.__globals__, "_open", lambda *a: calls.append(a) or real(*a))
    data = FILES["png"]()
    kept = DecodedImages(1 << 20)
    for _ in range(3):
        open_pixels(bytes(data), image_header(data), 8, True, kept)
    assert len(calls) == 1
    open_pixels(FILES["png alpha"](), image_header(data), 8, True, kept)
    assert len(calls) == 2


def test_the_limit_holds_and_the_oldest_goes_first():
    image = Image.new("RGB", (10, 10))
    kept = DecodedImages(1000)
    for name in (b"a", b"b"):
        kept.put((name, 0, True), (image, 1.0))
    assert kept.get((b"a", 0, True)) is not None
    kept.put((b"c", 0, True), (image, 1.0))
    assert kept.held == 800
    assert kept.get((b"b", 0, True)) is None
    assert kept.get((b"a", 0, True)) is not None
    kept.put((b"d", 0, True), (Image.new("RGB", (100, 100)), 1.0))
    assert kept.get((b"d", 0, True)) is None
    assert len(kept) == 2
    again = pickle.loads(pickle.dumps(kept))
    assert (len(again), again.limit) == (0, 1000)

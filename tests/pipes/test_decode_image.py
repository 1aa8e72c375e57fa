import io
import statistics
import struct
import warnings
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from penstock.pipes.decode_image import SCALES, DecodePolicy, decode, jpeg_scale, probe
from penstock.pipes.errors import DataError
from penstock.pipes.geometry import Crop, cover_crop

POLICY = DecodePolicy()
PHOTOGRAPHS = {
    "skimage": (
        *("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png"),
        *("motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg"),
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}


def file_of(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(tensor: torch.Tensor) -> np.ndarray:
    """[3, H, W] to [H, W, 3], as integers that can be subtracted."""
    return tensor.permute(1, 2, 0).numpy().astype(np.int16)


def by_pillow(image: Image.Image, crop: Crop, size: tuple[int, int]) -> np.ndarray:
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC, box), np.int16)


def worst(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def with_orientation(orientation: int) -> dict[str, object]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Smooth, without symmetry, 173 x 259 (no multiples of 8), so that JPEG hardly changes it."""
    y, x = np.mgrid[0:173, 0:259]
    red, green = 255 * x / 258, 255 * y / 172
    blue = 127 + 120 * np.sin(x / 40) * np.cos(y / 29)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).round().astype(np.uint8))


@pytest.fixture(scope="module")
def photographs() -> dict[str, bytes]:
    """Eleven photographs as JPEGs of quality 92, no side a multiple of 8."""
    found = {}
    for package, names in PHOTOGRAPHS.items():
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent / ("data" if package == "skimage" else "datasets/images")
        for name in names:
            image = Image.open(folder / name).convert("RGB")
            width, height = (side - (side % 8 == 0) for side in image.size)
            found[name] = file_of(image.crop((0, 0, width, height)), "JPEG", quality=92)
    return found


@pytest.fixture(scope="module")
def swapped() -> bytes:
    """An ICC profile whose red is sRGB's green, and its green sRGB's red."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


# Regions and sizes


def test_the_whole_image_is_exact(picture):
    for format in ("PNG", "BMP", "TIFF", "PPM"):
        assert worst(pixels(decode(file_of(picture, format), POLICY)), np.asarray(picture)) == 0
    data = file_of(picture, "JPEG", quality=95)
    assert worst(pixels(decode(data, POLICY)), simplejpeg.decode_jpeg(data)) == 0


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("size", [(32, 32), (64, 200), (300, 300), (173, 259)])
def test_a_region_is_resized_as_pillow_does(picture, format, size):
    for crop in (Crop(20.5, 31.25, 100.0, 150.5), Crop(0, 0, 173, 259), Crop(172, 258, 1, 1)):
        got = decode(file_of(picture, format), POLICY, crop=crop, size=size)
        assert got.shape == (3, *size)
        assert got.dtype == torch.uint8
        assert worst(pixels(got), by_pillow(picture, crop, size)) == 0


@pytest.mark.parametrize("ratio", [1.0, 1.3, 1.7, 2, 2.4, 3.7, 4.2, 6.1, 8.4, 20])
def test_scaled_decodes_lie_where_they_should(picture, ratio):
    # On a ramp, a shift of half a pixel of the original is half a level, plus rounding and JPEG.
    data = file_of(picture, "JPEG", quality=100, subsampling=0)
    full = Image.open(io.BytesIO(data))
    for anchor in ((0, 0), (0.5, 0.5), (1, 1)):
        side = max(1, int(170 / ratio))
        crop = cover_crop((173, 259), (side, side), anchor=anchor)
        got = pixels(decode(data, POLICY, crop=crop, size=(side, side)))
        difference = got - by_pillow(full, crop, (side, side))
        assert np.abs(difference).max() <= 4
        assert np.abs(difference.mean(axis=(0, 1))).max() < 0.4


def test_the_scale_is_the_smallest_that_covers():
    whole = Crop(0, 0, 1000, 2000)
    assert [jpeg_scale(whole, (s, s)) for s in (1000, 999, 500, 300, 250, 100)] == [
        8,
        8,
        5,
        3,
        3,
        1,
    ]
    assert jpeg_scale(whole, (113, 10)) == 1
    assert jpeg_scale(whole, (114, 10)) == 2
    assert jpeg_scale(whole, (10, 228)) == 2
    assert jpeg_scale(Crop(0, 0, 10, 10), (100, 100)) == 8
    for n, least in SCALES:
        assert jpeg_scale(whole, (int(1000 * n / 8 / least), 1)) == n


def test_quality_on_photographs(photographs):
    gains, count = [], 0
    for data in photographs.values():
        full = Image.open(io.BytesIO(data))
        full.load()
        height, width = full.size[::-1]
        ratios = (1.3, 2.0, 2.3, 3.0, 4.1, 5.0) if height < 600 else (1.7, 2.8, 4.0)
        for i, ratio in enumerate(ratios):
            side = int(min(height, width) / ratio)
            size = (side, side) if i % 2 else (int(height / ratio), int(width / ratio))
            crop = cover_crop((height, width), size, anchor=(0.3, 0.7))
            box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
            best, usual = (
                np.asarray(full.resize(size[::-1], method, box))
                for method in (Image.Resampling.LANCZOS, Image.Resampling.BILINEAR)
            )
            got = pixels(decode(data, POLICY, crop=crop, size=size))
            gains.append(psnr(got, best) - psnr(usual, best))
            count += jpeg_scale(crop, size) < 8
    assert count > len(gains) / 2  # scaled decodes are what is looked at
    assert min(gains) >= -2
    assert statistics.median(gains) >= 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (7, 9), (8, 8)])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_extreme_shapes(shape, format):
    image = Image.new("RGB", shape[::-1], (200, 100, 50))
    data = file_of(image, format)
    assert probe(data, POLICY) == shape
    assert worst(pixels(decode(data, POLICY)), np.asarray(image)) <= 5
    for size in ((1, 1), (64, 32), (3, 700)):
        crop = cover_crop(shape, size, anchor=(0.5, 0.5))
        got = pixels(decode(data, POLICY, crop=crop, size=size))
        assert worst(got, np.broadcast_to(np.array([200, 100, 50]), (*size, 3))) <= 5


def test_tiny_jpegs_are_decoded_whole():
    for shape in ((1, 1), (3, 3), (3, 5), (7, 7), (7, 20)):
        noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        data = file_of(Image.fromarray(noise), "JPEG", quality=100, subsampling=0)
        full = simplejpeg.decode_jpeg(data)
        assert worst(pixels(decode(data, POLICY)), full) == 0
        if max(shape) < 8:
            crop = Crop(0, 0, *shape)
            got = pixels(decode(data, POLICY, crop=crop, size=(1, 1)))
            assert worst(got, by_pillow(Image.fromarray(full), crop, (1, 1))) == 0


# Orientation and mirror images


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_orientations_agree_with_pillow(picture, format, orientation):
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "AVIF": {"speed": 10}}
    data = file_of(picture, format, **options.get(format, {}), **with_orientation(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    height, width = upright.size[::-1]
    assert probe(data, POLICY) == (height, width)
    assert worst(pixels(decode(data, POLICY)), np.asarray(upright)) == 0
    crop, size = Crop(0.1 * height, 0.2 * width, 0.5 * height, 0.4 * width), (41, 53)
    expected = by_pillow(upright, crop, size)
    # Turned after resizing here, before it there: rounding; JPEGs are scaled by their DCT too.
    close = 3 if format == "JPEG" else 1
    got = decode(data, POLICY, crop=crop, size=size)
    assert worst(pixels(got), expected) <= close
    flipped = decode(data, POLICY, crop=crop, size=size, flip=True)
    assert torch.equal(flipped, got.flip(2))


def test_a_flipped_whole_image(picture):
    data = file_of(picture, "PNG")
    assert torch.equal(decode(data, POLICY, flip=True), decode(data, POLICY).flip(2))


# Where it is written


def test_writes_into_a_slice_that_is_not_contiguous(picture):
    batch = torch.full((3, 40, 4, 50), 7, dtype=torch.uint8)
    out = batch[:, :, 2].transpose(1, 2)[:, ::2]
    data = file_of(picture, "JPEG")
    crop = cover_crop((173, 259), (25, 40), anchor=(0.5, 0.5))
    got = decode(data, POLICY, crop=crop, size=(25, 40), out=out)
    assert got is out
    assert not out.is_contiguous()
    assert torch.equal(out, decode(data, POLICY, crop=crop, size=(25, 40)))
    untouched = batch.clone()
    untouched[:, :, 2].transpose(1, 2)[:, ::2] = 7
    assert bool((untouched == 7).all())


def test_arguments_that_do_not_fit(picture):
    data = file_of(picture, "PNG")
    crop = Crop(0, 0, 10, 10)
    with pytest.raises(ValueError, match="go together"):
        decode(data, POLICY, crop=crop)
    with pytest.raises(ValueError, match="go together"):
        decode(data, POLICY, size=(8, 8))
    for outside in (Crop(-1, 0, 9, 9), Crop(0, 255, 9, 9), Crop(0, 0, 174, 9), Crop(0, 0, 0, 9)):
        with pytest.raises(ValueError, match="does not lie inside the image of 173 x 259"):
            decode(data, POLICY, crop=outside, size=(8, 8))
    with pytest.raises(ValueError, match="at least"):
        decode(data, POLICY, crop=crop, size=(0, 8))
    for out in (torch.empty(3, 8, 8), torch.empty((3, 8, 9), dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"must be uint8 \[3, 8, 8\]"):
            decode(data, POLICY, crop=crop, size=(8, 8), out=out)
    with pytest.raises(ValueError, match="mask"):
        decode(data, POLICY, mask_out=torch.empty((1, 173, 259), dtype=torch.uint8))
    for wrong in ({"matte": (0, 0, 256)}, {"alpha": "drop"}, {"max_pixels": 0}):
        with pytest.raises(ValueError, match="must be"):
            DecodePolicy(**wrong)


# Colours


def rgba(picture: Image.Image) -> Image.Image:
    image = picture.copy()
    image.putalpha(Image.linear_gradient("L").resize(picture.size))
    return image


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("crop", [Crop(0, 0, 173, 259), Crop(100.5, 20, 40, 41.5)])
def test_alpha_stands_on_the_matte_before_it_is_resized(picture, format, crop):
    image = rgba(picture)
    data = file_of(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    for matte in ((255, 255, 255), (10, 250, 0)):
        canvas = Image.new("RGB", image.size, matte)
        canvas.paste(image, mask=image.getchannel("A"))
        got = decode(data, DecodePolicy(matte=matte), crop=crop, size=(30, 31))
        assert worst(pixels(got), by_pillow(canvas, crop, (30, 31))) == 0


def test_the_mask_follows_crop_flip_and_orientation(picture):
    image = rgba(picture)
    policy = DecodePolicy(alpha="mask")
    for orientation in range(1, 9):
        data = file_of(image, "PNG", **with_orientation(orientation))
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        crop = Crop(20, 30, 90, 60)
        mask = torch.empty((1, 50, 40), dtype=torch.uint8)
        got = decode(data, policy, crop=crop, size=(50, 40), flip=True, mask_out=mask)
        expected = by_pillow(upright.getchannel("A"), crop, (50, 40))[:, ::-1]
        assert worst(mask[0].numpy(), expected) <= 1
        plain = decode(data, POLICY, crop=crop, size=(50, 40), flip=True)
        assert torch.equal(got, plain)


def test_without_alpha_the_mask_is_opaque(picture):
    mask = torch.zeros((1, 173, 259), dtype=torch.uint8)
    for format in ("PNG", "JPEG"):
        decode(file_of(picture, format), DecodePolicy(alpha="mask"), mask_out=mask.zero_())
        assert bool((mask == 255).all())


def test_palettes_become_colours_before_they_are_resized(picture):
    image = picture.quantize(64)
    crop, size = Crop(10, 20, 100, 100), (37, 37)
    expected = by_pillow(image.convert("RGB"), crop, size)
    for format in ("PNG", "GIF"):
        got = decode(file_of(image, format), POLICY, crop=crop, size=size)
        assert worst(pixels(got), expected) == 0


def test_grey_and_sixteen_bits(picture):
    grey = picture.convert("L")
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    expected = np.asarray(grey.convert("RGB"))
    for data in (
        file_of(grey, "PNG"),
        file_of(sixteen, "PNG"),
        file_of(sixteen, "TIFF"),
        file_of(grey.convert("LA"), "PNG"),
    ):
        assert worst(pixels(decode(data, POLICY)), expected) == 0
    assert worst(pixels(decode(file_of(grey, "JPEG", quality=95), POLICY)), expected) <= 6
    ink = Image.fromarray(np.asarray(grey) > 128)
    assert worst(pixels(decode(file_of(ink, "PNG"), POLICY)), np.asarray(ink.convert("RGB"))) == 0


def test_sixteen_bit_colours_and_their_transparent_one():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = np.array([[0, 0, 0], [65535, 32896, 257], [30000, 200, 200]], ">u2")
    header = struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"tRNS", struct.pack(">HHH", 30000, 200, 200))
    data += chunk(b"IDAT", zlib.compress(b"\0" + row.tobytes())) + chunk(b"IEND", b"")
    got = pixels(decode(data, DecodePolicy(matte=(9, 8, 7))))
    assert got.tolist() == [[[0, 0, 0], [255, 128, 1], [9, 8, 7]]]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_profiles_are_converted(picture, swapped, format):
    data = file_of(picture, format, icc_profile=swapped)
    crop, size = Crop(0, 0, 173, 259), (50, 70)
    plain = pixels(decode(data, DecodePolicy(icc=False), crop=crop, size=size))
    got = pixels(decode(data, POLICY, crop=crop, size=size))
    assert worst(got, plain[..., [1, 0, 2]]) <= 3
    assert worst(got, plain) > 100
    whole = pixels(decode(data, POLICY))
    assert worst(whole, pixels(decode(data, DecodePolicy(icc=False)))[..., [1, 0, 2]]) <= 3


def test_cmyk_jpegs(picture):
    cmyk = picture.convert("CMYK")
    data = file_of(cmyk, "JPEG", quality=95)  # Pillow writes Adobe's inverted CMYK
    assert b"Adobe" in data[:200]
    crop, size = Crop(3, 5, 160, 240), (31, 45)
    expected = by_pillow(picture, crop, size)
    for chosen in (data, ycck(data)):
        assert worst(pixels(decode(chosen, POLICY, crop=crop, size=size)), expected) <= 12
        assert worst(pixels(decode(chosen, POLICY)), np.asarray(picture)) <= 25
    half = pixels(decode(data, POLICY, crop=Crop(0, 0, 173, 259), size=(40, 60)))
    assert worst(half, by_pillow(picture, Crop(0, 0, 173, 259), (40, 60))) <= 12


def ycck(cmyk: bytes) -> bytes:
    """Returns an Adobe YCCK JPEG of the same picture."""
    c, m, y, k = Image.open(io.BytesIO(cmyk)).split()
    # Adobe stores inverted inks, and YCCK is made of "R = 255 - C": the two cancel.
    luma, cb, cr = Image.merge("RGB", (c, m, y)).convert("YCbCr").split()
    # Writing CMYK, Pillow inverts each plane: three are inverted first, then it is called YCCK.
    planes = [ImageOps.invert(band) for band in (luma, cb, cr)] + [k]
    data = bytearray(file_of(Image.merge("CMYK", planes), "JPEG", quality=95, subsampling=0))
    adobe = data.index(b"Adobe")
    data[adobe + 11] = 2
    return bytes(data)


def test_rgb_jpegs_samplings_and_scans(picture):
    for options in ({"keep_rgb": True}, {"subsampling": 1}, {"progressive": True}):
        data = file_of(picture, "JPEG", quality=95, **options)
        assert worst(pixels(decode(data, POLICY)), np.asarray(picture)) <= 12


@pytest.mark.parametrize("error", [ValueError("subsampling"), KeyError(-1)])
def test_jpegs_that_simplejpeg_has_no_name_for(picture, monkeypatch, error):
    data = file_of(picture, "JPEG", quality=95, subsampling=0)
    crop, size = Crop(3, 5, 160, 240), (31, 45)
    expected = decode(data, POLICY, crop=crop, size=size)

    def refuse(data: bytes, strict: bool) -> None:
        raise error

    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", refuse)
    assert worst(pixels(decode(data, POLICY, crop=crop, size=size)), pixels(expected)) <= 3
    with pytest.raises(DataError):
        decode(data[:-300], POLICY)


def test_a_progressive_files_parameters_in_a_sequential_one(picture):
    data = bytearray(file_of(picture, "JPEG", quality=95))
    expected = decode(bytes(data), POLICY)
    scan = data.index(b"\xff\xda")
    data[scan + 12 : scan + 14] = b"\0\0"  # Se = 0 instead of 63
    with pytest.raises(ValueError, match="Invalid SOS parameters"):
        simplejpeg.decode_jpeg(bytes(data))
    assert torch.equal(decode(bytes(data), POLICY), expected)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_animations(format):
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("#f00", "#0f0", "#00f")]
    data = file_of(frames[0], format, save_all=True, append_images=frames[1:])
    assert worst(pixels(decode(data, POLICY)), np.asarray(frames[0])) <= 3


# Bad data


@pytest.mark.parametrize(
    "format", ["JPEG", "progressive", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
)
def test_truncated_files_are_errors(photographs, format):
    image = Image.open(io.BytesIO(photographs["chelsea.png"])).resize((150, 100))
    options = {"AVIF": {"speed": 10}, "progressive": {"progressive": True}}.get(format, {})
    data = file_of(image, "JPEG" if format == "progressive" else format, **options)
    decode(data, POLICY)
    crop, size = Crop(0, 0, 20, 30), (10, 15)  # at the top: what is missing would not be seen
    for part in (0.02, 0.3, 0.5, 0.8, 0.95):
        cut = data[: int(len(data) * part)]
        with pytest.raises(DataError):
            decode(cut, POLICY)
        with pytest.raises(DataError):
            decode(cut, POLICY, crop=crop, size=size)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lost_its_middle_is_an_error(picture, mode):
    data = file_of(picture.convert(mode), "JPEG", quality=95)
    scan = data.index(b"\xff\xda") + 200
    for damaged in (data[:scan] + data[-2:], data[:scan] + bytes(500) + data[scan + 3000 :]):
        with pytest.raises(DataError, match="cannot be decoded: "):
            decode(damaged, POLICY)


def test_harmless_padding_of_jpegs(picture):
    data = file_of(picture, "JPEG", quality=95)
    for padding in (1, 20):
        assert torch.equal(
            decode(data[:-2] + bytes(padding) + data[-2:], POLICY), decode(data, POLICY)
        )
    assert torch.equal(decode(data + bytes(100), POLICY), decode(data, POLICY))
    with pytest.raises(DataError, match="extraneous bytes"):
        decode(data[:-2] + bytes(100) + data[-2:], POLICY)


def test_decompression_bombs(picture):
    data = file_of(picture, "PNG")
    with pytest.raises(
        DataError, match=r"173 x 259 pixels, more than the limit of 1000: raise max_"
    ):
        decode(data, DecodePolicy(max_pixels=1000))
    with pytest.raises(DataError, match="173 x 259"):
        probe(data, DecodePolicy(max_pixels=173 * 259 - 1))
    assert probe(data, DecodePolicy(max_pixels=173 * 259)) == (173, 259)
    bomb = bytearray(data)
    bomb[16:24] = struct.pack(">II", 20_000, 30_000)
    with pytest.raises(DataError, match="30000 x 20000 pixels, more than the limit of 178956970"):
        decode(bytes(bomb), POLICY)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP"])
def test_a_limit_above_pillows(picture, format, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    image = picture.convert("CMYK") if format == "JPEG" else picture
    assert decode(file_of(image, format), POLICY).shape == (3, 173, 259)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image(data):
    with pytest.raises(DataError):
        decode(data, POLICY)


def test_no_warnings_leak(picture):
    odd = file_of(picture, "TIFF", tiffinfo={270: "a", 305: "b"})
    apng = bytearray(file_of(picture, "PNG", save_all=True, append_images=[picture]))
    at = apng.index(b"acTL") + 4
    apng[at : at + 4] = bytes(4)
    kind = bytes(apng[at - 4 : at + 8])
    apng[at + 8 : at + 12] = struct.pack(">I", zlib.crc32(kind))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        decode(odd, POLICY)
        decode(bytes(apng), POLICY)
    assert seen == []


@pytest.fixture(scope="module")
def seeds(picture) -> Callable[[int], bytes]:
    small = picture.resize((40, 30))
    files = [
        file_of(small, "JPEG", **with_orientation(6)),
        file_of(small, "JPEG", progressive=True),
        file_of(small.convert("CMYK"), "JPEG"),
        file_of(rgba(small), "PNG", **with_orientation(8)),
        file_of(small.quantize(16), "PNG", transparency=3),
        file_of(rgba(small), "WEBP"),
        file_of(small.quantize(16), "GIF"),
        file_of(small, "BMP"),
        file_of(small, "TIFF", compression="tiff_lzw"),
    ]
    return lambda which: files[which]  # not the list, which hypothesis would print


@settings(max_examples=300, deadline=None)
@given(
    which=st.integers(0, 8),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.none() | st.integers(0, 3000),
)
def test_damaged_files_decode_or_are_data_errors(seeds, which, damage, cut):
    data = bytearray(seeds(which))
    for at, value in damage:
        data[at % len(data)] = value
    policy = DecodePolicy(max_pixels=100_000)
    try:
        height, width = probe(bytes(data[:cut]), policy)
        crop = cover_crop((height, width), (8, 8), anchor=(0.5, 0.5))
        assert decode(bytes(data[:cut]), policy, crop=crop, size=(8, 8)).shape == (3, 8, 8)
    except DataError:
        pass


# The same again


def test_the_same_bytes_give_the_same_pixels(picture, photographs, swapped):
    files: list[Callable[[], bytes]] = [
        lambda: photographs["china.jpg"],
        lambda: file_of(picture, "JPEG", icc_profile=swapped),
        lambda: file_of(rgba(picture), "PNG"),
        lambda: file_of(picture.convert("CMYK"), "JPEG"),
    ]
    for make in files:
        data = make()
        crop = cover_crop(probe(data, POLICY), (48, 64), anchor=(0.1, 0.9))
        first = decode(data, POLICY, crop=crop, size=(48, 64), flip=True)
        again = decode(bytes(bytearray(data)), POLICY, crop=crop, size=(48, 64), flip=True)
        assert torch.equal(first, again)

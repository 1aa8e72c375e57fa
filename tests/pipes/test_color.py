import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from penstock.pipes.color import jpeg_profile, read_profile, to_rgb
from penstock.pipes.errors import DataError

WHITE = (255, 255, 255)


def icc_file(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Builds an ICC profile, version 2 (ICC.1:2001-04, clause 6)."""
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    d50 = struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), bytes(4), 0x02400000, kind, space, connection
    )
    head += bytes(12) + b"acsp" + bytes(28) + d50
    return head + bytes(128 - len(head)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(v * 65536) for v in values))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


@pytest.fixture(scope="module")
def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def swapped(srgb) -> bytes:
    """A profile whose red is sRGB's green, and its green sRGB's red."""
    return srgb.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


@pytest.fixture(scope="module")
def wide() -> bytes:
    """Adobe RGB (1998)'s primaries, adapted to D50, with its gamma."""
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(563 / 256))
    primaries = {
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
    }
    white = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    return icc_file(b"mntr", b"RGB ", b"XYZ ", white | primaries | curves)


@pytest.fixture(scope="module")
def grey_gamma() -> bytes:
    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"kTRC": gamma(1.0)}
    return icc_file(b"mntr", b"GRAY", b"XYZ ", tags)


@pytest.fixture(scope="module")
def black_inks() -> bytes:
    """A CMYK profile by whose table any ink at full strength is black, none is white."""
    ramp = bytes(range(256))
    lab = b"".join(bytes((255 if n == 0 else 0, 128, 128)) for n in range(16))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1\0\0\0\0\x04\x03\x02\0" + matrix + ramp * 4 + lab + ramp * 3
    return icc_file(b"prtr", b"CMYK", b"Lab ", {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"A2B0": table})


def with_profile(image: Image.Image, profile: bytes) -> Image.Image:
    image.info["icc_profile"] = profile
    return image


def pixel(image: Image.Image, *, matte=WHITE, icc: bool = True) -> tuple[int, ...]:
    rgb, _ = to_rgb(image, matte=matte, icc=icc)
    assert rgb.mode == "RGB"
    return rgb.getpixel((0, 0))


def png(image: Image.Image, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    loaded = Image.open(file)
    loaded.load()
    return loaded


def test_rgb_is_left_alone():
    image = Image.effect_noise((9, 7), 80).convert("RGB")
    rgb, alpha = to_rgb(image, matte=WHITE, icc=True)
    assert alpha is None
    assert rgb.tobytes() == image.tobytes()


@pytest.mark.parametrize("matte", [WHITE, (0, 0, 0), (200, 10, 77)])
def test_straight_alpha_on_the_matte_rounds_to_nearest(matte):
    alpha = np.arange(256, dtype=np.uint8)
    pixels = np.empty((256, 256, 4), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.meshgrid(alpha, alpha)
    pixels[..., 2], pixels[..., 3] = 255 - pixels[..., 0], pixels[..., 1]
    rgb, mask = to_rgb(Image.fromarray(pixels), matte=matte, icc=True)
    share = pixels[..., 3:].astype(np.float64) / 255
    ideal = pixels[..., :3] * share + np.array(matte) * (1 - share)
    assert np.abs(np.asarray(rgb) - ideal).max() <= 0.5 + 1e-9
    assert np.array_equal(np.asarray(mask), pixels[..., 3])


def test_without_a_matte_hidden_colours_stay():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    rgb, mask = to_rgb(image, matte=None, icc=True)
    assert rgb.getpixel((0, 0)) == (10, 20, 30)
    assert mask is not None
    assert mask.getpixel((0, 0)) == 0


def test_every_kind_of_transparency():
    matte = (0, 0, 200)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    cases = {
        "palette": (png(palette), (255, 0, 0), None),
        "palette, one colour": (png(palette, transparency=0), matte, 0),
        "palette, levels": (png(palette, transparency=b"\x80\xff"), (128, 0, 100), 128),
        "LA": (Image.new("LA", (1, 1), (100, 128)), (50, 50, 150), 128),
        "grey, one level": (png(Image.new("L", (1, 1), 9), transparency=9), matte, 0),
        "colours, one": (
            png(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)),
            matte,
            0,
        ),
        "1 bit, one": (png(Image.new("1", (1, 1), 1), transparency=1), matte, 0),
        "premultiplied": (Image.new("RGBA", (1, 1), (255, 0, 0, 51)).convert("RGBa"), None, 51),
        "PA": (Image.new("PA", (1, 1), (7, 0)), matte, 0),
    }
    for name, (image, expected, alpha) in cases.items():
        rgb, mask = to_rgb(image, matte=matte, icc=True)
        assert expected in (None, rgb.getpixel((0, 0))), name
        assert (None if mask is None else mask.getpixel((0, 0))) == alpha, name
    assert to_rgb(cases["palette, one colour"][0], matte=matte, icc=True)[0].getpixel((1, 0)) == (
        (0, 255, 0)
    )


def test_other_modes():
    assert pixel(Image.new("1", (1, 1), 1)) == (255, 255, 255)
    assert pixel(Image.new("L", (1, 1), 77)) == (77, 77, 77)
    assert pixel(Image.new("CMYK", (1, 1), (255, 0, 0, 0))) == (0, 255, 255)
    assert pixel(Image.new("CMYK", (1, 1), (0, 0, 0, 255))) == (0, 0, 0)
    assert pixel(Image.new("YCbCr", (1, 1), (76, 85, 255))) == (254, 0, 0)
    assert min(pixel(Image.new("LAB", (1, 1), (255, 128, 128)))) >= 254
    red = pixel(Image.new("LAB", (1, 1), (138, 209, 198)))  # L 54, a 81, b 70
    assert np.abs(np.subtract(red, (255, 0, 0))).max() <= 5


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_sixteen_bits_are_scaled_not_clipped(dtype):
    values = np.array([[0, 128, 129, 255, 256, 257, 32767, 32768, 65406, 65407, 65535]])
    image = Image.fromarray(values.astype(dtype))
    assert image.mode in ("I;16", "I;16B", "I")
    rgb, _ = to_rgb(image, matte=WHITE, icc=True)
    ideal = values / 257
    got = np.asarray(rgb)
    assert np.abs(got[..., 1] - ideal).max() <= 0.5
    assert np.array_equal(got[..., 0], got[..., 2])


def test_sixteen_bits_with_a_transparent_level():
    image = Image.fromarray(np.array([[300, 301]], np.uint16))
    image.info["transparency"] = 300
    rgb, mask = to_rgb(image, matte=WHITE, icc=True)
    assert mask is not None
    assert [mask.getpixel((x, 0)) for x in (0, 1)] == [0, 255]
    assert rgb.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(
    "pixels",
    [np.ones((1, 1), np.float32), np.array([[-1]], np.int32), np.array([[70000]], np.int32)],
)
def test_pixels_without_a_known_range_are_refused(pixels):
    with pytest.raises(DataError, match="no known range: save the image with 8 or 16 bits"):
        to_rgb(Image.fromarray(pixels), matte=WHITE, icc=True)


def test_srgb_profiles_are_free(srgb):
    image = with_profile(Image.new("RGB", (1, 1), (12, 200, 99)), srgb)
    rgb, _ = to_rgb(image, matte=WHITE, icc=True)
    assert rgb is image
    assert read_profile(srgb, "RGB").kind == "srgb"


def test_swapped_primaries_swap_the_colours(swapped):
    image = with_profile(Image.new("RGB", (1, 1), (200, 40, 90)), swapped)
    assert np.abs(np.subtract(pixel(image), (40, 200, 90))).max() <= 2
    assert pixel(image, icc=False) == (200, 40, 90)
    assert read_profile(swapped, "RGB").kind == "other"


def test_wide_gamut_is_converted(wide):
    # The grey axis is nearly sRGB's; the green lies outside sRGB; half red is more red there.
    def convert(*colour: int) -> tuple[int, ...]:
        return pixel(with_profile(Image.new("RGB", (1, 1), colour), wide))

    assert np.abs(np.subtract(convert(128, 128, 128), 127)).max() <= 2
    assert convert(0, 255, 0) == (0, 255, 0)
    assert np.abs(np.subtract(convert(150, 100, 100), (167, 100, 100))).max() <= 1  # by hand


def test_profile_before_matte(swapped):
    image = with_profile(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), swapped)
    assert pixel(image, matte=(250, 20, 30)) == (250, 20, 30)
    image = with_profile(Image.new("RGBA", (1, 1), (255, 0, 0, 255)), swapped)
    assert np.abs(np.subtract(pixel(image), (0, 255, 0))).max() <= 2


def test_grey_profiles(grey_gamma):
    image = with_profile(Image.new("L", (1, 1), 55), grey_gamma)
    assert np.abs(np.subtract(pixel(image), 128)).max() <= 1  # linear 55 / 255 is sRGB 128
    assert pixel(with_profile(Image.new("LA", (1, 1), (55, 255)), grey_gamma)) == pixel(image)


def test_cmyk_goes_through_its_profile(black_inks):
    image = with_profile(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), black_inks)
    assert max(pixel(image)) <= 3
    assert pixel(image, icc=False) == (0, 255, 255)
    assert pixel(with_profile(Image.new("CMYK", (1, 1)), black_inks)) == (255, 255, 255)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "of other pixels"])
def test_broken_profiles_are_passed_over(swapped, grey_gamma, damage):
    profile = {
        "empty": b"",
        "cut": swapped[:100],
        "noise": bytes(range(256)) * 3,
        "of other pixels": grey_gamma,
    }[damage]
    assert pixel(with_profile(Image.new("RGB", (1, 1), (1, 2, 3)), profile)) == (1, 2, 3)
    assert read_profile(profile, "RGB").kind == "broken"


def test_the_profile_of_a_jpeg(swapped):
    long = swapped + bytes(150_000)
    for profile in (swapped, long):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", icc_profile=profile)
        assert jpeg_profile(file.getvalue()) == profile
    data = file.getvalue()
    at = data.index(b"ICC_PROFILE\0\x02")
    assert jpeg_profile(data[:at] + b"X" + data[at + 1 :]) is None  # a part is missing
    assert jpeg_profile(data[:at]) is None
    for n in range(700):
        jpeg_profile(data[:n])
    assert jpeg_profile(data[:2] + b"\xff\xff" + data[2:]) == long  # fill bytes
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    assert jpeg_profile(file.getvalue()) is None

"""What a file's bytes say."""

import io
from hashlib import blake2b

import numpy as np
import pytest
from PIL import Image, ImageCms

from penstock.pipes import DataError
from penstock.pipes.image_facts import image_facts

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(mode: str, form: str, **save: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(np.zeros((5, 9, 4), np.uint8), "RGBA" if mode == "P" else None)
    image.convert(mode).save(file, form, **save)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "alpha", "profile"),
    [
        (saved("RGB", "JPEG"), False, False),
        (saved("CMYK", "JPEG", icc_profile=PROFILE), False, True),
        (saved("RGB", "PNG"), False, False),
        (saved("L", "PNG", icc_profile=PROFILE), False, True),
        (saved("RGB", "PNG", transparency=(0, 0, 0)), True, False),
        (saved("RGBA", "PNG"), True, False),
        (saved("P", "PNG"), True, False),
        (saved("RGB", "WEBP"), True, True),  # not looked at
    ],
)
@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
def test_facts(data: bytes, alpha: bool, profile: bool) -> None:
    facts = image_facts(data)
    assert facts == (blake2b(data, digest_size=16).digest(), 5, 9, alpha, profile)
    assert facts.size == (5, 9)


def test_size_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert image_facts(saved("RGB", "JPEG", exif=exif)).size == (9, 5)


def test_no_image() -> None:
    with pytest.raises(DataError):
        image_facts(b"text")

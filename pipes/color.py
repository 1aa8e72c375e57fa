"""Any image that Pillow reads as 8-bit sRGB, and its alpha."""

import io
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from .errors import DataError

PLAIN = ("RGB", "L", "CMYK")
"""Modes that may be resized as they are, before `to_rgb`: 8 bits, no alpha, no palette."""

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
_SAME = 2
"""Levels of 255 by which a profile may differ from sRGB on a grid of colours, and still be taken
for it. The many named sRGB differ by rounding, in their curve's dark end or black point."""


class ProfileUse(NamedTuple):
    """What an embedded profile means for pixels of one mode.

    Attributes:
        kind: "srgb": the pixels are sRGB as they stand; "other": they are converted; "broken": the
            profile is damaged, or for other pixels than these, and is passed over.
        transform: Converts to sRGB; there for "other" only.
    """

    kind: Literal["srgb", "other", "broken"]
    transform: ImageCms.ImageCmsTransform | None = None


def to_rgb(
    image: Image.Image, *, matte: tuple[int, int, int] | None, icc: bool
) -> tuple[Image.Image, Image.Image | None]:
    """Return the image as 8-bit sRGB (mode RGB), and its alpha (mode L; None where it has none).

    Palettes, transparent colours, grey, 1-bit, 16-bit (scaled by 255 / 65535, never clipped), CMYK,
    Lab and YCbCr are converted. The order is: profile, then matte, since the matte is sRGB.

    Args:
        image: A loaded image. Its profile is looked for in ``image.info["icc_profile"]``.
        matte: The sRGB colour that stands behind transparent pixels (alpha is straight, not
            premultiplied). None leaves the colours as the file has them, hidden ones too.
        icc: Whether an embedded profile that is not sRGB is converted from. A broken one never is
            (`read_profile` tells).

    Raises:
        DataError: If the mode has no known range (floats, 32-bit integers beyond 16 bits).
    """
    profile = image.info.get("icc_profile") if icc else None
    colours, alpha = _eight_bits(image)
    rgb = _to_srgb(colours, profile)
    if alpha is None or matte is None:
        return rgb, alpha
    canvas = Image.new("RGB", rgb.size, matte)
    canvas.paste(rgb, mask=alpha)  # Pillow rounds (a * colour + (255 - a) * matte) / 255 to nearest
    return canvas, alpha


@lru_cache(maxsize=32)
def read_profile(profile: bytes, mode: str) -> ProfileUse:
    """Return what an ICC profile means for pixels of a mode (RGB, L, CMYK), and its conversion.

    Whether it is sRGB is found by converting a grid of colours, not by its name. The intent is
    relative colorimetric with black point compensation: colours that sRGB has stay what they are
    (perceptual squeezes them as each maker's tables please), and shadows are not cut off.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            source,
            _SRGB,
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return ProfileUse("broken")
    if mode != "CMYK" and isinstance(transform, ImageCms.ImageCmsTransform):
        grid = _colour_grid(mode)
        before = np.asarray(grid.convert("RGB"), np.int16)
        if abs(np.asarray(transform.apply(grid), np.int16) - before).max() <= _SAME:
            return ProfileUse("srgb")
    return ProfileUse("other", transform)


def jpeg_profile(data: bytes) -> bytes | None:
    """Return the ICC profile in a JPEG's APP2 segments, put together; None without a whole one."""
    parts: dict[int, bytes] = {}
    count, at = 0, 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # fill
            at += 1
            continue
        after = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if data[at + 1] == 0xE2 and data.startswith(b"ICC_PROFILE\0", at + 4):
            if not at + 18 < after <= len(data):
                return None
            parts[data[at + 16]] = data[at + 18 : after]
            count = data[at + 17]
        at = after
    if not parts or sorted(parts) != list(range(1, count + 1)):
        return None
    return b"".join(parts[i] for i in sorted(parts))


def _colour_grid(mode: str) -> Image.Image:
    """Return an image of 17 levels of each channel in every combination; of grey, all 256."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 17).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    return Image.fromarray(grid.reshape(17, -1, 3))


def _to_srgb(colours: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        transform = read_profile(bytes(profile), colours.mode).transform
        if transform is not None:
            return transform.apply(colours)
    return colours if colours.mode == "RGB" else colours.convert("RGB")


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours in a mode of `PLAIN`, still in their own colour space, and alpha."""
    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):
        return _from_sixteen_bits(image)
    if mode in ("La", "RGBa"):  # premultiplied: TIFF has these
        image = image.convert("LA" if mode == "La" else "RGBA")
    elif image.mode not in ("LA", "RGBA") and image.has_transparency_data:
        image = image.convert("LA" if mode == "L" else "RGBA")
    if image.mode == "LA":
        grey, alpha = image.split()
        return grey, alpha
    if image.mode == "RGBA":
        return image.convert("RGB"), image.getchannel("A")
    if mode in PLAIN:
        return image, None
    if mode == "1":
        return image.convert("L"), None
    if mode == "LAB":
        return _lab_to_srgb().apply(image), None
    if mode in ("P", "PA", "RGBX", "YCbCr", "HSV"):
        return image.convert("RGB"), None
    raise DataError(
        f"pixels of mode {mode!r} have no known range: save the image with 8 or 16 bits"
    )


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.ImageCmsTransform(
        _LAB, _SRGB, "LAB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
    )


def _from_sixteen_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return 16-bit grey as 8-bit grey, and alpha where one grey level stands for transparent."""
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise DataError(
            f"32-bit integers from {values.min()} to {values.max()} have no known range: "
            "save the image with 8 or 16 bits"
        )
    grey = (values.astype(np.uint32) * 255 + 32767) // 65535
    key = image.info.get("transparency")
    alpha = None
    if isinstance(key, int):
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
    return Image.fromarray(grey.astype(np.uint8)), alpha

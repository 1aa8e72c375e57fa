"""From a file's bytes to its stored pixels, whole, and the keeping of them."""

import re
from collections import OrderedDict
from hashlib import blake2b
from typing import Final

import simplejpeg
from PIL import Image, ImageFile

from .color import jpeg_profile
from .errors import DataError
from .image_size import JPEG, PNG, Header
from .open_image import open_image, quiet, reading

_SPACES: Final = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}
"""From a JPEG's own colour space to the one that simplejpeg decodes it to."""

_HARMLESS_PADDING: Final = 32
"""Bytes between a JPEG's data and its end marker that some cameras leave; more means lost data."""

_Pixels = tuple[Image.Image, float]


class DecodedImages:
    """Keeps the images last decoded, up to a number of bytes, each as its decoder left it.

    An image is known by a hash of its file's bytes, and a JPEG by the scale that it was decoded at
    too: what is done with the pixels afterwards is the same as without, so that no pixel of the
    output differs. Another process has its own; what is kept is not pickled.

    Args:
        limit: Most bytes of pixels to keep.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._images: OrderedDict[tuple[bytes, int, bool], _Pixels] = OrderedDict()

    def __reduce__(self) -> tuple[type["DecodedImages"], tuple[int]]:
        return DecodedImages, (self.limit,)

    def __len__(self) -> int:
        return len(self._images)

    def get(self, key: tuple[bytes, int, bool]) -> _Pixels | None:
        """Return the pixels kept under ``key``, now the last to go, or None."""
        found = self._images.get(key)
        if found is not None:
            self._images.move_to_end(key)
        return found

    def put(self, key: tuple[bytes, int, bool], pixels: _Pixels) -> None:
        """Keep pixels, and let go of the oldest until all fit; what never fits is not kept."""
        size = _bytes_of(pixels[0])
        if size > self.limit or key in self._images:
            return
        self._images[key] = pixels
        self.held += size
        while self.held > self.limit:
            self.held -= _bytes_of(self._images.popitem(last=False)[1][0])


def _bytes_of(image: Image.Image) -> int:
    """Return the bytes of an image's pixels as Pillow holds them: 4 a pixel but for small modes."""
    return image.width * image.height * {"1": 1, "L": 1, "P": 1, "I;16": 2}.get(image.mode, 4)


def open_pixels(
    data: bytes, header: Header, n: int, icc: bool, kept: DecodedImages | None = None
) -> _Pixels:
    """Return a loaded image, and how many of its pixels are one stored pixel of the original.

    The image is not to be changed: it may be kept.

    Args:
        data: The file's bytes.
        header: Its header.
        n: A JPEG is decoded at n/8 of its size; other formats at theirs.
        icc: Whether a JPEG's profile is looked for.
        kept: Where decoded images are kept.

    Raises:
        DataError: The data is corrupt, or no image.
    """
    if kept is None:
        return _open(data, header, n, icc)
    key = blake2b(data, digest_size=16).digest(), n if data.startswith(JPEG) else 0, icc
    pixels = kept.get(key)
    if pixels is None:
        image, scale = _open(data, header, n, icc)
        if isinstance(image, ImageFile.ImageFile):
            image = image.copy()  # without the file, which an animation holds on to
        pixels = image, scale
        kept.put(key, pixels)
    return pixels


def _open(data: bytes, header: Header, n: int, icc: bool) -> _Pixels:
    if data.startswith(JPEG) and (space := _jpeg_space(data)) is not None:
        return _open_jpeg(data, header, n, space, icc)
    with reading(), quiet():
        image = open_image(data)
        image.load()
        if data.startswith(PNG) and data[24] == 16 and image.mode == "RGB":
            _halve_key(image)
    _check_size((header.height, header.width), image.size[::-1])
    return image, 1.0


def _halve_key(image: Image.Image) -> None:
    """Cut the transparent colour of 16-bit RGB to 8 bits, as Pillow has cut the pixels."""
    key = image.info.get("transparency")
    if isinstance(key, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in key)


def _jpeg_space(data: bytes) -> str | None:
    """Return what simplejpeg is to decode to; None where only Pillow can: odd samplings."""
    try:
        space = simplejpeg.decode_jpeg_header(data, strict=False)[2]
    except (ValueError, KeyError):  # KeyError: it has no name for the sampling
        return None
    return _SPACES.get(space)


def _open_jpeg(
    data: bytes, header: Header, n: int, space: str, icc: bool
) -> tuple[Image.Image, float]:
    if max(header.height, header.width) < 8:
        n = 8  # several scales have the same size there, and simplejpeg chooses by size
    least = _scaled_size(header, n)
    wanted = {"colorspace": space, "min_height": least[0], "min_width": least[1], "min_factor": 1}
    with reading():
        try:
            pixels = simplejpeg.decode_jpeg(data, **wanted)
        except ValueError as err:
            if not _is_harmless(str(err)):
                raise
            pixels = simplejpeg.decode_jpeg(data, strict=False, **wanted)
    _check_size(least, pixels.shape[:2])
    if space == "CMYK":  # inverted: all take it that CMYK JPEGs are Adobe's, and they are
        image = Image.frombytes("CMYK", least[::-1], pixels.tobytes(), "raw", "CMYK;I")
    else:
        image = Image.fromarray(pixels[:, :, 0] if space == "GRAY" else pixels)
    if icc and (profile := jpeg_profile(data)):
        image.info["icc_profile"] = profile
    return image, n / 8


def _check_size(said: tuple[int, ...], found: tuple[int, ...]) -> None:
    if said != found:
        raise DataError(f"the header says (height, width) {said}, the pixels are {found}")


def _scaled_size(header: Header, n: int) -> tuple[int, int]:
    return -(-header.height * n // 8), -(-header.width * n // 8)  # libjpeg rounds up


def _is_harmless(message: str) -> bool:
    """Return whether simplejpeg's complaint leaves every pixel as it was meant.

    A few bytes of padding before the end marker, and a progressive file's parameters in a
    sequential one, are what some cameras write. All else is lost data, which libjpeg paints grey.
    """
    padding = re.search(r"(\d+) extraneous bytes before marker 0xd9", message)
    if padding is not None:
        return int(padding[1]) <= _HARMLESS_PADDING
    return "Invalid SOS parameters for sequential JPEG" in message

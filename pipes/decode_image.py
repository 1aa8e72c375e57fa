"""The decode function: from an image file's bytes to pixels of a given region and size.

One function of bytes and arguments: no state, no draws, no I/O.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from .color import PLAIN, to_rgb
from .decode_pixels import DecodedImages, open_pixels
from .errors import DataError
from .geometry import Crop, check_inside, stored_crop, stored_flips
from .image_size import Header, image_header
from .open_image import quiet, reading

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""(left, top, right, bottom): Pillow's order, for Pillow's functions only."""

DECODER_VERSION: Final = 1
"""Of the code that makes pixels. To be raised whenever the same file and arguments would give other
pixels: what caches keep of them is then computed anew."""

INTERPOLATION: Final = "BICUBIC"
"""The filter that resizes, by Pillow's name; it antialiases."""

SCALES: Final = ((1, 1.1), (2, 1.1), (3, 1.05), (4, 1.2), (5, 1.05))
"""(n, how many times the output's size it must have): scales of n/8 that pay, and where they are
good enough, measured. 6/8 and 7/8 take longer than the full decode, which SIMD does."""


@dataclass(frozen=True)
class DecodePolicy:
    """What the pixels of a file mean: everything about decoding that is a matter of choice.

    Attributes:
        matte: The sRGB colour behind transparent pixels, 0 to 255.
        alpha: "matte": alpha is gone once the image stands on its matte. "mask": it is kept beside
            the image as well, which stands on the matte all the same: what a file hides under full
            transparency is anything, often black.
        icc: Whether embedded ICC profiles are converted to sRGB; free where there is none.
        max_pixels: The largest image that is decoded, in pixels (height x width). The default is
            where Pillow itself speaks of a decompression bomb and raises.
    """

    matte: tuple[int, int, int] = (255, 255, 255)
    alpha: Literal["matte", "mask"] = "matte"
    icc: bool = True
    max_pixels: int = 178_956_970

    def __post_init__(self) -> None:
        if len(self.matte) != 3 or not all(0 <= level <= 255 for level in self.matte):
            raise ValueError(f"matte must be three levels from 0 to 255, got {self.matte!r}")
        if self.alpha not in ("matte", "mask"):
            raise ValueError(f"alpha must be 'matte' or 'mask', got {self.alpha!r}")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels must be at least 1, got {self.max_pixels}")


def probe(data: bytes, policy: DecodePolicy) -> tuple[int, int]:
    """Return the upright (height, width) of an image in pixels, from its header.

    Raises:
        DataError: If it is no image, or has more than ``policy.max_pixels`` pixels.
    """
    return _header(data, policy).upright


def decode(
    data: bytes,
    policy: DecodePolicy,
    *,
    crop: Crop | None = None,
    out: torch.Tensor | None = None,
    size: tuple[int, int] | None = None,
    flip: bool = False,
    mask_out: torch.Tensor | None = None,
    kept: DecodedImages | None = None,
) -> torch.Tensor:
    """Return pixels as uint8 [3, H, W]: sRGB, upright; the whole image, or ``crop`` at ``size``.

    The region is resized with an antialiased bicubic filter. JPEGs are decoded at the smallest
    scale that covers the region's size. Of an animation the first frame is taken.

    Args:
        data: The file's bytes.
        policy: What the pixels mean.
        crop: The region of the upright original; goes with ``size``.
        out: Where to write, uint8 [3, H, W], on the CPU; need not be contiguous. It is returned.
        size: (height, width) of the output.
        flip: Whether to mirror the output from left to right.
        mask_out: With ``policy.alpha == "mask"``: where to write alpha, uint8 [1, H, W], under the
            same crop and flip; 255 is opaque, and all that an image without alpha has.

    Raises:
        DataError: If the data is corrupt, truncated, no image, or too large.
        ValueError: If the arguments do not fit each other or the image.
    """
    header = _header(data, policy)
    if (crop is None) != (size is None):
        raise ValueError("crop and size go together: give both, or neither for the whole image")
    if crop is None or size is None:
        crop, size = Crop(0.0, 0.0, *header.upright), header.upright
    else:
        check_inside(crop, header.upright)
        if min(size) < 1:
            raise ValueError(f"size must be at least (1, 1), got {size}")
    out = torch.empty((3, *size), dtype=torch.uint8) if out is None else _checked(out, (3, *size))
    if mask_out is not None:
        if policy.alpha != "mask":
            raise ValueError('mask_out is for DecodePolicy(alpha="mask")')
        _checked(mask_out, (1, *size))
    region = stored_crop(crop, header.upright, header.orientation)
    rgb, alpha = _region(data, header, region, _turned(size, header.orientation), policy, kept)
    upright = _upright(np.asarray(rgb), header.orientation, flip)
    np.copyto(out.numpy(), upright.transpose(2, 0, 1))
    if mask_out is not None and alpha is None:
        mask_out.fill_(255)
    elif mask_out is not None:
        np.copyto(mask_out.numpy()[0], _upright(np.asarray(alpha), header.orientation, flip))
    return out


def jpeg_scale(region: Crop, size: tuple[int, int]) -> int:
    """Return the n of the decode at n/8 of a JPEG's size, 1 to 8, for ``region`` to be resized.

    The smallest in `SCALES` that covers ``size`` with enough to spare. So bicubic from there is, on
    photographs, at most 2 dB further from a Lanczos resize of the full decode than antialiased
    bilinear from the full decode is, and in the median 5 dB closer.
    """
    for n, least in SCALES:
        wanted = 8 * least * max(size[0] / region.height, size[1] / region.width)
        if wanted <= n:
            return n
    return 8


def _header(data: bytes, policy: DecodePolicy) -> Header:
    header = image_header(data)
    if header.height * header.width > policy.max_pixels:
        height, width = header.upright
        raise DataError(
            f"the image has {height} x {width} pixels, more than the limit of {policy.max_pixels}: "
            "raise max_pixels of the decode policy if that is no decompression bomb"
        )
    return header


def _region(
    data: bytes,
    header: Header,
    region: Crop,
    size: tuple[int, int],
    policy: DecodePolicy,
    kept: DecodedImages | None,
) -> tuple[Image.Image, Image.Image | None]:
    """Return ``region`` of the stored pixels at ``size`` as RGB, and its alpha if it has any."""
    n = jpeg_scale(region, size)
    image, scale = open_pixels(data, header, n, policy.icc, kept)
    box = _box(region, scale, image.size)
    if image.mode in PLAIN and "transparency" not in image.info:
        return to_rgb(_resized(image, box, size), matte=None, icc=policy.icc)
    # Palettes must become colours before they are resized, and colours must stand on their matte:
    # resized, straight alpha would mix in the colours that it hides.
    image, box = _cut(image, box, size)
    with reading():
        rgb, alpha = to_rgb(image, matte=policy.matte, icc=policy.icc)
    if alpha is not None:
        alpha = _resized(alpha, box, size) if policy.alpha == "mask" else None
    return _resized(rgb, box, size), alpha


def _box(region: Crop, scale: float, size: tuple[int, int]) -> Box:
    """Return ``region`` in pixels of an image of ``scale``, exactly: never from rounded sizes.

    Where a side is no multiple of 8, the last pixel of a scaled JPEG stands for a part of one;
    resizing it as a whole one would shift the image (up to 10 dB).
    """
    width, height = size
    return (
        max(0.0, region.left * scale),
        max(0.0, region.top * scale),
        min(float(width), (region.left + region.width) * scale),
        min(float(height), (region.top + region.height) * scale),
    )


def _resized(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    return image.resize(size[::-1], Image.Resampling[INTERPOLATION], box)


def _cut(image: Image.Image, box: Box, size: tuple[int, int]) -> tuple[Image.Image, Box]:
    """Return the part of ``image`` that resizing ``box`` to ``size`` reads, and the box in it."""
    margins = [
        math.ceil(2 * max(1.0, (box[i + 2] - box[i]) / size[1 - i])) + 1 for i in (0, 1)
    ]  # bicubic reaches two pixels of the coarser grid
    left, top = (max(0, math.floor(box[i]) - margins[i]) for i in (0, 1))
    right, bottom = (min(image.size[i], math.ceil(box[i + 2]) + margins[i]) for i in (0, 1))
    if 2 * (right - left) * (bottom - top) > image.size[0] * image.size[1]:
        return image, box  # little would be saved
    with quiet():
        cut = image.crop((left, top, right, bottom))
    return cut, (box[0] - left, box[1] - top, box[2] - left, box[3] - top)


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size[::-1] if orientation >= 5 else size


def _upright(pixels: Pixels, orientation: int, flip: bool) -> Pixels:
    """Return a view of stored pixels [h, w, ...] that is upright, and mirrored where ``flip``."""
    upside_down, mirrored = stored_flips(orientation)
    view = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    view = view.swapaxes(0, 1) if orientation >= 5 else view
    return view[:, ::-1] if flip else view


def _checked(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if tuple(tensor.shape) != shape or tensor.dtype != torch.uint8 or tensor.device.type != "cpu":
        raise ValueError(
            f"the output must be uint8 {list(shape)} on the CPU, "
            f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        )
    return tensor

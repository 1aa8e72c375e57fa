"""Pixels as models take them."""

from collections.abc import Mapping
from typing import Any

import torch


def normalize_image(image: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return uint8 pixels in [-1, 1]: ``x / 127.5 - 1``, in float32 and then cast.

    Bit for bit what BFL's flux (``src/flux/cli.py``) and diffusers' VaeImageProcessor
    (``2 * (x / 255) - 1``) make: the two differ by a factor of two, which is exact.

    Args:
        image: uint8, any shape.
        dtype: Of the output.
    """
    return image.to(torch.float32).div_(127.5).sub_(1).to(dtype)


def batch_images(batch: Mapping[str, Any], *, multiple: int, model: str) -> torch.Tensor:
    """Return the batch's ``image``, uint8 [B, 3, H, W].

    Args:
        batch: From ``.decode()``.
        multiple: Both sides must be multiples of it, in pixels.
        model: Whose name the error gives.

    Raises:
        ValueError: If there is no such field, it is none of decoded pixels, the images have several
            sizes, or sides are no multiples; the error says which bucket step to use.
    """
    image = batch.get("image")
    if image is None:
        raise ValueError(
            f"the batch has no field 'image', only {sorted(batch)}: .decode() gives it"
        )
    if isinstance(image, list | tuple):
        sizes = sorted({tuple(one.shape[-2:]) for one in image})
        raise ValueError(
            f"the images of the batch have {len(sizes)} sizes (height, width): {sizes[:4]}"
            f"{' …' if len(sizes) > 4 else ''}: batch them by .bucket_by_aspect_ratio(…), or give "
            "them one by .decode(size=…)"
        )
    if not isinstance(image, torch.Tensor):
        raise ValueError(f"image must be a tensor, got {type(image).__name__}")
    if image.ndim != 4 or image.shape[1] != 3 or image.dtype != torch.uint8:
        raise ValueError(
            "image must be the pixels that .decode() gives, uint8 [B, 3, H, W]; got "
            f"{image.dtype} {list(image.shape)}"
        )
    height, width = image.shape[-2:]
    if height % multiple or width % multiple:
        near = tuple(max(multiple, round(side / multiple) * multiple) for side in (height, width))
        raise ValueError(
            f"images of {height} x {width} pixels (height x width): {model} takes sides that are "
            f"multiples of {multiple}. Use .bucket_by_aspect_ratio(…, step={multiple}), or a step "
            f"that is a multiple of {multiple}, such as 64; or .decode(size={near})"
        )
    return image

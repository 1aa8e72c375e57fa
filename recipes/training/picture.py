"""A picture, whatever holds it."""

from typing import Any, TypeAlias

import numpy as np
from PIL import Image

Picture: TypeAlias = Image.Image | Any
"""A PIL image, an array uint8 [H, W, 3] or [H, W], or a tensor uint8 [3, H, W] or [1, H, W]."""


def to_pil(picture: Picture) -> Image.Image:
    """Return a picture as a PIL image in mode RGB.

    Args:
        picture: A PIL image of any mode; a numpy array, channels last; or a tensor on any device,
            channels first, as torch has them.

    Raises:
        TypeError: If it is not uint8: pixels in [0, 1] or [-1, 1] look alike until one is wrong.
        ValueError: If its shape is another.
    """
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if not str(picture.dtype).endswith("uint8"):
        raise TypeError(f"a picture must be uint8, got {picture.dtype}: scale it to 0 to 255 first")
    if hasattr(picture, "cpu"):
        if picture.ndim != 3 or picture.shape[0] not in (1, 3):
            shape = list(picture.shape)
            raise ValueError(f"a picture in a tensor must be [3, H, W] or [1, H, W], got {shape}")
        array = picture.detach().cpu().numpy().transpose(1, 2, 0)
        array = array[:, :, 0] if array.shape[2] == 1 else array
    else:
        array = np.asarray(picture)
        if array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 3):
            shape = list(array.shape)
            raise ValueError(f"a picture in an array must be [H, W, 3] or [H, W], got {shape}")
    if 0 in array.shape:
        raise ValueError(f"a picture must have pixels, got {list(picture.shape)}")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")

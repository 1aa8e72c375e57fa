"""What the transforms of latent diffusion models have in common: signed pixels, and tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from .draws import draw_key
from .images import batch_images, normalize_image
from .tokenize import Batch, Tokenize


@dataclass(init=False, repr=False, eq=False)
class ModelTransform:
    """Base: ``image`` becomes ``dtype`` [B, 3, H, W] in [-1, 1], and encoders add their tokens.

    With ``dtype=None`` the pixels are checked and stay uint8, a quarter of float32 to hand to the
    trainer, whose GPU makes the rest: ``normalize_image(batch["image"].to(device))``.

    A batch that has ``latents`` and no ``image``, from a cache, gets the tokens alone. All other
    fields stay as they are. A subclass says what the model is called and which sides it
    takes, and may add fields by `extra`.
    """

    model: ClassVar[str]
    multiple: ClassVar[int]

    dtype: torch.dtype | None
    encoders: tuple[Tokenize, ...]

    def __init__(self, encoders: tuple[Tokenize, ...], dtype: torch.dtype | None) -> None:
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(
                f"dtype is that of pixels in [-1, 1], a float, or None to leave them uint8; "
                f"got {dtype}"
            )
        self.encoders = encoders
        self.dtype = dtype

    def __call__(self, batch: Batch, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Return the batch with the model's fields.

        Args:
            batch: From ``.decode()``: images of one size (or latents), captions.
            rng: The batch's draws, which ``.transform()`` gives; only ``drop`` needs them.

        Raises:
            ValueError: If sides are no multiples of what the model takes, sizes differ, a field is
                missing, or a caption is no text.
        """
        key = draw_key(rng) if any(encoder.drop for encoder in self.encoders) else 0
        out = {**batch, **self.extra(batch)}
        if "image" in batch or "latents" not in batch:
            image = batch_images(batch, multiple=self.multiple, model=self.model)
            out["image"] = image if self.dtype is None else normalize_image(image, self.dtype)
        for encoder in self.encoders:
            out.update(encoder.fields(batch, key))
        return out

    def extra(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return further fields."""
        return {}


def drop_chances(drop: Mapping[str, float] | None, *names: str) -> dict[str, float]:
    """Return each encoder's chance of an empty caption.

    Raises:
        ValueError: If there are chances for encoders that there are not.
    """
    if drop is not None and (not isinstance(drop, Mapping) or not set(drop) <= set(names)):
        raise ValueError(
            f"drop must give probabilities by encoder, for some of {list(names)}, got {drop!r}; to "
            "drop captions for all at once there is .drop_caption(p)"
        )
    return {name: (drop or {}).get(name, 0.0) for name in names}

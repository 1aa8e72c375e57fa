"""How well images fit their texts, by a CLIP."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import CLIP
from .generate import evaluating

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the images that OpenAI's CLIP was trained on, and nearly all that came after it."""


@torch.no_grad()
def image_scores(
    clip: nn.Module | Any, text: Tensor, images: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return how well each image fits its text, float [B]; more is better.

    Args:
        clip: A `CLIP`, or a CLIPModel of transformers.
        text: Ids for it, integers [B, n]. A CLIPModel wants its own, begin and end included.
        images: Float [B, C, S, S] in [0, 1]; resized to what ``clip`` takes.
        mask: [B, n]: true for words; None for all.

    Raises:
        TypeError: If ``clip`` is neither.
        ValueError: If ids lie outside the vocabulary of a CLIPModel.
    """
    if isinstance(clip, CLIP):
        with evaluating(clip):
            return clip(text, _resized(images, clip.image_size), mask)  # type: ignore[no-any-return]
    config: Any = getattr(clip, "config", None)
    if not hasattr(config, "vision_config") or not hasattr(config, "text_config"):
        raise TypeError(
            f"clip must be a CLIP or a CLIPModel of transformers, got {type(clip).__name__}"
        )
    most, longest = config.text_config.vocab_size, config.text_config.max_position_embeddings
    if text.shape[1] > longest or int(text.max()) >= most:
        raise ValueError(
            f"a CLIPModel takes ids of its own tokenizer, up to {longest} below {most}; got "
            f"{text.shape[1]} up to {int(text.max())}: pass clip_text=, and clip_mask="
        )
    mean, deviation = (images.new_tensor(t).view(-1, 1, 1) for t in (CLIP_MEAN, CLIP_DEVIATION))
    pixels = (_resized(images, config.vision_config.image_size) - mean) / deviation
    if images.shape[1] != 3:
        raise ValueError(f"a CLIPModel takes images of 3 channels, got {images.shape[1]}")
    attention = None if mask is None else mask.long()
    with evaluating(clip):
        out = clip(input_ids=text, pixel_values=pixels, attention_mask=attention)
    return out.logits_per_image.diagonal()  # type: ignore[no-any-return]


def _resized(images: Tensor, side: int) -> Tensor:
    if images.shape[-2:] == (side, side):
        return images
    how: dict[str, Any] = {"mode": "bicubic", "antialias": True}
    return F.interpolate(images, (side, side), **how).clamp(0, 1)

"""CLIP: how well a text and an image fit."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import Transformer


class CLIP(nn.Module):
    """Texts and images as directions in one space (Radford et al. 2021, arXiv 2103.00020).

    Arguments and defaults are those of dalle-pytorch 1.6.6. It ranks what DALL-E draws.

    Args:
        dim_text: Channels of the text's transformer.
        dim_image: Channels of the image's transformer.
        dim_latent: Channels of the common space.
        num_text_tokens: Ids of words.
        text_enc_depth: Layers for texts.
        text_seq_len: Ids of a text at most.
        text_heads: Attention heads for texts.
        num_visual_tokens: Without an effect, as in dalle-pytorch.
        visual_enc_depth: Layers for images.
        visual_heads: Attention heads for images.
        visual_image_size: Side of the images in pixels.
        visual_patch_size: Side of a patch in pixels.
        channels: Channels of the images.

    Raises:
        ValueError: If patches do not fill the image.
    """

    def __init__(
        self,
        *,
        dim_text: int = 512,
        dim_image: int = 512,
        dim_latent: int = 512,
        num_text_tokens: int = 10000,
        text_enc_depth: int = 6,
        text_seq_len: int = 256,
        text_heads: int = 8,
        num_visual_tokens: int = 512,
        visual_enc_depth: int = 6,
        visual_heads: int = 8,
        visual_image_size: int = 256,
        visual_patch_size: int = 32,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if visual_image_size % visual_patch_size:
            raise ValueError(
                f"patches of {visual_patch_size} pixels do not fill images of {visual_image_size}"
            )
        self.settings: dict[str, Any] = {
            "dim_text": dim_text,
            "dim_image": dim_image,
            "dim_latent": dim_latent,
            "num_text_tokens": num_text_tokens,
            "text_enc_depth": text_enc_depth,
            "text_seq_len": text_seq_len,
            "text_heads": text_heads,
            "num_visual_tokens": num_visual_tokens,
            "visual_enc_depth": visual_enc_depth,
            "visual_heads": visual_heads,
            "visual_image_size": visual_image_size,
            "visual_patch_size": visual_patch_size,
            "channels": channels,
        }
        self.text_seq_len, self.patch_size = text_seq_len, visual_patch_size
        self.image_size, self.channels = visual_image_size, channels
        self.text_emb = nn.Embedding(num_text_tokens, dim_text)
        self.text_pos_emb = nn.Embedding(text_seq_len, dim_text)
        self.text_transformer = Transformer(dim=dim_text, depth=text_enc_depth, heads=text_heads)
        self.to_text_latent = nn.Linear(dim_text, dim_latent, bias=False)
        self.to_visual_embedding = nn.Linear(channels * visual_patch_size**2, dim_image)
        patches = (visual_image_size // visual_patch_size) ** 2
        self.visual_pos_emb = nn.Embedding(patches, dim_image)
        self.visual_transformer = Transformer(
            dim=dim_image, depth=visual_enc_depth, heads=visual_heads
        )
        self.to_visual_latent = nn.Linear(dim_image, dim_latent, bias=False)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(
        self,
        text: Tensor,
        image: Tensor,
        text_mask: Tensor | None = None,
        return_loss: bool = False,
    ) -> Tensor:
        """Return how well each text fits its image, float [B], or the contrastive loss, a scalar.

        Args:
            text: Integers [B, n], n at most ``text_seq_len``.
            image: Float [B, C, S, S] in [0, 1].
            text_mask: [B, n], bool or 0 and 1: true for words. A text without any is seen whole.
            return_loss: Give the loss: the cross entropy of each text among the images and of
                each image among the texts.

        Raises:
            ValueError: If shapes do not fit.
        """
        texts, images = self.text_latents(text, text_mask), self.image_latents(image)
        scale = self.temperature.exp()
        if not return_loss:
            return (texts * images).sum(dim=-1) * scale
        scores = texts @ images.T * scale
        labels = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2

    def text_latents(self, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the directions of texts, float [B, dim_latent] of length 1."""
        if text.ndim != 2 or text.shape[1] > self.text_seq_len:
            raise ValueError(
                f"text must be [B, n] with n up to {self.text_seq_len}, got {[*text.shape]}"
            )
        x = self.text_emb(text) + self.text_pos_emb.weight[: text.shape[1]]
        if mask is None:
            pooled = self.text_transformer(x).mean(dim=1)
        else:
            if mask.shape != text.shape:
                raise ValueError(f"text_mask must be {[*text.shape]}, got {[*mask.shape]}")
            mask = mask.bool()
            mask = mask | ~mask.any(dim=1, keepdim=True)
            weights = (mask / mask.sum(dim=1, keepdim=True))[..., None]
            pooled = (self.text_transformer(x, mask) * weights).sum(dim=1)
        return F.normalize(self.to_text_latent(pooled), dim=-1)

    def image_latents(self, image: Tensor) -> Tensor:
        """Return the directions of images, float [B, dim_latent] of length 1."""
        size = (self.channels, self.image_size, self.image_size)
        if image.ndim != 4 or image.shape[1:] != size:
            raise ValueError(
                f"images must be [B, {', '.join(map(str, size))}], got {[*image.shape]}"
            )
        side = self.patch_size
        patches = image.unfold(2, side, side).unfold(3, side, side)  # [B, C, h, w, side, side]
        patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        x = self.to_visual_embedding(patches) + self.visual_pos_emb.weight
        return F.normalize(self.to_visual_latent(self.visual_transformer(x).mean(dim=1)), dim=-1)

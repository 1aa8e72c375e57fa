"""FLUX.2's latents: how they are patched, normalised, packed to tokens, and numbered.

All as in BFL's flux2 (``src/flux2/autoencoder.py``, ``sampling.py``) and diffusers' Flux2Pipeline,
bit for bit. The VAE makes 32 channels of 1/8 the height and width; patches of 2 x 2 become 128
channels of 1/16, which are normalised by the VAE's own running statistics; each is a token.
"""

import torch

FLUX2_EPS = 1e-4
"""Of the batch norm's variance (``batch_norm_eps`` in the VAE's config)."""


def flux2_patchify_latents(latents: torch.Tensor) -> torch.Tensor:
    """Return latents [B, C, h, w] as [B, 4 * C, h / 2, w / 2]: by channel, then row, then column.

    Raises:
        ValueError: If h or w is odd.
    """
    if latents.ndim != 4 or latents.shape[-2] % 2 or latents.shape[-1] % 2:
        raise ValueError(
            f"latents must be [B, C, h, w] with even h and w, got {list(latents.shape)}: images "
            "whose sides are multiples of 16 pixels give such"
        )
    b, c, h, w = latents.shape
    patches = latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return patches.reshape(b, c * 4, h // 2, w // 2)


def flux2_unpatchify_latents(patches: torch.Tensor) -> torch.Tensor:
    """Return patches [B, 4 * C, h, w] as latents [B, C, 2 * h, 2 * w]."""
    b, c, h, w = patches.shape
    latents = patches.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return latents.reshape(b, c // 4, h * 2, w * 2)


def flux2_normalize_latents(
    patches: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, *, eps: float = FLUX2_EPS
) -> torch.Tensor:
    """Return patches as the transformer takes them: ``(x - mean) / sqrt(var + eps)``.

    The statistics lie in the checkpoint, and no constants stand for them: what is cached of one VAE
    is of no use with another.

    Args:
        patches: [B, C, h, w], from `flux2_patchify_latents`.
        mean: The VAE's ``bn.running_mean``, [C].
        var: The VAE's ``bn.running_var``, [C].
        eps: The VAE's ``batch_norm_eps``.
    """
    mean, std = _statistics(patches, mean, var, eps)
    return (patches - mean) / std


def flux2_denormalize_latents(
    patches: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, *, eps: float = FLUX2_EPS
) -> torch.Tensor:
    """Return what the transformer gave as it was before `flux2_normalize_latents`."""
    mean, std = _statistics(patches, mean, var, eps)
    return patches * std + mean


def flux2_pack_latents(patches: torch.Tensor) -> torch.Tensor:
    """Return patches [B, C, h, w] as tokens [B, h * w, C], row by row."""
    b, c, h, w = patches.shape
    return patches.reshape(b, c, h * w).permute(0, 2, 1)


def flux2_unpack_latents(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return tokens [B, height * width, C] as patches [B, C, height, width].

    Args:
        tokens: From the transformer.
        height: The image's divided by 16.
        width: The image's divided by 16.

    Raises:
        ValueError: If the tokens are not those of that size.
    """
    b, n, c = tokens.shape
    if n != height * width:
        raise ValueError(
            f"{n} tokens are not those of {height} x {width} (height x width), which are "
            f"{height * width}"
        )
    return tokens.permute(0, 2, 1).reshape(b, c, height, width)


def flux2_image_ids(height: int, width: int, *, reference: int | None = None) -> torch.Tensor:
    """Return the positions of image tokens, int64 [height * width, 4]: (time, row, column, 0).

    Args:
        height: The image's divided by 16.
        width: The image's divided by 16.
        reference: None for the image that is made, at time 0; the i-th reference image, from 0 on,
            is at time 10 + 10 * i.
    """
    ids = torch.zeros(height, width, 4, dtype=torch.int64)
    ids[..., 0] = 0 if reference is None else 10 + 10 * reference
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)[None, :]
    return ids.reshape(height * width, 4)


def flux2_text_ids(length: int) -> torch.Tensor:
    """Return the positions of text tokens, int64 [length, 4]: (0, 0, 0, number)."""
    ids = torch.zeros(length, 4, dtype=torch.int64)
    ids[:, 3] = torch.arange(length)
    return ids


def _statistics(
    patches: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, -1, 1, 1)
    std = torch.sqrt(var.view(shape) + eps)
    return mean.view(shape).to(patches), std.to(patches)

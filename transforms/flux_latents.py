"""FLUX.1's latents: how they are packed to tokens, numbered, and scaled.

All as in BFL's flux (``src/flux/sampling.py``, ``modules/autoencoder.py``) and diffusers'
FluxPipeline, bit for bit. The VAE makes 16 channels of 1/8 the height and width; a token is a patch
of 2 x 2 of them, so an image of H x W pixels becomes (H / 16) * (W / 16) tokens of 64 numbers.
"""

import torch

FLUX_SCALE = 0.3611
FLUX_SHIFT = 0.1159
"""Of the VAE's latents (black-forest-labs/flux ``util.py``: scale_factor, shift_factor)."""


def flux_pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """Return latents [B, C, h, w] as tokens [B, (h / 2) * (w / 2), 4 * C].

    Tokens go row by row; a token's numbers go by channel, then row, then column of its patch:
    ``b c (h ph) (w pw) -> b (h w) (c ph pw)``.

    Raises:
        ValueError: If h or w is odd.
    """
    if latents.ndim != 4 or latents.shape[-2] % 2 or latents.shape[-1] % 2:
        raise ValueError(
            f"latents must be [B, C, h, w] with even h and w, got {list(latents.shape)}: images "
            "whose sides are multiples of 16 pixels give such"
        )
    b, c, h, w = latents.shape
    patches = latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, (h // 2) * (w // 2), c * 4)


def flux_unpack_latents(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return tokens [B, n, 4 * C] as latents [B, C, h, w]: what `flux_pack_latents` took.

    Args:
        tokens: From the transformer.
        height: Of the latents: the image's divided by 8.
        width: Of the latents.

    Raises:
        ValueError: If the tokens are not those of that size.
    """
    b, n, d = tokens.shape
    if height % 2 or width % 2 or n != (height // 2) * (width // 2) or d % 4:
        raise ValueError(
            f"tokens {list(tokens.shape)} are not those of latents of {height} x {width} (height x "
            "width), which would be [B, (height / 2) * (width / 2), 4 * channels]"
        )
    patches = tokens.reshape(b, height // 2, width // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, d // 4, height, width)


def flux_image_ids(
    height: int, width: int, *, index: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return the positions of image tokens, [height * width, 3]: (index, row, column).

    Args:
        height: Of the latents in patches: the image's divided by 16.
        width: The image's width divided by 16.
        index: 0 for the image; FLUX.1 Kontext gives 1 to the reference image.
        dtype: Of the output. bfloat16 has no odd numbers above 256.
    """
    ids = torch.zeros(height, width, 3)
    ids[..., 0] = index
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None, :]
    return ids.reshape(height * width, 3).to(dtype)


def flux_text_ids(length: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the positions of ``length`` text tokens, [length, 3]: all zero."""
    return torch.zeros(length, 3, dtype=dtype)


def flux_scale_latents(
    latents: torch.Tensor, *, scale: float = FLUX_SCALE, shift: float = FLUX_SHIFT
) -> torch.Tensor:
    """Return what the VAE's encoder gave as the transformer takes it: ``(x - shift) * scale``.

    Args:
        latents: Any shape.
        scale: The VAE's ``scaling_factor``.
        shift: The VAE's ``shift_factor``.
    """
    return (latents - shift) * scale


def flux_unscale_latents(
    latents: torch.Tensor, *, scale: float = FLUX_SCALE, shift: float = FLUX_SHIFT
) -> torch.Tensor:
    """Return what the transformer gave as the VAE's decoder takes it: ``x / scale + shift``."""
    return latents / scale + shift

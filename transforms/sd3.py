"""What Stable Diffusion 3 takes: pixels, and tokens of two CLIPs and T5."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from .checkpoint import checkpoint_folder, load_tokenizer
from .model_transform import ModelTransform, drop_chances
from .tokenize import ClipTokenize, T5Tokenize

T5_IDS = 256
"""Ids per caption for T5: ``max_sequence_length`` of diffusers' StableDiffusion3Pipeline."""

SD3_SCALE = 1.5305
SD3_SHIFT = 0.0609
"""Of the VAE's latents (Stability-AI/sd3.5 ``sd3_impls.py``, SD3LatentFormat)."""


@dataclass(init=False, repr=False, eq=False)
class SD3Transform(ModelTransform):
    """Turns a batch of decoded samples into what SD3 takes (``.transform(SD3Transform(…))``).

    Gives the batch with these fields, of SD3 and SD3.5; all others stay as they are:

    - ``image``: ``dtype`` [B, 3, H, W] in [-1, 1];
    - ``clip_l_tokens``, ``clip_g_tokens``: int64 [B, 77]; ``t5_tokens``: int64 [B, ``t5_length``];
    - ``…_attention_mask``: int64, of the tokens' shapes; SD3 takes none of them;
    - ``…_cut``: int64 [B]; `CutReport` sums them up;
    - ``…_dropped``: bool [B], for the encoders that ``drop`` names.

    The encoders' outputs are put together by `sd3_prompt_embeds`.

    Args:
        tokenizer: transformers' CLIPTokenizer of CLIP-L.
        tokenizer_2: transformers' CLIPTokenizer of OpenCLIP bigG.
        tokenizer_3: transformers' T5TokenizerFast.
        t5_length: Ids per caption for T5.
        dtype: Of ``image``; None leaves it uint8, as decoded, for `normalize_image` on the GPU.
        drop: Probability for each encoder, "clip_l", "clip_g" and "t5", that a sample gets the
            tokens of the empty caption, drawn apart, as SD3's were in its training (arXiv
            2403.03206). To drop a caption for all at once there is ``.drop_caption(p)``.

    Raises:
        ValueError: If an argument is none of these.
    """

    model = "SD3"
    multiple = 16  # pixels: one latent is 8 x 8 of them, one token 2 x 2 latents

    def __init__(
        self,
        tokenizer: Any,
        tokenizer_2: Any,
        tokenizer_3: Any,
        *,
        t5_length: int = T5_IDS,
        dtype: torch.dtype | None = torch.float32,
        drop: Mapping[str, float] | None = None,
    ) -> None:
        chances = drop_chances(drop, "clip_l", "clip_g", "t5")
        given = {"clip_l": tokenizer, "clip_g": tokenizer_2}
        clips = [ClipTokenize(t, name=n, drop=chances[n]) for n, t in given.items()]
        t5 = T5Tokenize(tokenizer_3, max_length=t5_length, drop=chances["t5"])
        super().__init__((*clips, t5), dtype)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathLike[str],
        *,
        t5_length: int = T5_IDS,
        dtype: torch.dtype | None = torch.float32,
        drop: Mapping[str, float] | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> "SD3Transform":
        """Return the transform for a checkpoint of diffusers.

        Args:
            path_or_id: A folder in which ``tokenizer/``, ``tokenizer_2/`` and ``tokenizer_3/`` lie,
                or the id of a repository on the Hugging Face hub; of that no weights are
                downloaded.
            t5_length: Ids per caption for T5.
            dtype: Of ``image``.
            drop: Probability for each encoder; see the class.
            revision: Branch, tag or commit on the hub.
            local_files_only: Whether to take what was downloaded before and ask nobody.

        Raises:
            OSError: If the folder or a tokenizer is missing, or the hub cannot be reached.
            ValueError: If the files are no such tokenizers.
        """
        names = ("tokenizer", "tokenizer_2", "tokenizer_3")
        folder = checkpoint_folder(path_or_id, names, revision, local_files_only)
        return cls(
            load_tokenizer(folder / names[0], "clip"),
            load_tokenizer(folder / names[1], "clip"),
            load_tokenizer(folder / names[2], "t5"),
            t5_length=t5_length,
            dtype=dtype,
            drop=drop,
        )


def sd3_prompt_embeds(clip_l: torch.Tensor, clip_g: torch.Tensor, t5: torch.Tensor) -> torch.Tensor:
    """Return the text that SD3's transformer attends to, [B, 77 + L, 4096].

    The two CLIPs side by side, filled up with zeros to T5's width, and T5's behind them in the
    sequence; as in diffusers' ``encode_prompt`` and the paper (arXiv 2403.03206, figure 2). The
    pooled vector is ``torch.cat([pooled_l, pooled_g], -1)``.

    Args:
        clip_l: CLIP-L's last hidden state but one, [B, 77, 768].
        clip_g: bigG's last hidden state but one, [B, 77, 1280].
        t5: T5's last hidden state, [B, L, 4096].

    Raises:
        ValueError: If the CLIPs together are wider than T5.
    """
    clips = torch.cat([clip_l, clip_g], -1)
    room = t5.shape[-1] - clips.shape[-1]
    if room < 0:
        raise ValueError(f"the CLIPs give {clips.shape[-1]} numbers a token, T5 {t5.shape[-1]}")
    return torch.cat([torch.nn.functional.pad(clips, (0, room)), t5], -2)


def sd3_scale_latents(
    latents: torch.Tensor, *, scale: float = SD3_SCALE, shift: float = SD3_SHIFT
) -> torch.Tensor:
    """Return what the VAE's encoder gave as the transformer takes it: ``(x - shift) * scale``.

    Args:
        latents: Any shape.
        scale: The VAE's ``scaling_factor``.
        shift: The VAE's ``shift_factor``.
    """
    return (latents - shift) * scale


def sd3_unscale_latents(
    latents: torch.Tensor, *, scale: float = SD3_SCALE, shift: float = SD3_SHIFT
) -> torch.Tensor:
    """Return what the transformer gave as the VAE's decoder takes it: ``x / scale + shift``."""
    return latents / scale + shift

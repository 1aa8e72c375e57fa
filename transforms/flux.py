"""What FLUX.1 takes: pixels, CLIP tokens, T5 tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from .checkpoint import checkpoint_folder, load_config, load_tokenizer
from .model_transform import ModelTransform, drop_chances
from .tokenize import T5_LENGTH, ClipTokenize, T5Tokenize

Variant = Literal["dev", "schnell"]


@dataclass(init=False, repr=False, eq=False)
class FluxTransform(ModelTransform):
    """Turns a batch of decoded samples into what FLUX.1 takes (``.transform(FluxTransform(…))``).

    Gives the batch with these fields; all others stay as they are (captions, masks, sizes):

    - ``image``: ``dtype`` [B, 3, H, W] in [-1, 1];
    - ``clip_tokens``: int64 [B, 77], for the pooled output of CLIP-L;
    - ``t5_tokens``: int64 [B, 512] for dev, [B, 256] for schnell;
    - ``clip_attention_mask``, ``t5_attention_mask``: int64, the tokens' shapes. FLUX.1 was trained
      with padding attended and takes neither; they are here for models that do;
    - ``clip_cut``, ``t5_cut``: int64 [B], how many tokens of the caption did not fit; `CutReport`
      sums them up;
    - ``clip_dropped``, ``t5_dropped``: bool [B], where ``drop`` names them.

    Latents, packing, ids and the timestep shift are the functions ``flux_…`` of this package.

    Args:
        tokenizer: transformers' CLIPTokenizer.
        tokenizer_2: transformers' T5TokenizerFast.
        variant: "dev" or "schnell".
        dtype: Of ``image``: float32, bfloat16, …, or None, which leaves it uint8, as decoded: a
            quarter as much to hand to the trainer, for `normalize_image` on the GPU.
        drop: Probability for each encoder, "clip" and "t5", that a sample gets the tokens of the
            empty caption, drawn apart, as torchtitan does. To drop a caption for both at once there
            is ``.drop_caption(p)``.

    Raises:
        ValueError: If an argument is none of these.
    """

    model = "FLUX.1"
    multiple = 16  # pixels: one latent is 8 x 8 of them, one token 2 x 2 latents

    variant: Variant

    def __init__(
        self,
        tokenizer: Any,
        tokenizer_2: Any,
        *,
        variant: Variant = "dev",
        dtype: torch.dtype | None = torch.float32,
        drop: Mapping[str, float] | None = None,
    ) -> None:
        if variant not in T5_LENGTH:
            raise ValueError(f"variant must be one of {sorted(T5_LENGTH)}, got {variant!r}")
        chances = drop_chances(drop, "clip", "t5")
        clip = ClipTokenize(tokenizer, drop=chances["clip"])
        t5 = T5Tokenize(tokenizer_2, max_length=T5_LENGTH[variant], drop=chances["t5"])
        super().__init__((clip, t5), dtype)
        self.variant = variant

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathLike[str],
        *,
        variant: Variant | None = None,
        dtype: torch.dtype | None = torch.float32,
        drop: Mapping[str, float] | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> "FluxTransform":
        """Return the transform for a checkpoint of diffusers.

        Args:
            path_or_id: A folder in which ``tokenizer/`` and ``tokenizer_2/`` lie, or the id of a
                repository on the Hugging Face hub; of that no weights are downloaded.
            variant: "dev" or "schnell"; else ``transformer/config.json`` says it (dev has
                ``guidance_embeds``); else, where a folder has no such file, dev.
            dtype: Of ``image``.
            drop: Probability for each encoder; see the class.
            revision: Branch, tag or commit on the hub.
            local_files_only: Whether to take what was downloaded before and ask nobody.

        Raises:
            OSError: If the folder or a tokenizer is missing, or the hub cannot be reached.
            ValueError: If the files are no such tokenizers.
        """
        wanted = ("tokenizer", "tokenizer_2", "transformer")
        folder = checkpoint_folder(path_or_id, wanted, revision, local_files_only)
        return cls(
            load_tokenizer(folder / "tokenizer", "clip"),
            load_tokenizer(folder / "tokenizer_2", "t5"),
            variant=variant or _variant(folder, Path(path_or_id).expanduser() == folder),
            dtype=dtype,
            drop=drop,
        )


def _variant(folder: Path, own: bool) -> Variant:
    config = load_config(folder / "transformer")
    if config is not None:
        # What diffusers' FluxTransformer2DModel takes a missing entry for.
        return "dev" if config.get("guidance_embeds", False) else "schnell"
    if not own:  # the repository may well have one that was not downloaded
        raise ValueError(
            f"there is no transformer/config.json in {folder}, which says dev or schnell: give "
            "variant="
        )
    return "dev"

"""What Stable Diffusion XL takes: pixels, tokens of two CLIPs, and how the image was cropped."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from .checkpoint import checkpoint_folder, load_tokenizer
from .model_transform import ModelTransform, drop_chances
from .tokenize import Batch, ClipTokenize

GEOMETRY = ("original_size", "crop_top_left", "target_size")


@dataclass(init=False, repr=False, eq=False)
class SDXLTransform(ModelTransform):
    """Turns a batch of decoded samples into what SDXL takes (``.transform(SDXLTransform(…))``).

    Gives the batch with these fields; all others stay as they are:

    - ``image``: ``dtype`` [B, 3, H, W] in [-1, 1];
    - ``clip_l_tokens``, ``clip_g_tokens``: int64 [B, 77], for CLIP-L and OpenCLIP bigG, which pads
      with "!" and not with the end token;
    - ``clip_l_attention_mask``, ``clip_g_attention_mask``: int64 [B, 77]; SDXL takes neither;
    - ``clip_l_cut``, ``clip_g_cut``: int64 [B]; `CutReport` sums them up;
    - ``clip_l_dropped``, ``clip_g_dropped``: bool [B], where ``drop`` names them;
    - ``time_ids``: float32 [B, 6], the micro-conditioning; see `sdxl_time_ids`.

    Args:
        tokenizer: transformers' CLIPTokenizer of CLIP-L.
        tokenizer_2: transformers' CLIPTokenizer of OpenCLIP bigG.
        dtype: Of ``image``; None leaves it uint8, as decoded, for `normalize_image` on the GPU.
        drop: Probability for each encoder, "clip_l" and "clip_g", that a sample gets the tokens of
            the empty caption. To drop a caption for both at once there is ``.drop_caption(p)``.

    Raises:
        ValueError: If an argument is none of these.
    """

    model = "SDXL"
    multiple = 8  # pixels of a latent; SDXL itself was trained on multiples of 64

    def __init__(
        self,
        tokenizer: Any,
        tokenizer_2: Any,
        *,
        dtype: torch.dtype | None = torch.float32,
        drop: Mapping[str, float] | None = None,
    ) -> None:
        chances = drop_chances(drop, "clip_l", "clip_g")
        given = {"clip_l": tokenizer, "clip_g": tokenizer_2}
        clips = (ClipTokenize(t, name=n, drop=chances[n]) for n, t in given.items())
        super().__init__(tuple(clips), dtype)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathLike[str],
        *,
        dtype: torch.dtype | None = torch.float32,
        drop: Mapping[str, float] | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> "SDXLTransform":
        """Return the transform for a checkpoint of diffusers.

        Args:
            path_or_id: A folder in which ``tokenizer/`` and ``tokenizer_2/`` lie, or the id of a
                repository on the Hugging Face hub; of that no weights are downloaded.
            dtype: Of ``image``.
            drop: Probability for each encoder; see the class.
            revision: Branch, tag or commit on the hub.
            local_files_only: Whether to take what was downloaded before and ask nobody.

        Raises:
            OSError: If the folder or a tokenizer is missing, or the hub cannot be reached.
            ValueError: If the files are no such tokenizers.
        """
        names = ("tokenizer", "tokenizer_2")
        folder = checkpoint_folder(path_or_id, names, revision, local_files_only)
        one, two = (load_tokenizer(folder / name, "clip") for name in names)
        return cls(one, two, dtype=dtype, drop=drop)

    def extra(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the micro-conditioning."""
        missing = [name for name in GEOMETRY if not isinstance(batch.get(name), torch.Tensor)]
        if missing:
            raise ValueError(
                f"the batch has no field {missing[0]!r}, an int64 [B, 2], only {sorted(batch)}: "
                ".decode() gives it, and SDXL is conditioned on it"
            )
        return {"time_ids": sdxl_time_ids(*(batch[name] for name in GEOMETRY))}


def sdxl_time_ids(
    original_size: torch.Tensor, crop_top_left: torch.Tensor, target_size: torch.Tensor
) -> torch.Tensor:
    """Return SDXL's micro-conditioning, float32 [B, 6].

    (original height, original width, crop top, crop left, target height, target width): height
    before width throughout. As in the paper (arXiv 2307.01952, section 2.2 and algorithm 1), in
    Stability's generative-models, and in diffusers' ``_get_add_time_ids``. The crop is in pixels of
    the image as resized to cover the target, which is what ``crop_top_left`` of ``.decode()`` is.

    float32, since bfloat16 has no odd numbers above 256.

    Args:
        original_size: int64 [B, 2], of the image as it was stored, upright.
        crop_top_left: int64 [B, 2].
        target_size: int64 [B, 2], of the pixels.

    Raises:
        ValueError: If they are not [B, 2], all with one B.
    """
    parts = (original_size, crop_top_left, target_size)
    if any(part.ndim != 2 or part.shape != (len(original_size), 2) for part in parts):
        shapes = [list(part.shape) for part in parts]
        raise ValueError(f"sizes and crops must all be [B, 2], got {shapes}")
    return torch.cat(parts, 1).to(torch.float32)

"""What DALL-E takes: text tokens, and image tokens or pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .draws import draw_key
from .fast_tokenizer import FastTokenizer
from .images import batch_images
from .tokenize import Batch, Tokenize

PADDING = 0
"""The id that fills up short texts in DALLE-pytorch and its checkpoints."""


class TextTokenize(Tokenize):
    """Ids of the words alone, without begin or end, filled up with 0; of any fast tokenizer."""

    kind = "text"
    length = 256

    def _tokens(self, tokenizer: Any, max_length: int) -> FastTokenizer:
        return FastTokenizer(tokenizer, max_length, add_special_tokens=False, pad=PADDING)


@dataclass(init=False, repr=False, eq=False)
class DalleTransform:
    """Turns a batch of decoded samples into what DALL-E takes (``.transform(DalleTransform(…))``).

    Gives the batch with these fields; all others stay as they are:

    - ``text_tokens``: int64 [B, ``text_length``]: the ids of the words without begin and end, then
      zeros, as DALLE-pytorch's tokenizers make them;
    - ``text_attention_mask``: int64, 1 for words and 0 for padding;
    - ``text_cut``: int64 [B], how many tokens did not fit (there it was an error); `CutReport`
      sums it up;
    - ``text_dropped``: bool [B], where ``drop`` is not 0: whose text is all padding;
    - ``image``: float32 [B, 3, S, S] in [0, 1];
    - ``image_tokens``: int64 [B, n], where there is a ``vae``.

    Args:
        tokenizer: A fast tokenizer of transformers. DALLE-pytorch's default is OpenAI's CLIP
            vocabulary (its cleaning by ftfy is left out); for a JSON file of the tokenizers package
            there is `from_file`.
        text_length: Ids per text.
        vae: ``vae(image)`` gives the image tokens of float32 [B, 3, S, S] in [0, 1], on the CPU, as
            [B, n] or [B, h, w], without gradients; such as ``get_codebook_indices`` of a
            DiscreteVAE. It runs in the workers; where it needs a GPU, leave it out and let the
            trainer make the tokens of ``image``.
        reserve_padding: Move all ids up by one, so that 0 is padding and nothing else. Without it,
            as in DALLE-pytorch, the vocabulary's first word ("!" within a word of CLIP's) has the
            id of the padding. A checkpoint is trained with one of the two.
        drop: Probability that a text is all padding, for classifier-free guidance.

    Attributes:
        num_text_tokens: The size that the model's text vocabulary must have.

    Raises:
        TypeError: If ``vae`` is no function, or the tokenizer no fast one.
        ValueError: If an argument is out of range.
    """

    text: Tokenize
    reserve_padding: bool
    vae: Callable[[torch.Tensor], torch.Tensor] | None

    def __init__(
        self,
        tokenizer: Any,
        *,
        text_length: int = 256,
        vae: Callable[[torch.Tensor], torch.Tensor] | None = None,
        reserve_padding: bool = False,
        drop: float = 0.0,
    ) -> None:
        if vae is not None and not callable(vae):
            raise TypeError(f"vae must be a function of images, got {type(vae).__name__}")
        self.text = TextTokenize(tokenizer, max_length=text_length, drop=drop)
        self.reserve_padding = reserve_padding
        self.vae = vae
        self.num_text_tokens = len(tokenizer) + reserve_padding

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        *,
        text_length: int = 256,
        vae: Callable[[torch.Tensor], torch.Tensor] | None = None,
        reserve_padding: bool = False,
        drop: float = 0.0,
    ) -> "DalleTransform":
        """Return the transform for a tokenizer in a JSON file of the tokenizers package.

        Such as DALLE-pytorch takes for ``--bpe_path`` with ``--hug``, and trains.

        Args:
            path: The file.
            text_length: See the class, as for the others.
            vae: Gives image tokens.
            reserve_padding: Whether 0 is padding and nothing else.
            drop: Probability that a text is all padding.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no tokenizer.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {fspath(path)}")
        transformers: Any = import_module("transformers")
        try:
            tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=fspath(path))
        except Exception as error:  # the Rust half raises bare exceptions
            raise ValueError(f"{fspath(path)} holds no tokenizer: {error}") from error
        return cls(
            tokenizer,
            text_length=text_length,
            vae=vae,
            reserve_padding=reserve_padding,
            drop=drop,
        )

    def __call__(self, batch: Batch, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Return the batch with its fields for DALL-E.

        Args:
            batch: From ``.decode(size=(S, S))``: square images, captions.
            rng: The batch's draws, which ``.transform()`` gives; only ``drop`` needs them.

        Raises:
            ValueError: If images are not square, a field is missing, or the VAE gives no tokens.
        """
        pixels = batch_images(batch, multiple=1, model="DALL-E")
        height, width = pixels.shape[-2:]
        if height != width:
            raise ValueError(
                f"images of {height} x {width} pixels (height x width): DALL-E takes square ones; "
                ".decode(size=(256, 256))"
            )
        image = pixels.to(torch.float32).div_(255)
        fields = self.text.fields(batch, draw_key(rng) if self.text.drop else 0)
        if self.reserve_padding:
            fields["text_tokens"] = (fields["text_tokens"] + 1) * fields["text_attention_mask"]
        out = {**batch, "image": image, **fields}
        if self.vae is not None:
            out["image_tokens"] = _image_tokens(self.vae, image)
        return out


def _image_tokens(vae: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        tokens = vae(image)
    whole = isinstance(tokens, torch.Tensor) and not (
        tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool
    )
    if not whole or tokens.ndim not in (2, 3) or len(tokens) != len(image):
        got = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, torch.Tensor) else tokens
        raise ValueError(
            f"vae must give the images' tokens, integers [{len(image)}, n] or "
            f"[{len(image)}, h, w]; got {got!s:.200}"
        )
    return tokens.flatten(1).to(torch.int64)

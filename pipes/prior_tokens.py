"""Captions to the tokens that a diffusion prior is conditioned on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

LENGTH = 77
"""Tokens of a text in CLIP (Radford et al., 2021)."""


@dataclass(frozen=True)
class PriorTokens:
    """Turns captions into int32 [B, 77], as OpenAI's ``clip.tokenize(…, truncate=True)`` does.

    Shorter texts are filled up with 0, by which DALLE2's prior knows what is padding; longer ones
    are cut, and end with the end token.

    Args:
        tokenize: A function of a list of captions that returns integers [B, tokens]; or a
            tokenizer of transformers, such as a CLIPTokenizerFast. None: ``clip.tokenize``, where
            OpenAI's ``clip`` is installed.
    """

    tokenize: Callable[..., Any] | None = None

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Return the tokens.

        Raises:
            ImportError: There is no tokenizer; the message says what to pass.
            ValueError: The function did not return integers [B, tokens].
        """
        tokenize = self.tokenize or _of_clip()
        if hasattr(tokenize, "model_max_length"):
            found = tokenize(list(captions), truncation=True, max_length=LENGTH)["input_ids"]
            tokens = torch.zeros(len(captions), LENGTH, dtype=torch.int32)
            for row, ids in zip(tokens, found, strict=True):
                row[: len(ids)] = torch.tensor(ids, dtype=torch.int32)
            return tokens
        tokens = torch.as_tensor(tokenize(list(captions)))
        whole = not (tokens.is_floating_point() or tokens.is_complex())
        if tokens.ndim != 2 or len(tokens) != len(captions) or not whole:
            raise ValueError(
                f"tokenize must return integers [{len(captions)}, tokens] for {len(captions)} "
                f"captions; got {tokens.dtype} {list(tokens.shape)}"
            )
        return tokens.to(torch.int32)


def _of_clip() -> Callable[..., Any]:
    try:
        import clip  # type: ignore[import-not-found, unused-ignore]

        return partial(clip.tokenize, truncate=True)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            "captions need a tokenizer: pass tokenize=, a function of a list of captions that "
            "returns integers [B, 77], or transformers' "
            "CLIPTokenizerFast.from_pretrained('openai/clip-vit-large-patch14'); without it, "
            "OpenAI's clip must be installed"
        ) from error

"""Captions of a batch to tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
import torch

from .checkpoint import Kind, checkpoint_folder, load_tokenizer
from .draws import check_chance, draw_key, uniforms
from .fast_tokenizer import FastTokenizer, Tokens

Batch = Mapping[str, Any]

T5_LENGTH = {"dev": 512, "schnell": 256}
"""Ids per caption for T5, by variant of FLUX.1 (black-forest-labs/flux, ``src/flux/cli.py``)."""


@dataclass(init=False, repr=False, eq=False)
class Tokenize:
    """Base of the transforms that give tokens of captions.

    Gives the batch with these fields more, where ``name`` is "clip":

    - ``clip_tokens``: int64 [B, L];
    - ``clip_attention_mask``: int64 [B, L], 1 for tokens and 0 for padding;
    - ``clip_cut``: int64 [B], how many tokens of the caption did not fit; `CutReport` sums it up;
    - ``clip_dropped``: bool [B], where ``drop`` is not 0: whose tokens are those of "".

    The ids are bit for bit those of ``tokenizer(captions, padding="max_length", truncation=True)``.

    Args:
        tokenizer: A fast tokenizer of transformers.
        max_length: L: ids per caption, special tokens included; the class has its own default.
        name: Begins the names of the fields; the class has its own default.
        field: The field of the captions, a list of str.
        drop: Probability that a sample gets the tokens of the empty caption instead, for
            classifier-free guidance. Each tokenizer draws for itself; to drop a caption for all at
            once there is ``.drop_caption(p)``.

    Raises:
        TypeError: If it is no fast tokenizer of transformers.
        ValueError: If an argument is out of range, or the tokenizer has no vocabulary.
    """

    kind: ClassVar[str]
    length: ClassVar[int]
    limited: ClassVar[bool] = False  # whether the model has positions that can run out

    tokens: FastTokenizer
    name: str
    field: str
    drop: float

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        name: str | None = None,
        field: str = "caption",
        drop: float = 0.0,
    ) -> None:
        self.name = name or self.kind
        self.field = field
        self.drop = drop
        check_chance(f"drop of {self.name}", drop)
        self.tokens = self._tokens(tokenizer, self.length if max_length is None else max_length)
        if self.limited and self.tokens.max_length > tokenizer.model_max_length:
            raise ValueError(
                f"max_length is {self.tokens.max_length}, and the tokenizer's model has only "
                f"{tokenizer.model_max_length} positions"
            )

    def _tokens(self, tokenizer: Any, max_length: int) -> FastTokenizer:
        return FastTokenizer(tokenizer, max_length)

    def texts(self, captions: Sequence[str]) -> Sequence[str]:
        """Return what is made of captions before they become tokens."""
        return captions

    def __call__(self, batch: Batch, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Return the batch with the fields of tokens.

        Args:
            batch: With a field of captions.
            rng: The batch's draws, which ``.transform()`` gives; only ``drop`` needs them.

        Raises:
            ValueError: If there are no captions, or one is no text.
        """
        return {**batch, **self.fields(batch, draw_key(rng) if self.drop else 0)}

    def fields(self, batch: Batch, key: int) -> dict[str, torch.Tensor]:
        """Return the fields alone; ``key`` is the batch's, from `draw_key`."""
        captions = batch_captions(batch, self.field)
        out: dict[str, torch.Tensor] = {}
        if self.drop:
            dropped = uniforms(key, f"{self.name}.drop", len(captions)) < self.drop
            captions = ["" if d else c for c, d in zip(captions, dropped, strict=True)]
            out[f"{self.name}_dropped"] = torch.from_numpy(dropped)
        tokens = tokenize(self.tokens, self.texts(captions), batch)
        return {
            f"{self.name}_tokens": tokens.ids,
            f"{self.name}_attention_mask": tokens.attention_mask,
            f"{self.name}_cut": tokens.cut,
            **out,
        }


class PretrainedTokenize(Tokenize):
    """Base of those whose tokenizers lie in checkpoints, by kind."""

    kind: ClassVar[Kind]

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathLike[str],
        *,
        subfolder: str = "",
        max_length: int | None = None,
        name: str | None = None,
        field: str = "caption",
        drop: float = 0.0,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Return the transform with the tokenizer of a checkpoint.

        Args:
            path_or_id: A folder, or the id of a repository on the Hugging Face hub.
            subfolder: Folder in it; checkpoints of diffusers have "tokenizer", "tokenizer_2", ….
            max_length: See the class, as for the others.
            name: Begins the names of the fields.
            field: The field of the captions.
            drop: Probability that a sample gets the tokens of the empty caption.
            revision: Branch, tag or commit on the hub.
            local_files_only: Whether to take what was downloaded before and ask nobody.

        Raises:
            OSError: If there is no such folder or tokenizer, or the hub cannot be reached.
            ImportError: If there is a ``spiece.model`` alone, and no package to read it.
            ValueError: If the files are another kind of tokenizer.
        """
        folder = checkpoint_folder(path_or_id, [subfolder], revision, local_files_only)
        tokenizer = load_tokenizer(folder / subfolder, cls.kind)
        return cls(tokenizer, max_length=max_length, name=name, field=field, drop=drop)


class ClipTokenize(PretrainedTokenize):
    """Tokens for CLIP text encoders, 77 a caption: ``clip_tokens`` and so on; see `Tokenize`."""

    kind = "clip"
    length = 77  # what OpenAI's clip.tokenize takes for context_length
    limited = True


class T5Tokenize(PretrainedTokenize):
    """Tokens for T5 text encoders, 512 a caption: ``t5_tokens`` and so on; see `Tokenize`.

    Mind the mask: FLUX.1 and SD3 were trained with padding attended, in T5 and in the transformer,
    and take no ``t5_attention_mask`` (BFL's conditioner passes ``attention_mask=None``). It is here
    for models that want one.
    """

    kind = "t5"
    length = T5_LENGTH["dev"]


def batch_captions(batch: Batch, field: str = "caption") -> Sequence[str]:
    """Return the batch's captions.

    Raises:
        ValueError: If there is no such field, or it is no list of texts.
    """
    captions = batch.get(field)
    if captions is None:
        raise ValueError(
            f"the batch has no field {field!r}, only {sorted(batch)}: .decode(caption=…) gives "
            "captions"
        )
    if isinstance(captions, str) or not isinstance(captions, Sequence):
        raise ValueError(f"{field!r} must be a list of texts, got {type(captions).__name__}")
    return captions


def tokenize(tokens: FastTokenizer, captions: Sequence[str], batch: Batch) -> Tokens:
    """Return the tokens of the batch's captions; an error names the sample."""
    try:
        return tokens(captions)
    except ValueError as error:
        i = getattr(error, "caption", None)
        if i is None or "__key__" not in batch:
            raise
        where = f"sample {batch['__key__'][i]!r} of {batch['__url__'][i]}"
        raise ValueError(f"{where}: its caption is {error}") from error

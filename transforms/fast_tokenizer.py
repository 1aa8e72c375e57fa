"""Captions to token ids by a tokenizer of transformers, in workers as well as anywhere else."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch


class Tokens(NamedTuple):
    """Token ids of B captions, all L long.

    Attributes:
        ids: int64 [B, L].
        attention_mask: int64 [B, L], as transformers has it: 1 for tokens, 0 for padding.
        cut: int64 [B]: how many tokens of each caption did not fit; 0 where all did.
    """

    ids: torch.Tensor
    attention_mask: torch.Tensor
    cut: torch.Tensor


@dataclass(init=False, repr=False, eq=False)
class FastTokenizer:
    """Gives what ``tokenizer(captions, padding="max_length", truncation=True)`` gives, id for id.

    It holds a copy of the tokenizer's Rust half alone, so a spawned worker does not import
    transformers, and the tokenizer that it came from is left as it was. Captions are encoded one at
    a time: a batch call starts threads, and a process that forks after that gets warnings (or,
    in older versions, deadlocks) in its children. The workers themselves are the parallelism.

    Args:
        tokenizer: A fast tokenizer of transformers.
        max_length: Ids per caption, special tokens included.
        add_special_tokens: Whether begin and end tokens are put around each caption.
        pad: The id that fills up short captions, instead of the tokenizer's padding token.

    Attributes:
        digest: SHA-256 of the vocabulary and all rules, in hex: another tokenizer has another.

    Raises:
        TypeError: If it is no fast tokenizer of transformers.
        ValueError: If it has no vocabulary, no padding token, or ``max_length`` holds no caption.
    """

    max_length: int
    add_special_tokens: bool
    digest: str

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        *,
        add_special_tokens: bool = True,
        pad: int | None = None,
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TypeError(
                "the tokenizer must be a fast one of transformers, with a backend_tokenizer; got "
                f"{type(tokenizer).__name__}"
            )
        _check_vocabulary(tokenizer)
        pad = tokenizer.pad_token_id if pad is None else pad
        if pad is None:
            raise ValueError("the tokenizer has no padding token: set tokenizer.pad_token")
        if getattr(tokenizer, "split_special_tokens", False):
            raise ValueError("a tokenizer with split_special_tokens=True is not supported")
        self._backend = type(backend).from_str(backend.to_str())
        special = self._backend.num_special_tokens_to_add(False) if add_special_tokens else 0
        if max_length <= special:
            raise ValueError(
                f"max_length must be more than the tokenizer's {special} special tokens, "
                f"got {max_length}"
            )
        self._backend.no_padding()
        self._backend.no_truncation()
        # Without either, which are as the tokenizer was last used.
        self.digest = hashlib.sha256(self._backend.to_str().encode()).hexdigest()
        self._backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
        self._special = special
        self._pad = int(pad)
        self._left = tokenizer.padding_side == "left"
        self.max_length = max_length
        self.add_special_tokens = add_special_tokens

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """Return the tokens of ``captions``.

        Raises:
            ValueError: If a caption is no text that can be written in UTF-8; the error's
                ``caption`` is its number.
        """
        shape = len(captions), self.max_length
        ids, mask = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
        cut = np.zeros(shape[0], np.int64)
        for i, caption in enumerate(captions):
            encoding = self._encode(caption, i)
            found = encoding.ids
            start = self.max_length - len(found) if self._left else 0
            place = slice(start, start + len(found))
            ids[i, place] = found
            mask[i, place] = 1
            cut[i] = sum(len(rest.ids) - self._special for rest in encoding.overflowing)
        return Tokens(*map(torch.from_numpy, (ids, mask, cut)))

    @property
    def about(self) -> dict[str, Any]:
        """All that the ids depend on but the caption, as JSON holds it."""
        return {
            "rules": self.digest,
            "max_length": self.max_length,
            "special_tokens": self.add_special_tokens,
            "pad": self._pad,
            "padding_side": "left" if self._left else "right",
            "truncation_side": self._backend.truncation["direction"],
        }

    def _encode(self, caption: str, number: int) -> Any:
        try:
            return self._backend.encode(caption, add_special_tokens=self.add_special_tokens)
        except TypeError as error:  # lone surrogates; something that is no str
            bad = ValueError(f"no text that can be written in UTF-8: {caption!r:.200}")
            bad.caption = number  # type: ignore[attr-defined]
            raise bad from error


def _check_vocabulary(tokenizer: Any) -> None:
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) - {"▁"}
    if not words:
        raise ValueError(
            f"the {type(tokenizer).__name__} knows no words: transformers makes such an empty "
            "tokenizer, without an error, where it finds no files"
        )

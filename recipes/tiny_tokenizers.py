"""Small tokenizers of transformers' own classes, that know the words of drawn shapes.

All other words are spelled in letters, or bytes: real in every rule, tiny in vocabulary. They are
put together by hand, since the trainers of the tokenizers package give other merges and pieces in
every process.
"""

from collections import Counter
from importlib import import_module
from itertools import pairwise
from typing import Any

from .make_shapes import COLOURS, PLACES, SCALES, SHAPES

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'()-"


def tiny_clip_tokenizer(*, pad_token: str = "<|endoftext|>") -> Any:
    """Return a CLIPTokenizer of some 700 tokens, 77 ids long at most.

    Args:
        pad_token: CLIP-L pads with the end token; OpenCLIP's bigG, of SDXL and SD3, with "!".
    """
    from tokenizers import pre_tokenizers

    transformers: Any = import_module("transformers")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(_words())
    # OpenAI's order: bytes ("!" is the first), bytes that end a word, merges, special tokens.
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *map("".join, merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=77,
    )


def tiny_t5_tokenizer() -> Any:
    """Return a T5TokenizerFast of some 250 tokens, the 100 sentinels of T5 included."""
    transformers: Any = import_module("transformers")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -6.0) for letter in LETTERS]
    pieces += [(f"▁{word}", -4.0) for word in _words()]
    return transformers.T5TokenizerFast(vocab=pieces, extra_ids=100, model_max_length=512)


def _words() -> list[str]:
    texts = ["a photo of the background", *SCALES, *COLOURS, *SHAPES, *PLACES]
    return list(dict.fromkeys(" ".join(texts).replace("-", " ").split()))


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Return byte pair merges (Sennrich et al., 2016) that make each word one token.

    The most frequent pair first; of equally frequent ones the first in the alphabet.
    """
    parts = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while counts := Counter(pair for part in parts for pair in pairwise(part)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        parts = [_merge(part, best) for part in parts]
    return merges


def _merge(part: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in part:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged

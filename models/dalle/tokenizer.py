"""Texts as ids for DALL-E, where 0 is padding and nothing else."""

import gzip
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PADDING_NAMES = frozenset({"<pad>", "[PAD]", "<|pad|>"})
CLIP_MERGES = 48_894
"""Merges of CLIP's vocabulary of 49,408: 512 letters, these, and two marks."""
CLIP_SPLIT = (
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # as OpenAI's tokenizer splits
)


class TextTokenizer:
    """Makes ids of texts and texts of ids, by a tokenizer of the tokenizers package.

    The ids of the tokenizer are moved up by one, unless its id 0 is padding already. Names of
    special tokens in a text are text. `DalleTransform.from_file` gives the same ids, with
    ``reserve_padding`` as it is here.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``.

    Attributes:
        vocab_size: What DALL-E takes as ``num_text_tokens``.
        reserve_padding: Whether ids are moved up by one.
        texts_cut: How many texts were cut so far.
        tokens_cut: How many tokens they lost.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self.reserve_padding = self._tokenizer.id_to_token(0) not in PADDING_NAMES
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest < 1:
            raise ValueError("the tokenizer knows no words")
        self.vocab_size = largest + 1 + self.reserve_padding
        self.texts_cut = self.tokens_cut = 0

    @classmethod
    def from_captions(cls, captions: Iterable[str], vocab_size: int = 8192) -> "TextTokenizer":
        """Return a tokenizer whose vocabulary is learnt from captions: lower case, byte pairs.

        Every text can be written with it, and read again, since all bytes are words of it.

        Args:
            captions: What it learns from; the same captions give the same tokenizer.
            vocab_size: Ids at most, padding included; at least 257.

        Raises:
            ValueError: If ``vocab_size`` is too small.
        """
        if vocab_size < 257:
            raise ValueError(f"vocab_size must be at least 257, for all bytes; got {vocab_size}")
        import tokenizers

        byte_level: Any = tokenizers.pre_tokenizers.ByteLevel
        learnt = tokenizers.Tokenizer(tokenizers.models.BPE())
        learnt.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
        )
        learnt.pre_tokenizer = byte_level(add_prefix_space=True)
        learnt.decoder = tokenizers.decoders.Sequence(
            [tokenizers.decoders.ByteLevel(), tokenizers.decoders.Strip(" ", 1, 0)]
        )
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=sorted(byte_level.alphabet()),
            show_progress=False,
        )
        learnt.train_from_iterator(captions, trainer)
        rules = json.loads(learnt.to_str())
        # A word that no merge makes: no text can hold it.
        rules["model"]["vocab"] = {
            "<pad>": 0,
            **{word: number + 1 for word, number in rules["model"]["vocab"].items()},
        }
        return cls(tokenizers.Tokenizer.from_str(json.dumps(rules)))

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> "TextTokenizer":
        """Return the tokenizer of a ``tokenizer.json`` of Hugging Face.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no tokenizer.
        """
        import tokenizers

        text = Path(path).read_text(encoding="utf-8")
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the Rust half raises bare exceptions
            raise ValueError(f"{fspath(path)} holds no tokenizer: {error}") from error
        return cls(tokenizer)

    @classmethod
    def from_clip_bpe(cls, path: str | PathLike[str]) -> "TextTokenizer":
        """Return CLIP's tokenizer, from OpenAI's ``bpe_simple_vocab_16e6.txt`` or its ``.gz``.

        As in OpenAI's, text is brought to lower case; its repair by ftfy and of HTML's signs is
        left out.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no merges.
        """
        import tokenizers

        merges = list(_merges(Path(path)))
        letters = _byte_letters()
        words = [*letters, *(letter + "</w>" for letter in letters)]
        words += ["".join(pair) for pair in merges]
        words += ["<|startoftext|>", "<|endoftext|>"]
        vocabulary = {word: i for i, word in enumerate(words)}
        try:
            model: Any = tokenizers.models.BPE(
                vocab=vocabulary,
                merges=merges,
                unk_token="<|endoftext|>",
                continuing_subword_prefix="",
                end_of_word_suffix="</w>",
            )
        except Exception as error:  # the Rust half raises bare exceptions
            raise ValueError(f"{fspath(path)}: these merges make no vocabulary: {error}") from error
        tokenizer = tokenizers.Tokenizer(model)
        normalizers, splitters = tokenizers.normalizers, tokenizers.pre_tokenizers
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.NFC(),
                normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
                normalizers.Lowercase(),
            ]
        )
        tokenizer.pre_tokenizer = splitters.Sequence(
            [
                splitters.Split(tokenizers.Regex(CLIP_SPLIT), "removed", invert=True),
                splitters.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = tokenizers.decoders.Sequence(
            [
                tokenizers.decoders.ByteLevel(),
                tokenizers.decoders.Replace("</w>", " "),
                tokenizers.decoders.Strip(" ", 0, 1),
            ]
        )
        return cls(tokenizer)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a ``tokenizer.json``."""
        folder = Path(path).absolute().parent
        handle, new = tempfile.mkstemp(dir=folder, suffix=".new")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(self._tokenizer.to_str(pretty=True))
        os.replace(new, path)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, all of them and none of padding."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        # A vocabulary of whole words gives padding for its name in a text: no word, so left out.
        return [i + 1 for i in ids] if self.reserve_padding else [i for i in ids if i != 0]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; padding is passed over."""
        words = [i - self.reserve_padding for i in ids if i != 0]
        return str(self._tokenizer.decode(words, skip_special_tokens=False))

    def tokenize(
        self, texts: str | Sequence[str], context_length: int = 256, truncate_text: bool = False
    ) -> Tensor:
        """Return the ids of texts, int64 [B, context_length], filled up with 0.

        Args:
            texts: A text or many.
            context_length: Ids of each.
            truncate_text: Cut what is too long, and count it (``texts_cut``, ``tokens_cut``).

        Raises:
            ValueError: If a text is too long, unless it may be cut; the error has the text.
        """
        texts = [texts] if isinstance(texts, str) else texts
        out = torch.zeros(len(texts), context_length, dtype=torch.long)
        for i, text in enumerate(texts):
            ids = self.encode(text)
            over = len(ids) - context_length
            if over > 0:
                if not truncate_text:
                    raise ValueError(
                        f"text {i} has {len(ids)} tokens, {context_length} fit: "
                        f"{text!r:.500}; truncate_text=True cuts it"
                    )
                self.texts_cut += 1
                self.tokens_cut += over
            out[i, : len(ids)] = torch.tensor(ids[:context_length])
        return out


def _merges(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a file of merges, whose first line is a heading."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    lines = data.decode("utf-8").split("\n")[1 : CLIP_MERGES + 1]
    for number, line in enumerate(lines, 2):
        if not line and number > 2:
            return
        pair = line.split()
        if len(pair) != 2:
            raise ValueError(f"{path}, line {number}: expected two parts of a word, got {line!r}")
        yield pair[0], pair[1]


def _byte_letters() -> list[str]:
    """Return the letter that stands for each byte, in the order of CLIP's vocabulary.

    Bytes that print stand for themselves; the others for the code points from 256 on (the byte
    pair encoding of GPT-2).
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return [chr(byte) for byte in printed] + [chr(256 + i) for i in range(len(others))]

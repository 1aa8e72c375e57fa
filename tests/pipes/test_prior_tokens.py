"""Captions to the tokens of a prior."""

import sys
import types

import pytest
import torch

from penstock.pipes.prior_tokens import LENGTH, PriorTokens


def letters(captions: list[str]) -> torch.Tensor:
    """Return the numbers of the letters, [B, 77]."""
    rows = [[ord(c) for c in caption[:LENGTH].ljust(LENGTH, "\0")] for caption in captions]
    return torch.tensor(rows)


def test_a_function_of_captions() -> None:
    tokens = PriorTokens(letters)(["ab", "c"])
    assert tokens.dtype == torch.int32
    assert tokens.shape == (2, LENGTH)
    assert tokens[:, :3].tolist() == [[97, 98, 0], [99, 0, 0]]


@pytest.mark.parametrize(
    "given", [torch.zeros(2, 77), torch.zeros(77, dtype=torch.int), torch.zeros(3, 77).int()]
)
def test_what_are_no_tokens_is_refused(given: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must return integers \[2, tokens\] for 2 captions; got"):
        PriorTokens(lambda captions: given)(["a", "b"])


def test_a_tokenizer_of_transformers() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<start>": 49406, "<end>": 49407, "a": 5, "red": 6, "kite": 7}
    made = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 49406), ("<end>", 49407)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<end>")
    tokens = PriorTokens(tokenizer)(["a red kite", "a " * 100])
    assert tokens.dtype == torch.int32
    # Filled up with 0, which is how the prior knows padding, not with the tokenizer's own.
    assert tokens[0].tolist() == [49406, 5, 6, 7, 49407, *[0] * 72]
    assert tokens[1].tolist() == [49406, *[5] * 75, 49407]


def test_openai_clip_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = types.ModuleType("clip")

    def tokenize(captions: list[str], truncate: bool = False) -> torch.Tensor:
        assert truncate
        return letters(captions)

    clip.tokenize = tokenize  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "clip", clip)
    assert PriorTokens()(["a"])[0, 0] == 97


@pytest.mark.parametrize("other", [None, types.ModuleType("clip")])
def test_without_a_tokenizer_it_says_what_to_pass(
    monkeypatch: pytest.MonkeyPatch, other: types.ModuleType | None
) -> None:
    monkeypatch.setitem(sys.modules, "clip", other)  # not installed, or another package
    with pytest.raises(ImportError, match="captions need a tokenizer: pass tokenize="):
        PriorTokens()(["a"])

"""Ids are transformers' own, whatever the caption; and forking after it is quiet."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock.transforms
from penstock.transforms.fast_tokenizer import FastTokenizer


def golden(tokenizer, captions, length, **more):
    return tokenizer(
        captions,
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
        **more,
    )


def untruncated(tokenizer, caption):
    return len(tokenizer(caption, truncation=False, verbose=False)["input_ids"])


@pytest.mark.parametrize(
    ("name", "length"),
    [("clip", 77), ("clip_g", 77), ("t5", 256), ("t5", 512), ("clip", 3), ("t5", 2)],
)
def test_the_same_as_transformers(request, captions, name, length):
    tokenizer = request.getfixturevalue(name)
    tokens = FastTokenizer(tokenizer, length)(captions)
    expected = golden(tokenizer, captions, length)
    assert torch.equal(tokens.ids, expected["input_ids"])
    assert torch.equal(tokens.attention_mask, expected["attention_mask"])
    assert tokens.ids.dtype == tokens.attention_mask.dtype == tokens.cut.dtype == torch.int64
    cut = [max(0, untruncated(tokenizer, caption) - length) for caption in captions]
    assert tokens.cut.tolist() == cut
    assert max(cut) > 0 == min(cut)


@settings(deadline=None, max_examples=150)
@given(caption=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_the_same_on_any_text(clip, t5, caption):
    for tokenizer, length in ((clip, 20), (t5, 30)):
        tokens = FastTokenizer(tokenizer, length)([caption])
        expected = golden(tokenizer, [caption], length)
        assert torch.equal(tokens.ids, expected["input_ids"])
        assert torch.equal(tokens.attention_mask, expected["attention_mask"])
        assert tokens.cut.item() == max(0, untruncated(tokenizer, caption) - length)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("truncation", ["left", "right"])
def test_sides_are_the_tokenizers_own(t5, captions, padding, truncation):
    sided = pickle.loads(pickle.dumps(t5))
    sided.padding_side, sided.truncation_side = padding, truncation
    for special in (True, False):
        tokens = FastTokenizer(sided, 24, add_special_tokens=special)(captions)
        expected = golden(sided, captions, 24, add_special_tokens=special)
        assert torch.equal(tokens.ids, expected["input_ids"])
        assert torch.equal(tokens.attention_mask, expected["attention_mask"])


def test_the_tokenizer_that_it_came_from_is_left_as_it_was(clip, captions):
    before = clip.backend_tokenizer.to_str()
    fast = FastTokenizer(clip, 12)
    fast(captions)
    assert clip.backend_tokenizer.to_str() == before
    clip(captions, truncation=True, max_length=5, padding=True)
    assert fast(captions).ids.shape == (len(captions), 12)
    clip.backend_tokenizer.no_padding()
    clip.backend_tokenizer.no_truncation()


def test_no_captions_at_all(clip):
    assert FastTokenizer(clip, 77)([]).ids.shape == (0, 77)


def test_in_a_process_of_its_own_it_needs_no_transformers_and_starts_no_threads(
    t5, captions, tmp_path
):
    # A batch call of the tokenizers package starts a pool of threads; a fork after that is what
    # warns, and did deadlock.
    fast = FastTokenizer(t5, 256)
    np.save(tmp_path / "ids.npy", fast(captions * 8).ids.numpy())
    code = f"""
import os, pickle, sys
import numpy as np
fast = pickle.loads({pickle.dumps(fast)!r})
threads = len(os.listdir("/proc/self/task"))
ids = fast({captions * 8!r}).ids
assert len(os.listdir("/proc/self/task")) == threads
assert (ids.numpy() == np.load("ids.npy")).all()
assert "transformers" not in sys.modules
assert fast.digest == {fast.digest!r}
"""
    root = Path(penstock.transforms.__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "RAYON_NUM_THREADS": "4"}
    env.pop("TOKENIZERS_PARALLELISM", None)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)


def check_in_child(made, captions, before):
    for fast, ids in zip(made, before, strict=True):
        # By numpy: torch's OpenMP is what a bare fork does not survive.
        assert (fast(captions).ids.numpy() == ids).all()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_children_forked_after_use_are_quiet_and_alive(clip, t5, captions, capfd):
    made = [FastTokenizer(clip, 77), FastTokenizer(t5, 512)]
    before = [fast(captions * 8).ids.numpy() for fast in made]
    capfd.readouterr()
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=check_in_child, args=(made, captions * 8, before))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert capfd.readouterr() == ("", "")


def test_the_digest_tells_tokenizers_apart(clip, clip_g, t5):
    digests = {name: FastTokenizer(t, 20).digest for name, t in (("c", clip), ("t", t5))}
    assert digests["c"] != digests["t"]
    assert FastTokenizer(clip, 30).digest == digests["c"]
    assert len(digests["c"]) == 64


@pytest.mark.parametrize("bad", ["a \ud800 surrogate", None, 3])
def test_what_is_no_text_is_refused(clip, bad):
    with pytest.raises(ValueError, match="no text that can be written in UTF-8") as info:
        FastTokenizer(clip, 77)(["fine", bad])
    assert info.value.caption == 1


def test_other_things_than_fast_tokenizers_are_refused(clip, t5):
    from transformers import CLIPTokenizer, T5TokenizerFast

    with pytest.raises(TypeError, match="must be a fast one of transformers.*got function"):
        FastTokenizer(lambda text: [1], 77)
    for empty in (CLIPTokenizer(), T5TokenizerFast()):
        with pytest.raises(ValueError, match="knows no words"):
            FastTokenizer(empty, 77)
    for tokenizer, least in ((clip, 2), (t5, 1)):
        with pytest.raises(ValueError, match=f"{least} special tokens, got {least}"):
            FastTokenizer(tokenizer, least)
    without = pickle.loads(pickle.dumps(t5))
    without.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        FastTokenizer(without, 77)
    splitting = pickle.loads(pickle.dumps(t5))
    splitting.split_special_tokens = True
    with pytest.raises(ValueError, match="split_special_tokens"):
        FastTokenizer(splitting, 77)


def test_the_digest_is_that_of_the_rules_and_not_of_what_was_done_before(clip, t5):
    for tokenizer in (clip, t5):
        tokenizer = copy.deepcopy(tokenizer)
        before = FastTokenizer(tokenizer, 8)
        tokenizer(["a ring"], padding="max_length", truncation=True, max_length=9)
        after = FastTokenizer(tokenizer, 8)
        assert before.digest == after.digest
        assert before.about == after.about
    assert FastTokenizer(clip, 8).digest != FastTokenizer(t5, 8).digest


def test_about_tells_all_that_ids_depend_on(t5):
    base = FastTokenizer(t5, 8).about
    assert FastTokenizer(t5, 9).about == {**base, "max_length": 9}
    assert FastTokenizer(t5, 8, pad=5).about == {**base, "pad": 5}
    plain = FastTokenizer(t5, 8, add_special_tokens=False)
    assert plain.about == {**base, "special_tokens": False}
    for side in ("padding_side", "truncation_side"):
        other = copy.deepcopy(t5)
        setattr(other, side, "left")
        assert FastTokenizer(other, 8).about == {**base, side: "left"}

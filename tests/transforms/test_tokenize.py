import pickle

import numpy as np
import pytest
import torch

from penstock.transforms import ClipTokenize, T5Tokenize
from penstock.transforms.draws import draw_key


def test_clip_fields(clip, captions, make_batch_of):
    batch = make_batch_of(captions)
    before = dict(batch)
    out = ClipTokenize(clip)(batch)
    expected = clip(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    assert torch.equal(out["clip_tokens"], expected["input_ids"])
    assert torch.equal(out["clip_attention_mask"], expected["attention_mask"])
    assert out["clip_cut"].shape == (len(captions),)
    assert set(out) == {*before, "clip_tokens", "clip_attention_mask", "clip_cut"}
    assert all(out[name] is before[name] for name in before)
    assert batch == before


@pytest.mark.parametrize("length", [256, 512])
def test_t5_fields(t5, captions, make_batch_of, length):
    out = T5Tokenize(t5, max_length=length)(make_batch_of(captions))
    expected = t5(
        captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    assert torch.equal(out["t5_tokens"], expected["input_ids"])
    assert torch.equal(out["t5_attention_mask"], expected["attention_mask"])
    assert out["t5_tokens"].shape == (len(captions), length)


def test_defaults_are_the_models(clip, t5):
    assert ClipTokenize(clip).tokens.max_length == 77
    assert T5Tokenize(t5).tokens.max_length == 512


def test_names_and_fields(clip, make_batch_of):
    batch = make_batch_of(["a ring"])
    batch["short"] = ["a star"]
    out = ClipTokenize(clip, name="clip_g", field="short", max_length=9)(batch)
    expected = clip(["a star"], padding="max_length", max_length=9, return_tensors="pt")
    assert torch.equal(out["clip_g_tokens"], expected["input_ids"])


def test_from_pretrained(checkpoint, clip, t5, captions, make_batch_of):
    batch = make_batch_of(captions)
    one = ClipTokenize.from_pretrained(checkpoint, subfolder="tokenizer", max_length=20, name="c")
    assert torch.equal(
        one(batch)["c_tokens"], ClipTokenize(clip, max_length=20)(batch)["clip_tokens"]
    )
    two = T5Tokenize.from_pretrained(checkpoint / "tokenizer_2", field="caption")
    assert torch.equal(two(batch)["t5_tokens"], T5Tokenize(t5)(batch)["t5_tokens"])


def test_dropped_captions_are_empty_ones(t5, make_batch_of, rng):
    captions = ["a large red circle"] * 400
    out = T5Tokenize(t5, max_length=16, drop=0.3)(make_batch_of(captions), rng)
    dropped = out["t5_dropped"]
    assert dropped.dtype == torch.bool
    assert 80 < dropped.sum() < 160
    for flag, caption in ((True, ""), (False, "a large red circle")):
        expected = t5([caption], padding="max_length", max_length=16, return_tensors="pt")
        assert out["t5_tokens"][dropped == flag].eq(expected["input_ids"]).all()
        assert out["t5_attention_mask"][dropped == flag].eq(expected["attention_mask"]).all()
    assert out["caption"] == captions


def test_draws_depend_on_the_batch_and_the_name_alone(clip, make_batch_of):
    def dropped(key, **more):
        drop = ClipTokenize(clip, max_length=5, drop=0.5, **more)
        name = more.get("name", "clip")
        batch = make_batch_of(["a ring"] * 64)
        rng = np.random.Generator(np.random.Philox(key=key))
        return drop(batch, rng=rng)[f"{name}_dropped"].tolist()

    first = dropped(1)
    np.random.seed(0)
    torch.manual_seed(0)
    assert dropped(1) == first
    assert dropped(2) != first
    assert dropped(1, name="clip_g") != first


@pytest.mark.parametrize(("p", "count"), [(0.0, 0), (1.0, 50)])
def test_all_or_none(clip, make_batch_of, rng, p, count):
    out = ClipTokenize(clip, drop=p)(make_batch_of(["a ring"] * 50), rng)
    assert sum(out.get("clip_dropped", torch.zeros(50))) == count
    assert ("clip_dropped" in out) == (p > 0)


def test_what_is_dropped_is_not_cut(t5, make_batch_of, rng):
    out = T5Tokenize(t5, max_length=3, drop=1.0)(make_batch_of(["a large red circle"]), rng)
    assert out["t5_cut"].tolist() == [0]


def test_drop_needs_draws(clip, make_batch_of):
    with pytest.raises(ValueError, match="give rng="):
        ClipTokenize(clip, drop=0.1)(make_batch_of(["a"]))
    ClipTokenize(clip)(make_batch_of(["a"]))


def test_they_pickle(clip, captions, make_batch_of, rng):
    made = ClipTokenize(clip, drop=0.5)
    key = draw_key(rng)
    batch = make_batch_of(captions)
    one, two = (t.fields(batch, key) for t in (made, pickle.loads(pickle.dumps(made))))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_bad_arguments_are_refused(clip, t5):
    with pytest.raises(ValueError, match=r"max_length is 78.*has only 77 positions"):
        ClipTokenize(clip, max_length=78)
    with pytest.raises(ValueError, match="drop of t5 must be a probability"):
        T5Tokenize(t5, drop=1.5)
    with pytest.raises(ValueError, match="special tokens, got 0"):
        T5Tokenize(t5, max_length=0)


def test_bad_batches_are_refused(clip, make_batch_of):
    t = ClipTokenize(clip)
    batch = make_batch_of(["a", "b \ud800", "c"])
    with pytest.raises(
        ValueError, match=r"sample '0001' of shards/00000.tar: its caption is no text.*ud800"
    ):
        t(batch)
    with pytest.raises(ValueError, match="is no text"):
        t({"caption": [b"bytes"]} | {"__key__": ["k"], "__url__": ["u"]})
    with pytest.raises(ValueError, match=r"no field 'caption', only \['image'\]"):
        t({"image": 1})
    with pytest.raises(ValueError, match="must be a list of texts, got str"):
        t({"caption": "one"})

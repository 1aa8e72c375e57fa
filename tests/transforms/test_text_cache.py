"""Each caption is encoded once, and anew only where something that it depends on has changed."""

import copy
import pickle

import numpy as np
import pytest
import torch

from penstock.pipes import EntryStore
from penstock.recipes.tiny_flux import tiny_flux_pipeline
from penstock.transforms import CutReport, T5Tokenize, TextCache, TextEncoder
from penstock.transforms.fast_tokenizer import FastTokenizer

LENGTH = 24
CAPTIONS = ["a red ring", "a blue star", "", "a red ring", "a small green square at the top left"]


class Counting:
    """A text encoder's function that knows what it was asked."""

    def __init__(self):
        self.captions = 0
        self.calls = 0

    def __call__(self, ids, mask):
        self.captions += len(ids)
        self.calls += 1
        steps = torch.arange(1, 5)
        made = torch.sin(ids[..., None] * steps / 7)
        return {
            "embeds": made if mask is None else made * mask[..., None],
            "pooled": made.mean(1),
        }


@pytest.fixture
def model():
    return Counting()


@pytest.fixture
def make_cache(tmp_path, model, t5):
    def make(**more):
        kind = {"mask": "ignored", "dtype": torch.float32, "fingerprint": "one", "max_batch": 3}
        kind |= {k: more.pop(k) for k in list(more) if k in kind}
        store = more.pop("store", None) or EntryStore(tmp_path / "cache")
        encoder = TextEncoder(model, more.pop("tokenizer", t5), max_length=LENGTH, **kind)
        return TextCache(store, encoder, **more)

    return make


def uncached(cache, captions, model=None):
    tokens = cache.tokens.tokens(captions)
    attends = cache.encoder.about["attends"] == "tokens"
    made = (model or Counting())(tokens.ids, tokens.attention_mask if attends else None)
    return made, tokens


def check(out, cache, captions, error=0.0):
    made, tokens = uncached(cache, captions)
    for name, value in made.items():
        if error:
            assert (out[f"t5_{name}"] - value).norm() < error * value.norm()
        else:
            assert torch.equal(out[f"t5_{name}"], value)
    assert torch.equal(out["t5_attention_mask"], tokens.attention_mask)
    assert torch.equal(out["t5_cut"], tokens.cut)


def run(cache, batch, **more):
    return cache.fill(cache.lookup(batch, **more))


@pytest.mark.parametrize("policy", ["full", "trimmed", "float8", "ids"])
def test_cached_is_uncached(make_cache, model, make_batch_of, policy, monkeypatch):
    mask = "both" if policy == "trimmed" else "ignored"
    error = 0.05 if policy == "float8" else 0
    batch = make_batch_of(CAPTIONS)
    cache = make_cache(bytes=policy, mask=mask)
    first = run(cache, batch)
    check(first, cache, CAPTIONS, error)
    assert set(first) == {
        *batch, "__t5__", "t5_embeds", "t5_pooled", "t5_attention_mask", "t5_cut"
    }  # fmt: skip
    assert all(first[name] is batch[name] for name in batch)
    assert model.captions == 4  # "a red ring" once
    assert cache.store.sizes()[0] == 4
    assert (cache.hits, cache.misses) == (1, 4)

    def fail(*_):
        raise AssertionError("a caption that is there must not be tokenized")

    monkeypatch.setattr(FastTokenizer, "__call__", fail)
    model.captions = 0
    again = run(cache, batch)
    for name in first:
        if isinstance(first[name], torch.Tensor):
            assert torch.equal(again[name], first[name]), name
            assert again[name].dtype == first[name].dtype
    assert model.captions == (4 if policy == "ids" else 0)
    assert cache.store.sizes()[0] == 4
    mixed = [*CAPTIONS[:2], "new", *CAPTIONS[2:], "new"]
    monkeypatch.undo()
    model.captions = 0
    check(run(cache, make_batch_of(mixed)), cache, mixed, error)
    assert model.captions == (5 if policy == "ids" else 1)


def test_what_a_miss_gives_is_what_is_stored(make_cache, make_batch_of):
    """The first time and the next ones are the same: rounded as stored."""
    for policy, dtype in (("float8", torch.float32), ("full", torch.bfloat16)):
        cache = make_cache(bytes=policy, dtype=dtype)
        one, two = (run(cache, make_batch_of(CAPTIONS)) for _ in range(2))
        assert one["t5_embeds"].dtype == dtype
        for name in ("t5_embeds", "t5_pooled"):
            assert torch.equal(one[name], two[name])


# What changes, and whether all entries depend on it.
CHANGES = {
    "weights": {"fingerprint": "two"},
    "mask": {"mask": "both"},
    "padding": {"mask": "zeroed"},
    "dtype": {"dtype": torch.bfloat16},
    "bytes float8": {"bytes": "float8"},
    "bytes ids": {"bytes": "ids"},
    "name": {"name": "other"},
}
NOTHING = {
    "max_batch": {"max_batch": 100},
    "drop": {"drop": 1e-12},
    "field": {"field": "again"},
    "hold": {"hold": "memory"},
}


@pytest.mark.parametrize("change", [*CHANGES, *NOTHING])
def test_what_is_made_anew(make_cache, model, make_batch_of, rng, change):
    batch = make_batch_of(CAPTIONS)
    batch["again"] = CAPTIONS
    run(make_cache(), batch)
    assert make_cache().explain("a red ring") == "caption 'a red ring': cached"
    model.captions = 0
    changed = make_cache(**(CHANGES | NOTHING)[change])
    told = changed.explain("a red ring")
    run(changed, batch, rng=rng)
    if change in NOTHING:
        assert model.captions == 0
        assert told.endswith("cached")
        return
    assert model.captions == 4
    model.captions = 0
    run(make_cache(), batch)  # what was there is there
    assert model.captions == 0
    words = {
        "weights": "the text encoder's weights or settings (encoder.weights) was one, and is two",
        "mask": "what it attends to (encoder.attends) was all, and is tokens",
        "padding": "what becomes of padding (encoder.padding) was kept, and is zeroed",
        "dtype": "the dtype that is kept (encoder.stored) was float32, and is bfloat16",
        "bytes float8": "what is kept (bytes) was full, and is float8",
        "bytes ids": "what is kept (bytes) was full, and is ids",
        "name": "not seen before",
    }
    assert told == f"caption 'a red ring': {words[change]}"


def test_one_caption_of_many(make_cache, model, make_batch_of):
    cache = make_cache()
    run(cache, make_batch_of(CAPTIONS))
    model.captions = 0
    for caption in ("a red ring ", "A red ring", "a red rings", "e\u0301", "\u00e9"):
        changed = [*CAPTIONS[1:], caption]
        assert cache.explain(caption) == f"caption {caption!r}: not seen before"
        check(run(cache, make_batch_of(changed)), cache, changed)
    assert model.captions == 5


def test_the_tokenizer_and_the_length_count(make_cache, model, make_batch_of, t5, clip, tmp_path):
    run(make_cache(), make_batch_of(CAPTIONS))
    model.captions = 0
    others = [clip, copy.deepcopy(t5), copy.deepcopy(t5)]
    others[1].add_tokens(["ring"])
    others[2].padding_side = "left"
    for other in others:
        cache = make_cache(tokenizer=other)
        assert "encoder.tokenizer" in cache.explain("a red ring")
        check(run(cache, make_batch_of(CAPTIONS)), cache, CAPTIONS)
    assert model.captions == 12
    longer = TextEncoder(model, t5, max_length=LENGTH + 1, dtype=torch.float32, fingerprint="one")
    cache = TextCache(EntryStore(tmp_path / "cache"), longer)
    assert "the ids per caption (encoder.tokenizer.max_length) was 24, and is 25" in cache.explain(
        ""
    )
    check(run(cache, make_batch_of(CAPTIONS)), cache, CAPTIONS)
    assert model.captions == 16


@pytest.mark.slow
def test_real_models_weights_and_outputs_count(tmp_path, make_batch_of):
    pipe = tiny_flux_pipeline()
    nudged = tiny_flux_pipeline()
    with torch.no_grad():
        weight = nudged.text_encoder_2.encoder.block[1].layer[0].SelfAttention.q.weight
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    half = tiny_flux_pipeline().text_encoder_2.to(torch.bfloat16)
    calls = []
    for model in (pipe.text_encoder_2, nudged.text_encoder_2, half):
        model.register_forward_pre_hook(
            lambda module, _, given: calls.append(len(given["input_ids"])), with_kwargs=True
        )

    def encoded(model, **more):
        calls.clear()
        given = {"max_length": LENGTH, "output": "last_hidden_state", **more}
        encoder = TextEncoder(model, pipe.tokenizer_2, **given)
        cache = TextCache(EntryStore(tmp_path), encoder)
        told = cache.explain(CAPTIONS[0])
        run(cache, make_batch_of(CAPTIONS))
        return sum(calls), told

    assert encoded(pipe.text_encoder_2)[0] == 4
    assert encoded(pipe.text_encoder_2) == (0, "caption 'a red ring': cached")
    for model, more, words in (
        (nudged.text_encoder_2, {}, "weights or settings"),
        (half, {}, "the dtype that it computes in"),
        (pipe.text_encoder_2, {"output": "hidden_states[-2]"}, "encoder.outputs.embeds"),
        (pipe.text_encoder_2, {"mask": "encoder"}, "what it attends to"),
    ):
        count, told = encoded(model, **more)
        assert count == 4
        assert words in told
        assert encoded(model, **more)[0] == 0
    # Only what is trained on the outputs is another.
    assert encoded(pipe.text_encoder_2, mask="both")[0] == 0


@pytest.mark.parametrize("policy", ["full", "trimmed", "float8", "ids"])
@pytest.mark.parametrize("hold", ["memory", "device"])
def test_held_entries_are_read_once(make_cache, make_batch_of, policy, hold, monkeypatch):
    more = {"bytes": policy, "mask": "both"}
    expected = run(make_cache(**more), make_batch_of(CAPTIONS))
    cache = make_cache(**more, hold=hold)
    reads = []
    read = EntryStore.read
    monkeypatch.setattr(EntryStore, "read", lambda s, name: reads.append(name) or read(s, name))
    for _ in range(3):
        looked = cache.lookup(make_batch_of(CAPTIONS))
        assert looked["t5"] == [None] * 5  # names alone are sent
        out = cache.fill(looked)
        for name in ("t5_embeds", "t5_pooled", "t5_cut", "t5_attention_mask"):
            assert torch.equal(out[name], expected[name])
    assert len(reads) == len(set(reads)) == 4
    assert cache.misses == 0


def test_over_the_limit_it_goes_on(make_cache, make_batch_of):
    expected = run(make_cache(bytes="trimmed", mask="both"), make_batch_of(CAPTIONS))
    small = make_cache(bytes="trimmed", mask="both", hold="memory", limit=300)
    with pytest.warns(UserWarning, match="limit=300 bytes"):
        out = run(small, make_batch_of(CAPTIONS))
    assert torch.equal(out["t5_embeds"], expected["t5_embeds"])


def test_drops_are_those_of_the_tokenizers(make_cache, make_batch_of, t5):
    captions = ["a red ring", "a blue star"] * 200
    batch = make_batch_of(captions, 1, 1)

    def draws(key):
        return np.random.Generator(np.random.Philox(key=key))

    tokens = T5Tokenize(t5, max_length=LENGTH, drop=0.3)
    cache = make_cache(drop=0.3)
    empty = run(make_cache(), make_batch_of([""]))["t5_embeds"][0]
    total = 0
    for key in range(30):  # 12,000 draws
        expected = tokens(batch, draws(key))["t5_dropped"]
        out = run(cache, batch, rng=draws(key))
        assert torch.equal(out["t5_dropped"], expected)
        rows = (out["t5_embeds"] == empty).all(-1).all(-1)
        assert torch.equal(rows, expected)
        assert out["caption"] == captions
        total += int(expected.sum())
    # Four standard deviations of 12,000 draws are 201; a chance of 0.35 would be 600 off.
    assert abs(total - 3600) < 201
    assert cache.store.sizes()[0] == 3
    with pytest.raises(ValueError, match="give rng="):
        cache.lookup(batch)


def test_without_the_encoder(make_cache, make_batch_of, tmp_path):
    store = EntryStore(tmp_path / "cache")
    with pytest.raises(ValueError, match="tells of no encoder for 't5'"):
        TextCache(store, None)
    expected = run(make_cache(bytes="float8"), make_batch_of(CAPTIONS))
    alone = TextCache(EntryStore(tmp_path / "cache"), None, bytes="float8")
    out = run(alone, make_batch_of(CAPTIONS))
    for name in ("t5_embeds", "t5_pooled", "t5_cut", "t5_attention_mask"):
        assert torch.equal(out[name], expected[name])
    with pytest.raises(
        ValueError, match=r"'new' is not in the cache, and there is no encoder.*not"
    ):
        run(alone, make_batch_of(["new"]))
    full = TextCache(EntryStore(tmp_path / "cache"), None)
    with pytest.raises(ValueError, match=r"what is kept \(bytes\) was float8, and is full"):
        run(full, make_batch_of(CAPTIONS))
    with pytest.raises(ValueError, match="it needs the encoder"):
        TextCache(store, None, bytes="ids")
    run(make_cache(fingerprint="two"), make_batch_of(CAPTIONS))
    with pytest.raises(ValueError, match="has entries of 2 encoders"):
        TextCache(EntryStore(tmp_path / "cache"), None)


def test_workers_get_no_model(make_cache, make_batch_of, model):
    cache = make_cache()
    run(cache, make_batch_of(CAPTIONS[:2]))
    worker = pickle.loads(pickle.dumps(cache))
    assert worker.encoder is None
    assert b"Counting" not in pickle.dumps(cache)
    looked = worker.lookup(make_batch_of(CAPTIONS))
    assert [record["hit"] for record in looked["__t5__"]] == [True, True, False, True, False]
    check(cache.fill(pickle.loads(pickle.dumps(looked))), cache, CAPTIONS)


def test_an_entry_that_came_meanwhile_is_taken(make_cache, make_batch_of, model):
    cache = make_cache()
    ahead = [cache.lookup(make_batch_of(CAPTIONS)) for _ in range(3)]
    assert all(one["t5"] == [None] * 5 for one in ahead)
    for one in ahead:
        check(cache.fill(one), cache, CAPTIONS)
    assert model.captions == 4


def test_the_error_of_float8(make_cache, make_batch_of, t5):
    cache = make_cache(bytes="float8")
    assert cache.error() is None
    out = run(cache, make_batch_of(CAPTIONS))
    captions = sorted(set(CAPTIONS))
    made, _ = uncached(cache, captions)
    rows = [CAPTIONS.index(caption) for caption in captions]
    errors = []
    for i, row in enumerate(rows):
        lost = torch.cat([(out[f"t5_{k}"][row] - v[i]).flatten() for k, v in made.items()])
        kept = torch.cat([v[i].flatten() for v in made.values()])
        errors.append(float(lost.norm() / kept.norm()))
        about = cache.store.about(f"caption {captions[i]!r}")
        assert about[-1]["error"] == pytest.approx(errors[-1], rel=1e-3)
        assert about[-1]["caption"] == captions[i]
    assert cache.error() == pytest.approx(np.mean(errors), rel=1e-3)
    assert 0 < cache.error(sample=1) < 0.06
    assert make_cache(bytes="full").error() == cache.error()  # of the store's entries


def test_what_was_cut_is_reported_of_hits_too(make_cache, make_batch_of):
    cache = make_cache()
    captions = ["a red ring", "a " * 40]
    for _ in range(2):
        report = CutReport()
        report.add(run(cache, make_batch_of(captions)))
        assert report.cuts["t5"].captions == 1
        assert report.cuts["t5"].tokens == 40 + 1 - LENGTH


def test_vectors_alone_have_no_mask(tmp_path, make_batch_of, clip):
    encoder = TextEncoder(
        lambda ids, mask: ids[:, :3].float(), clip, max_length=9, fingerprint="pooled"
    )
    for policy in ("full", "ids"):
        cache = TextCache(EntryStore(tmp_path), encoder, name="clip", bytes=policy)
        batch = make_batch_of(CAPTIONS)
        for _ in range(2):
            out = run(cache, batch)
            assert set(out) == {*batch, "__clip__", "clip_pooled", "clip_cut"}
            assert out["clip_pooled"].shape == (5, 3)


def test_long_captions_have_sources_apart(make_cache):
    cache = make_cache()
    one, two = (cache._looked("a " * 4000 + end)[0]["source"] for end in ("x", "y"))
    assert one != two
    assert len(one) < 200
    assert one == cache._looked("a " * 4000 + "x")[0]["source"]


def test_bad_arguments_are_refused(make_cache):
    with pytest.raises(ValueError, match="drop of t5 must be a probability"):
        make_cache(drop=2)
    with pytest.raises(ValueError, match="trimmed' would lose something: with mask='ignored'"):
        make_cache(bytes="trimmed")
    with pytest.raises(ValueError, match="bytes must be one of"):
        make_cache(bytes="half")
    with pytest.raises(ValueError, match="hold must be"):
        make_cache(hold="disk")


def test_bad_batches_are_refused(make_cache, make_batch_of):
    cache = make_cache()
    for bad in ("b \ud800", b"bytes", ["a"], None):
        with pytest.raises(
            ValueError, match=r"sample '0001' of shards/00000.tar: its caption is no"
        ):
            cache.lookup({**make_batch_of(["a", "b"]), "caption": ["a", bad]})
    with pytest.raises(ValueError, match="no field 'caption'"):
        cache.lookup({"image": 1})
    with pytest.raises(ValueError, match=r"was not looked up.*chain .transform\(cache.lookup\)"):
        cache.fill(make_batch_of(["a"]))
    assert run(cache, {"caption": ["a"]})["t5_embeds"].shape == (1, LENGTH, 4)

"""Text caches in loaders: looked up by workers, filled where the batches arrive."""

import pytest
import torch

from penstock.pipes import EntryStore, ShardLister, verify_resume
from penstock.recipes.tiny_flux import tiny_flux_pipeline
from penstock.transforms import FluxTransform, TextCache, TextEncoder
from penstock.transforms.fast_tokenizer import FastTokenizer

LENGTH = 40


@pytest.fixture
def few(shards):
    """The first three of the shards: 45 samples."""
    return shards.replace("00005", "00002")


@pytest.fixture(scope="module")
def flux():
    return tiny_flux_pipeline("schnell")


@pytest.fixture
def encoders(flux):
    return (
        TextEncoder.flux_clip(flux.text_encoder, flux.tokenizer, dtype=torch.float32),
        TextEncoder.flux_t5(
            flux.text_encoder_2, flux.tokenizer_2, max_length=LENGTH, dtype=torch.float32
        ),
    )


@pytest.fixture
def calls(flux):
    """How many captions each model was asked for by encoders, not by diffusers."""
    found = {flux.text_encoder: 0, flux.text_encoder_2: 0}

    def count(module, _, given):
        found[module] += len(given.get("input_ids", ()))  # diffusers gives them by position

    hooks = [model.register_forward_pre_hook(count, with_kwargs=True) for model in found]
    yield found
    for hook in hooks:
        hook.remove()


def caches(folder, encoders, **more):
    clip, t5 = (
        TextCache(EntryStore(folder / name), encoder, name=name, **more)
        for name, encoder in zip(("clip", "t5"), encoders or (None, None), strict=True)
    )
    return clip, t5


def build(shards, clip, t5, repeat=False):
    pipe = ShardLister(shards, seed=0).read_tar().shuffle(40).batch(8).lanes(1, repeat=repeat)
    pipe = pipe.decode(32).drop_caption(0.3)
    return pipe.transform(clip.lookup).transform(t5.lookup)


def expected(flux, batch):
    with torch.no_grad():
        clip = flux._get_clip_prompt_embeds(batch["caption"])
        t5 = flux._get_t5_prompt_embeds(batch["caption"], max_sequence_length=LENGTH)
    return {"clip_pooled": clip, "t5_embeds": t5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "kind"), [(0, None), (2, "fork"), (2, "spawn")], ids=["none", "fork", "spawn"]
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_cached_is_uncached(few, flux, encoders, calls, tmp_path, workers, kind):
    clip, t5 = caches(tmp_path, encoders)
    loader = build(few, clip, t5).loader(num_workers=workers, multiprocessing_context=kind)
    device = loader.on_device("cpu", clip.fill, t5.fill)
    seen = set()
    for _ in range(2):
        dropped = 0
        for batch in device:
            seen |= set(batch["caption"])
            dropped += batch["caption"].count("")
            for name, value in expected(flux, batch).items():
                assert torch.equal(batch[name], value), name
        assert 45 * 0.1 < dropped < 45 * 0.5
        # Each caption once by each model; in the second epoch those that were dropped before.
        assert list(calls.values()) == [len(seen)] * 2
        assert [cache.store.sizes()[0] for cache in (clip, t5)] == [len(seen)] * 2
    loader.close()
    assert clip.misses == t5.misses == len(seen)
    assert clip.hits == t5.hits == 2 * 45 - len(seen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_is_there_needs_no_encoder_and_no_tokenizer(
    few, encoders, calls, tmp_path, monkeypatch
):
    """A second run, in which drops fall elsewhere, after one that saw every caption."""
    clip, t5 = caches(tmp_path, encoders)
    pipe = ShardLister(few, seed=0).read_tar().batch(8).lanes(1, repeat=False).decode(32)
    loader = pipe.transform(clip.lookup).transform(t5.lookup).loader()
    first = {}
    for batch in loader.on_device("cpu", clip.fill, t5.fill):
        first |= dict(zip(batch["caption"], batch["t5_embeds"], strict=True))
    empty = t5.fill(t5.lookup({"caption": [""]}))
    first[""] = empty["t5_embeds"][0]
    clip.fill(clip.lookup({"caption": [""]}))
    before = dict(calls)

    def fail(*_):
        raise AssertionError("a caption that is there must not be tokenized")

    monkeypatch.setattr(FastTokenizer, "__call__", fail)
    for given in (encoders, None):
        clip, t5 = caches(tmp_path, given)
        loader = build(few, clip, t5).loader(num_workers=2, multiprocessing_context="fork")
        count = 0
        for batch in loader.on_device("cpu", clip.fill, t5.fill):
            count += len(batch["caption"])
            for caption, embeds in zip(batch["caption"], batch["t5_embeds"], strict=True):
                assert torch.equal(embeds, first[caption])
            assert not [name for name in batch if name in ("clip", "t5")]
        assert count == 45
        assert t5.misses == clip.misses == 0
        assert t5.hits == 45
        loader.close()
    assert calls == before


@pytest.mark.slow
def test_resume_is_exact(few, encoders, tmp_path):
    clip, t5 = caches(tmp_path, encoders, drop=0.2)
    pipe = build(few, clip, t5, repeat=True)
    for _ in zip(pipe.loader().on_device("cpu", clip.fill, t5.fill), range(14), strict=False):
        pass  # all captions are there: what is looked up is the same whoever looks

    def make(workers, rank, ranks):
        return pipe.loader(workers, rank=rank, world_size=ranks)

    verify_resume(make)


@pytest.mark.slow
def test_it_stands_beside_a_models_transform(few, flux, encoders, tmp_path):
    clip, t5 = caches(tmp_path, encoders)
    transform = FluxTransform(flux.tokenizer, flux.tokenizer_2, variant="schnell")
    batch = next(
        iter(
            build(few, clip, t5).transform(transform).loader().on_device("cpu", clip.fill, t5.fill)
        )
    )
    assert batch["image"].dtype == torch.float32
    assert batch["t5_embeds"].shape == (8, LENGTH, 32)
    assert torch.equal(
        batch["t5_attention_mask"],
        t5.tokens.tokens(batch["caption"]).attention_mask,
    )

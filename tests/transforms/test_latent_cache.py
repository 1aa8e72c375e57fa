"""A cache's own batches; with shards and loaders see tests/test_caches.py."""

from typing import Any

import pytest
import torch

from penstock.transforms import LatentCache, LatentEncoder


def encoder(version: str = "1") -> LatentEncoder:
    return LatentEncoder(lambda x: x[:, :1], keep="mean", fingerprint=version)


INPUTS = {
    "matte": (1, 2, 3),
    "icc": True,
    "crop": (0.0, 0.5, 3.0, 4.0),
    "size": (32, 48),
    "flip": False,
    "decoder": 1,
    "interpolation": "BICUBIC",
}


def test_each_input_counts_exactly(store: Any) -> None:
    cache = LatentCache(store, encoder())
    name = cache.name_of(cache.inputs("ab", **INPUTS))
    assert name == cache.name_of(cache.inputs("ab", **{**INPUTS, "matte": [1, 2, 3]}))
    changes = {
        "matte": None,
        "icc": None,
        "crop": (0.0, 0.5000000000000001, 3.0, 4.0),
        "size": (48, 32),
        "flip": True,
        "decoder": 2,
        "interpolation": "LANCZOS",
    }
    names = {cache.name_of(cache.inputs("ab", **{**INPUTS, k: v})) for k, v in changes.items()}
    names |= {name, cache.name_of(cache.inputs("ac", **INPUTS))}
    names |= {LatentCache(store, encoder("2")).name_of(cache.inputs("ab", **INPUTS))}
    assert len(names) == len(changes) + 3
    assert {*INPUTS, "image"} <= {*cache.words}


def test_a_caches_own_shards_are_only_drawn_from(store: Any) -> None:
    cache = LatentCache(store, encoder())
    entry = {"mean": torch.ones(2, 4, 3, 3).bfloat16(), "logvar": torch.zeros(2, 4, 3, 3)}
    batch = {"latents": entry, "caption": ["a", "b"], "__key__": ["0", "1"]}
    with pytest.raises(ValueError, match="drawn from the posterior"):
        cache.fill(batch)
    out = cache.fill(batch, torch.Generator().manual_seed(0))
    assert out["latents"].shape == (2, 4, 3, 3)
    assert out["latents"].std() > 0.5
    assert out["caption"] == ["a", "b"]
    rows = [{"mean": torch.ones(1, 2, n)} for n in (2, 3)]
    assert [v.shape[2] for v in cache.fill({**batch, "latents": rows})["latents"]] == [2, 3]
    with pytest.raises(ValueError, match="has no latents"):
        cache.fill({**batch, "latents": [rows[0], None]})


def test_another_encoders_shards_are_refused(store: Any) -> None:
    cache, other = LatentCache(store, encoder()), LatentCache(store, encoder("2"))
    told = [{"url": "a.tar", "key": "7", "ingredients": cache.ingredients({})}]
    batch = {"latents": {"mean": torch.ones(1, 1, 2, 2)}, "json": told}
    assert cache.fill(batch)["latents"].shape == (1, 1, 2, 2)
    words = r"a.tar/7 is not this encoder's: the VAE's weights \(encoder.weights\) was 1, and is 2"
    with pytest.raises(ValueError, match=words):
        other.fill(batch)
    assert cache.fill({**batch, "json": [{"text": "mine"}]})["latents"].shape == (1, 1, 2, 2)


def test_batches_of_no_cache_are_refused(store: Any) -> None:
    cache = LatentCache(store, encoder())
    with pytest.raises(ValueError, match=r"no field 'latents', only \['caption'\]"):
        cache.fill({"caption": ["a"]})
    with pytest.raises(ValueError, match="tells nothing of its latents"):
        cache.explain({"caption": "a"})
    record = cache.record("0" * 32, "a.tar/1", False, {"ingredients": cache.ingredients({})})
    with pytest.raises(ValueError, match=r"a.tar/1 is not in the cache, and its batch has no"):
        cache.fill({"latents": [None], "__latents__": [record]})

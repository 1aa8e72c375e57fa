"""Transforms in pipes: in workers of both kinds, exactly again, and described in a state."""

import warnings

import pytest
import torch

from penstock.pipes import ShardLister, verify_resume
from penstock.recipes.tiny_tokenizers import tiny_clip_tokenizer, tiny_t5_tokenizer
from penstock.transforms import FluxTransform, cut_report


@pytest.fixture(scope="module")
def flux():
    return FluxTransform(
        tiny_clip_tokenizer(),
        tiny_t5_tokenizer(),
        variant="schnell",
        drop={"clip": 0.3, "t5": 0.3},
    )


def build(shards, flux):
    pipe = ShardLister(shards, seed=0).read_tar().shuffle(40)
    return pipe.bucket_by_aspect_ratio(64, 4, step=16).decode(crop="random").transform(flux)


def same(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, two[name]), name
        else:
            assert value == two[name], name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_workers_make_what_the_main_process_makes(shards, flux, kind, capfd):
    pipe = build(shards, flux)
    flux_used_before_the_fork = pipe.loader()
    here = [batch for batch, _ in zip(flux_used_before_the_fork, range(6), strict=False)]
    capfd.readouterr()
    loader = pipe.loader(num_workers=2, multiprocessing_context=kind)
    for batch, there in zip(here, loader, strict=False):
        same(batch, there)
    loader.close()
    out, err = capfd.readouterr()
    assert out == ""
    if kind == "fork":
        assert err == ""
    else:  # C++ libraries have been seen to say this where a process ends that was not forked
        assert set(err.splitlines()) <= {"terminate called without an active exception"}
    batch = here[0]
    assert batch["image"].dtype == torch.float32
    assert batch["image"].shape[0] == 4
    assert {len(b["t5_tokens"]) for b in here} == {4}
    drops = torch.stack([b["t5_dropped"] for b in here])
    assert 0 < drops.sum() < drops.numel()
    report = cut_report(here)
    assert report.cuts["t5"].seen == 24


@pytest.mark.slow
def test_resume_is_exact(shards, flux):
    verify_resume(
        lambda workers, rank, ranks: build(shards, flux).loader(
            workers, rank=rank, world_size=ranks
        )
    )


def test_a_state_tells_of_another_transform(shards, flux):
    def state(transform):
        return build(shards, transform).loader(epoch_batches=4)

    saved = state(flux).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state(flux).load_state_dict(saved)
    tokenizers = tiny_clip_tokenizer(), tiny_t5_tokenizer()
    more = {"variant": "schnell", "drop": {"clip": 0.3, "t5": 0.4}}
    with pytest.warns(UserWarning, match=r"the work half has changed .*0\.4"):
        state(FluxTransform(*tokenizers, **more)).load_state_dict(saved)
    others = tiny_clip_tokenizer(pad_token="!"), tokenizers[1]
    more["drop"] = {"clip": 0.3, "t5": 0.3}
    with pytest.warns(UserWarning, match="the work half has changed"):
        state(FluxTransform(*others, **more)).load_state_dict(saved)

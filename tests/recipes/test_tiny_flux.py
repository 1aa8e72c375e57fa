"""A tiny checkpoint is one that diffusers loads and runs."""

import filecmp
import random

import numpy as np
import pytest
import torch

from penstock.recipes.tiny_flux import Config, main, tiny_flux_pipeline, write_tiny_flux
from penstock.transforms import FluxTransform


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_flux(tmp_path_factory.mktemp("made") / "tiny")


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.slow
def test_diffusers_loads_and_runs_it(tiny):
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        "a red ring",
        height=32,
        width=48,
        num_inference_steps=2,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert image.size == (48, 32)
    assert np.asarray(image).std() > 0
    # What it is in shape, as the real one.
    assert pipe.vae_scale_factor == 8
    assert pipe.vae.config.latent_channels == 16
    assert pipe.transformer.config.in_channels == 64
    assert pipe.transformer.config.guidance_embeds
    assert pipe.scheduler.config.use_dynamic_shifting


@pytest.mark.slow
def test_what_the_transform_gives_runs_through_its_models(tiny):
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    captions = ["a red ring", "a blue star on the left"]
    batch = {"image": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "caption": captions}
    out = FluxTransform.from_pretrained(tiny)(batch)
    with torch.no_grad():
        expected, pooled, _ = pipe.encode_prompt(captions, None, device="cpu")
        assert torch.equal(pipe.text_encoder(out["clip_tokens"]).pooler_output, pooled)
        assert torch.equal(pipe.text_encoder_2(out["t5_tokens"])[0], expected)
        assert pipe.vae.encode(out["image"]).latent_dist.mode().shape == (2, 16, 4, 4)


def test_the_same_seed_gives_the_same_files(tiny, tmp_path):
    torch.manual_seed(5)
    states = random.getstate(), torch.get_rng_state()
    again = write_tiny_flux(tmp_path / "again")
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    names = files(tiny)
    assert "model_index.json" in names
    assert files(again) == names
    assert filecmp.cmpfiles(tiny, again, names, shallow=False)[0] == names
    one, two = (tiny_flux_pipeline(seed=seed).transformer.state_dict() for seed in (0, 1))
    assert not torch.equal(one["x_embedder.weight"], two["x_embedder.weight"])


def test_schnell_takes_no_guidance(tmp_path, capsys):
    main(Config(out=tmp_path / "tiny", variant="schnell"))
    assert "random weights" in capsys.readouterr().out
    assert FluxTransform.from_pretrained(tmp_path / "tiny").variant == "schnell"
    pipe = tiny_flux_pipeline("schnell")
    assert not pipe.transformer.config.guidance_embeds
    assert pipe.scheduler.config.shift == 1.0


def test_what_is_there_stays(tiny, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_tiny_flux(tiny)
    before = files(tiny)

    def fails(self, folder):
        (folder / "half").mkdir(parents=True)
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr("diffusers.FluxPipeline.save_pretrained", fails)
        write_tiny_flux(tiny, overwrite=True)
    assert files(tiny) == before
    assert [p.name for p in tiny.parent.iterdir()] == ["tiny"]
    (tiny / "old").write_text("")
    write_tiny_flux(tiny, overwrite=True)
    assert files(tiny) == before

"""Pictures from embeddings are the pipeline's from prompts."""

import numpy as np
import pytest
import torch

from penstock.models import add_lora, load_scheduler, load_transformer, load_vae, sample_flux

PROMPTS = ["a red ring", "a blue star on the left"]


@pytest.fixture(scope="module")
def pipe(tiny):
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def given(pipe):
    with torch.no_grad():
        embeds, pooled, _ = pipe.encode_prompt(PROMPTS, None, max_sequence_length=16)
    return {
        "prompt_embeds": embeds,
        "pooled_embeds": pooled,
        "seeds": [3, 4],
        "height": 32,
        "width": 48,
        "steps": 3,
    }


def test_they_are_the_pipelines(tiny, pipe, given, same_random_state):
    expected = pipe(
        PROMPTS,
        height=32,
        width=48,
        num_inference_steps=3,
        guidance_scale=2.0,
        max_sequence_length=16,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
    ).images
    model, vae = load_transformer(tiny, dtype=torch.float32), load_vae(tiny, dtype=torch.float32)
    scheduler = load_scheduler(tiny)
    model.train()
    found = sample_flux(model, vae, scheduler, **given, guidance=2.0)
    assert found.shape == (2, 3, 32, 48)
    assert found.dtype == torch.uint8
    pixels = np.stack([np.asarray(image) for image in expected])
    difference = found.permute(0, 2, 3, 1).numpy().astype(int) - pixels
    assert abs(difference).max() <= 1  # the VAE takes one at a time here
    assert (difference == 0).mean() > 0.999
    assert model.training
    again = sample_flux(model, vae, scheduler, **given, guidance=2.0)
    assert torch.equal(again, found)
    one = {
        k: v[1:] if k in ("prompt_embeds", "pooled_embeds", "seeds") else v
        for k, v in given.items()
    }
    alone = sample_flux(model, vae, scheduler, **one, guidance=2.0)
    assert (alone.int() - found[1:].int()).abs().max() <= 1


def test_a_lora_guidance_and_a_mask_change_them(tiny, given):
    model, vae = load_transformer(tiny), load_vae(tiny, dtype=torch.float32)
    scheduler = load_scheduler(tiny)

    def drawn(**more):
        return sample_flux(model, vae, scheduler, **given | more)

    plain = drawn()
    assert plain.float().std() > 0
    assert not torch.equal(drawn(guidance=9.0), plain)
    mask = torch.ones(2, 16)
    mask[:, 4:] = 0
    assert not torch.equal(drawn(text_mask=mask), plain)
    for parameter in add_lora(model).values():
        parameter.data.fill_(0.2)
    assert not torch.equal(drawn(), plain)


def test_wrong_arguments(tiny, given):
    models = load_transformer(tiny), load_vae(tiny), load_scheduler(tiny)
    with pytest.raises(ValueError, match="multiples of 16, got 40 x 48"):
        sample_flux(*models, **given | {"height": 40})
    with pytest.raises(ValueError, match="one seed for each prompt, got 1 seeds, 2 and 2"):
        sample_flux(*models, **given | {"seeds": [1]})

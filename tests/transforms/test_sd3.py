"""SD3's tokens, and how its encoders' outputs are put together, are diffusers' own."""

from types import SimpleNamespace

import pytest
import torch

from penstock.transforms import (
    SD3Transform,
    normalize_image,
    sd3_prompt_embeds,
    sd3_scale_latents,
    sd3_unscale_latents,
)


class Encoder(torch.nn.Module):
    """Stands in for a text encoder: keeps its ids, gives numbers of its own for each."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, ids, output_hidden_states=False):
        self.ids = ids
        self.hidden = torch.sin(ids[..., None] * torch.arange(1.0, self.width + 1))
        if not output_hidden_states:
            return (self.hidden,)
        return type("Out", (tuple,), {"hidden_states": (self.hidden,) * 3})((self.hidden[:, 0],))


@pytest.fixture(scope="module")
def encoded(clip, clip_g, t5, captions):
    """diffusers' pipeline, and what its encode_prompt gives for the captions."""
    from diffusers import StableDiffusion3Pipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    encoders = Encoder(6), Encoder(10), Encoder(32)
    pipe = StableDiffusion3Pipeline(
        None, None, None, encoders[0], clip, encoders[1], clip_g, encoders[2], t5
    )
    given = pipe.encode_prompt(
        captions, None, None, device="cpu", do_classifier_free_guidance=False
    )
    return pipe, given


def test_tokens_are_those_that_diffusers_feeds(encoded, clip, clip_g, t5, captions, make_batch_of):
    pipe, _ = encoded
    batch = make_batch_of(captions)
    out = SD3Transform(clip, clip_g, t5)(batch)
    assert torch.equal(out["clip_l_tokens"], pipe.text_encoder.ids)
    assert torch.equal(out["clip_g_tokens"], pipe.text_encoder_2.ids)
    assert torch.equal(out["t5_tokens"], pipe.text_encoder_3.ids)
    assert out["t5_tokens"].shape == (len(captions), 256)
    assert torch.equal(out["image"], normalize_image(batch["image"]))
    fields = {f"{e}_{n}" for e in ("clip_l", "clip_g", "t5") for n in NAMES}
    assert set(out) == {*batch, *fields}


NAMES = ("tokens", "attention_mask", "cut")


def test_embeddings_are_put_together_as_diffusers_does(encoded):
    pipe, (expected, _, pooled, _) = encoded
    parts = [e.hidden for e in (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3)]
    assert torch.equal(sd3_prompt_embeds(*parts), expected)
    assert expected.shape[1:] == (77 + 256, 32)
    assert torch.equal(torch.cat([p[:, 0] for p in parts[:2]], -1), pooled)
    with pytest.raises(ValueError, match="the CLIPs give 16 numbers a token, T5 6"):
        sd3_prompt_embeds(*parts[:2], parts[0])


def test_scale_and_shift_are_diffusers():
    from diffusers import StableDiffusion3InpaintPipeline

    raw = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(1))
    vae = SimpleNamespace(
        config=SimpleNamespace(scaling_factor=1.5305, shift_factor=0.0609),
        encode=lambda image: SimpleNamespace(latents=raw),
    )
    expected = StableDiffusion3InpaintPipeline._encode_vae_image(
        SimpleNamespace(vae=vae), torch.zeros(2, 3, 32, 48), None
    )
    made = sd3_scale_latents(raw)
    assert torch.equal(made, expected)
    assert not torch.equal(made, raw)
    assert torch.allclose(sd3_unscale_latents(made), raw, atol=1e-6)
    assert torch.equal(sd3_unscale_latents(made), made / 1.5305 + 0.0609)


def test_encoders_drop_apart(clip, clip_g, t5, make_batch_of, rng):
    chances = {"clip_l": 0.5, "clip_g": 0.5, "t5": 0.5}
    batch = make_batch_of(["a ring"] * 800, 16, 16)
    out = SD3Transform(clip, clip_g, t5, t5_length=8, drop=chances)(batch, rng)
    every = torch.stack([out[f"{name}_dropped"] for name in chances])
    assert abs(every.all(0).float().mean() - 0.125) < 0.05
    assert out["t5_tokens"].shape == (800, 8)


def test_from_pretrained(clip, clip_g, t5, tmp_path, captions, make_batch_of):
    for name, tokenizer in (("tokenizer", clip), ("tokenizer_2", clip_g), ("tokenizer_3", t5)):
        tokenizer.save_pretrained(tmp_path / name)
    batch = make_batch_of(captions)
    one = SD3Transform.from_pretrained(tmp_path, t5_length=77)(batch)
    two = SD3Transform(clip, clip_g, t5, t5_length=77)(batch)
    for name in ("clip_l_tokens", "clip_g_tokens", "t5_tokens"):
        assert torch.equal(one[name], two[name])
    with pytest.raises(ValueError, match="SD3 takes sides that are multiples of 16"):
        SD3Transform(clip, clip_g, t5)(make_batch_of(["a"], 24, 16))

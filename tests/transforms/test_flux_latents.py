"""Packing, positions and scale are diffusers' own, bit for bit."""

from types import SimpleNamespace

import pytest
import torch

from penstock.transforms import (
    flux_image_ids,
    flux_pack_latents,
    flux_scale_latents,
    flux_text_ids,
    flux_unpack_latents,
    flux_unscale_latents,
)

SIZES = [(1, 16, 2, 2), (3, 16, 4, 10), (2, 4, 8, 6), (2, 16, 64, 64)]


def latents(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def flux():
    from diffusers import FluxPipeline

    return FluxPipeline


@pytest.mark.parametrize("shape", SIZES)
def test_packing_is_diffusers(flux, shape):
    made = latents(*shape)
    tokens = flux_pack_latents(made)
    assert torch.equal(tokens, flux._pack_latents(made, *shape))
    height, width = shape[2:]
    back = flux_unpack_latents(tokens, height, width)
    assert torch.equal(back, made)
    assert torch.equal(back, flux._unpack_latents(tokens, height * 8, width * 8, 8))


def test_latents_need_not_be_contiguous(flux):
    made = latents(2, 16, 10, 4).transpose(2, 3)
    assert torch.equal(flux_pack_latents(made), flux._pack_latents(made.contiguous(), 2, 16, 4, 10))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (64, 64), (90, 45)])
def test_image_ids_are_diffusers(flux, height, width):
    for dtype in (torch.float32, torch.bfloat16):
        expected = flux._prepare_latent_image_ids(1, height, width, "cpu", dtype)
        made = flux_image_ids(height, width, dtype=dtype)
        assert torch.equal(made, expected)
        assert made.dtype == dtype
    reference = flux_image_ids(height, width, index=1)
    assert torch.equal(reference[:, 1:], flux_image_ids(height, width)[:, 1:])
    assert reference[:, 0].eq(1).all()


def test_text_ids_are_diffusers(flux):
    pipe = SimpleNamespace(
        text_encoder=SimpleNamespace(dtype=torch.float32),
        text_encoder_2=None,
        _execution_device="cpu",
    )
    _, _, ids = flux.encode_prompt(
        pipe, "", prompt_embeds=torch.zeros(1, 512, 8), pooled_prompt_embeds=torch.zeros(1, 8)
    )
    assert torch.equal(flux_text_ids(512), ids)
    assert flux_text_ids(3, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_ids_fit_the_tokens():
    tokens = flux_pack_latents(latents(1, 16, 12, 20))
    ids = flux_image_ids(6, 10)
    assert ids.shape == (tokens.shape[1], 3)
    # The token at (row, column) is that patch.
    marked = torch.zeros(1, 16, 12, 20)
    marked[:, :, 2 * 4 : 2 * 4 + 2, 2 * 7 : 2 * 7 + 2] = 1
    found = flux_pack_latents(marked)[0].sum(1).nonzero().flatten()
    assert ids[found].tolist() == [[0, 4, 7]]


def test_scale_and_shift_are_diffusers(tmp_path):
    from diffusers import FluxImg2ImgPipeline

    from penstock.recipes.tiny_flux import tiny_flux_pipeline

    vae = tiny_flux_pipeline().vae
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(image).latent_dist
        expected = FluxImg2ImgPipeline._encode_vae_image(
            SimpleNamespace(vae=vae), image, torch.Generator().manual_seed(3)
        )
    raw = posterior.sample(torch.Generator().manual_seed(3))
    scaled = flux_scale_latents(raw)
    assert torch.equal(scaled, expected)
    assert not torch.equal(scaled, raw)
    config = vae.config
    assert torch.equal(
        flux_unscale_latents(scaled), scaled / config.scaling_factor + config.shift_factor
    )
    assert torch.allclose(flux_unscale_latents(scaled), raw, atol=1e-6)
    assert torch.equal(flux_scale_latents(raw, scale=2.0, shift=1.0), (raw - 1) * 2)


@pytest.mark.parametrize("shape", [(1, 16, 3, 4), (1, 16, 4, 3), (16, 4, 4)])
def test_odd_latents_are_refused(shape):
    with pytest.raises(ValueError, match="even h and w"):
        flux_pack_latents(torch.zeros(shape))


@pytest.mark.parametrize(
    ("tokens", "size"), [((1, 6, 64), (4, 4)), ((1, 6, 63), (4, 6)), ((1, 6, 64), (3, 8))]
)
def test_tokens_of_another_size_are_refused(tokens, size):
    with pytest.raises(ValueError, match="are not those of latents of"):
        flux_unpack_latents(torch.zeros(tokens), *size)

"""Patches, statistics, packing and positions are diffusers' own, bit for bit."""

from types import SimpleNamespace

import pytest
import torch

from penstock.transforms import (
    flux2_denormalize_latents,
    flux2_image_ids,
    flux2_normalize_latents,
    flux2_pack_latents,
    flux2_patchify_latents,
    flux2_text_ids,
    flux2_unpack_latents,
    flux2_unpatchify_latents,
)


def latents(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def flux2():
    from diffusers import Flux2Pipeline

    return Flux2Pipeline


@pytest.mark.parametrize("shape", [(1, 32, 2, 2), (3, 32, 4, 10), (2, 4, 8, 6)])
def test_patches_and_packing_are_diffusers(flux2, shape):
    made = latents(*shape)
    patches = flux2_patchify_latents(made)
    assert torch.equal(patches, flux2._patchify_latents(made))
    assert torch.equal(flux2_unpatchify_latents(patches), made)
    assert torch.equal(flux2._unpatchify_latents(patches), made)
    tokens = flux2_pack_latents(patches)
    assert torch.equal(tokens, flux2._pack_latents(patches))
    height, width = patches.shape[-2:]
    assert torch.equal(flux2_unpack_latents(tokens, height, width), patches)
    ids = flux2_image_ids(height, width)[None].expand(len(made), -1, -1)
    assert torch.equal(flux2._unpack_latents_with_ids(tokens, ids), patches)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (64, 48)])
def test_image_ids_are_diffusers(flux2, height, width):
    made = flux2_image_ids(height, width)
    expected = flux2._prepare_latent_ids(torch.zeros(2, 128, height, width))
    assert torch.equal(made, expected[1])
    assert made.dtype == expected.dtype
    references = [torch.zeros(1, 128, height, width), torch.zeros(1, 128, 2, 3)]
    together = [flux2_image_ids(height, width, reference=0), flux2_image_ids(2, 3, reference=1)]
    assert torch.equal(torch.cat(together)[None], flux2._prepare_image_ids(references))
    assert together[1][0].tolist() == [20, 0, 0, 0]


def test_text_ids_are_diffusers(flux2):
    expected = flux2._prepare_text_ids(torch.zeros(2, 512, 8))
    assert torch.equal(flux2_text_ids(512), expected[0])
    assert flux2_text_ids(512).dtype == expected.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_are_used_as_diffusers_does(flux2, dtype):
    raw = latents(2, 8, 6, 4).to(dtype)
    mean, var = latents(32), latents(32).square() + 0.1
    vae = SimpleNamespace(
        encode=lambda image: SimpleNamespace(latents=raw),
        bn=SimpleNamespace(running_mean=mean, running_var=var),
        config=SimpleNamespace(batch_norm_eps=1e-4),
    )
    pipe = SimpleNamespace(vae=vae, _patchify_latents=flux2._patchify_latents)
    expected = flux2._encode_vae_image(pipe, torch.zeros(2, 3, 48, 32), None)
    patches = flux2_patchify_latents(raw)
    made = flux2_normalize_latents(patches, mean, var)
    assert torch.equal(made, expected)
    assert made.dtype == dtype
    back = flux2_denormalize_latents(made, mean, var)
    assert torch.allclose(back, patches, atol=1e-5 if dtype == torch.float32 else 0.1)
    std = torch.sqrt(var.view(1, -1, 1, 1) + 1e-4).to(dtype)
    assert torch.equal(back, made * std + mean.view(1, -1, 1, 1).to(dtype))


def test_the_default_eps_is_the_models():
    import inspect

    from diffusers import AutoencoderKLFlux2

    from penstock.transforms.flux2_latents import FLUX2_EPS

    parameters = inspect.signature(AutoencoderKLFlux2.__init__).parameters
    assert parameters["batch_norm_eps"].default == FLUX2_EPS


def test_other_sizes_are_refused():
    for shape in ((1, 32, 3, 4), (1, 32, 4, 3), (32, 4, 4)):
        with pytest.raises(ValueError, match="even h and w"):
            flux2_patchify_latents(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"12 tokens are not those of 3 x 5 .* which are 15"):
        flux2_unpack_latents(torch.zeros(1, 12, 128), 3, 5)

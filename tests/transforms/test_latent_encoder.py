"""Latents as they are cached, against diffusers' own."""

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from penstock.recipes.tiny_flux import tiny_flux_vae
from penstock.transforms import LatentEncoder, draw_latents, normalize_image


@pytest.fixture(scope="module")
def vae() -> Any:
    return tiny_flux_vae()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_diffusers_own(vae: Any, image: torch.Tensor, dtype: torch.dtype) -> None:
    vae = copy.deepcopy(vae).to(dtype)
    with torch.no_grad():
        posterior = vae.encode(normalize_image(image, dtype)).latent_dist
    entries = LatentEncoder(vae, dtype=torch.float32)(image)
    assert [sorted(entry) for entry in entries] == [["logvar", "mean"]] * 3
    stacked = {k: torch.stack([e[k] for e in entries]) for k in entries[0]}
    assert torch.equal(stacked["mean"], posterior.mean.float())
    assert torch.equal(stacked["logvar"], posterior.logvar.float())
    if dtype == torch.float32:
        mine = draw_latents(stacked, torch.Generator().manual_seed(4))
        assert torch.equal(mine, posterior.sample(torch.Generator().manual_seed(4)))
    mean = LatentEncoder(vae, keep="mean")(image)
    assert [sorted(entry) for entry in mean] == [["mean"]] * 3
    assert torch.equal(torch.stack([e["mean"] for e in mean]), posterior.mean.bfloat16())


def test_normalised_pixels_give_the_same(vae: Any, image: torch.Tensor) -> None:
    half = LatentEncoder(copy.deepcopy(vae).bfloat16())
    for dtype in (torch.float32, torch.bfloat16):
        for one, other in zip(half(image), half(normalize_image(image, dtype)), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match="rounded"):
        LatentEncoder(vae)(normalize_image(image, torch.bfloat16))
    with pytest.raises(ValueError, match="rounded"):
        half(normalize_image(image, torch.float16))


def test_autocast_of_the_trainer_is_no_matter(vae: Any, image: torch.Tensor) -> None:
    encoder = LatentEncoder(vae, dtype=torch.float32)
    plain = encoder(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(image)[0]["mean"], plain[0]["mean"])


def test_what_it_says_of_itself(vae: Any) -> None:
    about = LatentEncoder(vae).about
    assert {k: v for k, v in about.items() if k != "weights"} == {
        "class": "AutoencoderKL",
        "compute": "float32",
        "stored": "bfloat16",
        "keep": "posterior",
        "convention": "raw",
    }
    assert LatentEncoder(vae, keep="mean").about == {**about, "keep": "mean"}
    assert LatentEncoder(vae, dtype=torch.float16).about == {**about, "stored": "float16"}
    assert LatentEncoder(vae, fingerprint="mine").about == {**about, "weights": "mine"}
    other = copy.deepcopy(vae)
    with torch.no_grad():
        other.decoder.conv_in.weight += 1
    assert LatentEncoder(other).about == about
    with torch.no_grad():
        other.encoder.conv_out.bias += 1
    assert LatentEncoder(other).about != about
    tiled = copy.deepcopy(vae)
    tiled.enable_tiling()
    assert LatentEncoder(tiled).about["tiles"]["tile_sample_min_size"] == 32


def test_a_vae_that_has_changed_is_refused(vae: Any, image: torch.Tensor) -> None:
    def changed(vae: Any, name: str) -> None:
        if name == "trained":
            with torch.no_grad():
                vae.encoder.conv_in.weight.add_(1e-6)
        elif name == "cast":
            vae.bfloat16()
        elif name == "tiled":
            vae.enable_tiling()
        else:
            vae.load_state_dict(tiny_flux_vae(seed=1).state_dict())

    for name in ("trained", "cast", "tiled", "loaded"):
        own = copy.deepcopy(vae)
        encoder = LatentEncoder(own)
        encoder(image)
        changed(own, name)
        with pytest.raises(ValueError, match="the VAE has changed since"):
            encoder(image)
    own = copy.deepcopy(vae).train()
    with pytest.raises(ValueError, match=r"call vae.eval\(\)"):
        LatentEncoder(own)(image)


def test_functions_of_ones_own(image: torch.Tensor) -> None:
    def mine(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        assert pixels.dtype == torch.float32
        return {"mean": pixels[:, :1], "logvar": pixels[:, 1:2] * 100}

    with pytest.raises(ValueError, match="give fingerprint= to a function"):
        LatentEncoder(mine)
    encoder = LatentEncoder(mine, fingerprint="mine 1", dtype=torch.float32)
    assert encoder.about["class"] == "function"
    entries = encoder(image)
    assert torch.equal(entries[1]["mean"], normalize_image(image)[1, :1])
    assert min(e["logvar"].min() for e in entries) == -30
    assert max(e["logvar"].max() for e in entries) == 20


@pytest.mark.parametrize("name", ["latents", "latent"])
def test_models_without_a_posterior(image: torch.Tensor, name: str) -> None:
    def mine(pixels: torch.Tensor) -> Any:
        return SimpleNamespace(**{name: pixels * 2})

    entries = LatentEncoder(mine, fingerprint="a", keep="mean", dtype=torch.float32)(image)
    assert torch.equal(entries[2]["mean"], normalize_image(image)[2] * 2)
    with pytest.raises(ValueError, match=r"no posterior to draw from: LatentEncoder\(…, keep='m"):
        LatentEncoder(mine, fingerprint="a")(image)
    with pytest.raises(ValueError, match="expected a posterior, latents"):
        LatentEncoder(lambda _: "text", fingerprint="a", keep="mean")(image)


@pytest.mark.parametrize("kind", ["VQModel", "AutoencoderDC"])
def test_diffusers_models_without_a_posterior(image: torch.Tensor, kind: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    if kind == "VQModel":
        model = diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4).eval()
        with torch.no_grad():
            expected = model.encode(normalize_image(image)).latents
    else:
        model = diffusers.AutoencoderDC(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            latent_channels=4,
        ).eval()
        with torch.no_grad():
            expected = model.encode(normalize_image(image)).latent
    entries = LatentEncoder(model, keep="mean", dtype=torch.float32)(image)
    assert torch.equal(torch.stack([e["mean"] for e in entries]), expected)


def test_wrong_arguments(vae: Any) -> None:
    for how, words in (
        ({"keep": "both"}, "keep must be"),
        ({"dtype": torch.int8}, "dtype is that of stored latents"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            LatentEncoder(vae, **how)


def test_a_draw_needs_a_generator() -> None:
    entry = {"mean": torch.zeros(2, 1, 1, 1), "logvar": torch.zeros(2, 1, 1, 1)}
    with pytest.raises(ValueError, match="drawn from the posterior by the batch's own generator"):
        draw_latents(entry, None)
    assert torch.equal(draw_latents(entry, None, draw=False), entry["mean"])
    assert torch.equal(draw_latents({"mean": entry["mean"]}, None), entry["mean"])
    ragged = {name: [value[0], value[1, 0]] for name, value in entry.items()}
    drawn = draw_latents(ragged, torch.Generator().manual_seed(0))
    assert [value.shape for value in drawn] == [(1, 1, 1), (1, 1)]
    assert pickle.loads(pickle.dumps(drawn))[0].dtype == torch.float32

"""Noise, target, loss and noise levels, against diffusers and by hand."""

import math

import numpy as np
import pytest
import torch

from penstock.transforms import (
    TimestepSampling,
    fixed_sigmas,
    flow_loss,
    flux_mu,
    flux_pack_latents,
    noised,
    token_masks,
    validation_losses,
    velocity,
)


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def quantiles(n=1001):
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_noised_and_velocity_are_the_schedulers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    latents, noise = normal(3, 16, 4, 6), normal(3, 16, 4, 6, seed=1)
    steps = scheduler.timesteps[torch.tensor([3, 500, 990])]
    sigmas = scheduler.sigmas[torch.tensor([3, 500, 990])]
    expected = scheduler.scale_noise(latents, steps, noise)
    found = noised(latents, noise, sigmas)
    assert torch.allclose(found, expected, atol=1e-6)
    # A step of the whole way along the velocity is the image.
    back = found - sigmas[:, None, None, None] * velocity(latents, noise)
    assert torch.allclose(back, latents, atol=1e-5)
    assert torch.equal(noised(latents, noise, torch.zeros(3)), latents)
    assert torch.equal(noised(latents, noise, torch.ones(3)), noise)


def test_float32_whatever_comes_in():
    half = normal(2, 4, 64).bfloat16()
    noise = normal(2, 4, 64, seed=1).bfloat16()
    assert noised(half, noise, torch.full((2,), 0.3)).dtype == torch.float32
    assert torch.equal(velocity(half, noise), noise.float() - half.float())
    assert flow_loss(half, velocity(half, noise)).dtype == torch.float32


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7), (1.0, 2.0)])
def test_logit_normal_is_diffusers(mean, std):
    from diffusers.training_utils import compute_density_for_timestep_sampling

    generator = torch.Generator().manual_seed(3)
    z = torch.normal(0.0, 1.0, (500,), generator=generator)
    generator.manual_seed(3)
    expected = compute_density_for_timestep_sampling(
        "logit_normal", 500, logit_mean=mean, logit_std=std, generator=generator
    )
    uniform = torch.special.ndtr(z.double())
    found = TimestepSampling(kind="logit_normal", mean=mean, std=std)(uniform, 256)
    assert torch.allclose(found, expected, atol=1e-6)


def test_uniform_is_diffusers():
    from diffusers.training_utils import compute_density_for_timestep_sampling

    generator = torch.Generator().manual_seed(3)
    u = torch.rand((500,), generator=generator)
    generator.manual_seed(3)
    expected = compute_density_for_timestep_sampling("none", 500, generator=generator)
    assert torch.equal(TimestepSampling(kind="uniform")(u.double(), 256), expected)


@pytest.mark.parametrize("shift", [1.0, 3.0, 3.1582])
@pytest.mark.parametrize("std", [1.0, 1.7])
def test_shift_is_kohyas_formula(shift, std):
    u = quantiles()
    logits = (std * torch.special.ndtri(u)).sigmoid()
    expected = (logits * shift) / (1 + (shift - 1) * logits)
    found = TimestepSampling(kind="shift", std=std, shift=shift)(u, 4096)
    assert torch.allclose(found.double(), expected, atol=1e-7)
    assert float(found[500]) == pytest.approx(shift / (shift + 1))  # the median


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 9216])
def test_resolution_is_the_schedulers_shift(tokens):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    u = quantiles()
    plain = TimestepSampling(kind="sigmoid")(u, tokens)
    expected = scheduler.time_shift(flux_mu(tokens), 1.0, plain.double())
    found = TimestepSampling(kind="resolution")(u, tokens)
    assert torch.allclose(found.double(), expected, atol=1e-6)
    # 1024 x 1024 pixels: the shift that kohya recommends.
    fixed = TimestepSampling(kind="shift", shift=math.exp(flux_mu(tokens)))(u, tokens)
    assert torch.allclose(found, fixed, atol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "logit_normal", "sigmoid", "shift", "resolution"])
def test_levels_stay_in_range_and_rise_with_the_draw(kind):
    u = torch.tensor([0.0, 2**-53, 1e-9, 0.25, 0.5, 0.75, 1 - 2**-53], dtype=torch.float64)
    sigmas = TimestepSampling(kind=kind)(u, 1024)
    assert sigmas.dtype == torch.float32
    assert torch.isfinite(sigmas).all()
    assert (sigmas >= 0).all()
    assert (sigmas <= 1).all()
    assert (sigmas.diff() >= 0).all()
    assert sigmas[3] < sigmas[4] < sigmas[5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosine"}, "kind must be one of"),
        ({"std": 0.0}, "std must be above 0"),
        ({"kind": "shift", "shift": -1.0}, "shift must be above 0"),
        ({"kind": "sigmoid", "mean": 1.0}, "sigmoid has no mean"),
        ({"kind": "uniform", "std": 2.0}, "uniform has no std"),
        ({"kind": "resolution", "shift": 2.0}, "resolution has no shift"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TimestepSampling(**settings)


def test_fixed_sigmas():
    assert torch.equal(fixed_sigmas(4), torch.tensor([0.125, 0.375, 0.625, 0.875]))
    with pytest.raises(ValueError, match="at least 1"):
        fixed_sigmas(0)


def test_loss_is_the_mean_squared_error_of_each_sample():
    predicted, target = normal(3, 24, 64), normal(3, 24, 64, seed=1)
    found = flow_loss(predicted, target)
    for i in range(3):
        expected = torch.nn.functional.mse_loss(predicted[i], target[i])
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-6)
    weights = torch.tensor([0.0, 1.0, 2.5])
    assert torch.equal(flow_loss(predicted, target, weights=weights), found * weights)


def test_a_full_mask_changes_nothing():
    predicted, target = normal(2, 24, 64), normal(2, 24, 64, seed=1)
    full = token_masks(torch.full((2, 1, 64, 96), 255, dtype=torch.uint8))
    assert torch.equal(full, torch.ones(2, 24))
    assert torch.equal(flow_loss(predicted, target, masks=full), flow_loss(predicted, target))
    ones = token_masks(torch.ones(2, 1, 64, 96, dtype=torch.bool))
    assert torch.equal(ones, full)


def test_masks_stand_where_the_pixels_do():
    # A region of pixels is the tokens that packing makes of them.
    pixels = torch.zeros(1, 1, 64, 96)
    pixels[:, :, 16:48, 32:64] = 1
    latents = torch.nn.functional.interpolate(pixels, scale_factor=1 / 8, mode="nearest")
    packed = flux_pack_latents(latents.expand(1, 16, -1, -1))
    masks = token_masks(pixels)
    assert torch.equal(masks, packed[:, :, 0])
    assert masks.sum() == 4
    # The error outside of it does not count, and the mean is over what is inside.
    target = torch.zeros(1, 24, 64)
    predicted = torch.where(masks[:, :, None] > 0, 3.0, 100.0).expand(1, 24, 64)
    assert float(flow_loss(predicted, target, masks=masks)) == pytest.approx(9.0)
    half = torch.zeros(1, 1, 16, 16)
    half[..., :8] = 1
    assert float(token_masks(half)) == 0.5


def test_a_mask_of_zeros_is_no_loss_and_no_gradient():
    predicted = normal(2, 4, 8).requires_grad_()
    masks = torch.tensor([[0.0] * 4, [1.0] * 4])
    losses = flow_loss(predicted, normal(2, 4, 8, seed=1), masks=masks)
    assert losses[0] == 0
    losses.sum().backward()
    assert (predicted.grad[0] == 0).all()
    assert (predicted.grad[1] != 0).all()


def test_shapes_that_would_broadcast_are_refused():
    tokens = normal(2, 4, 8)
    with pytest.raises(ValueError, match=r"target must be \[2, 4, 8\], got \[1, 4, 8\]"):
        flow_loss(tokens, tokens[:1])
    with pytest.raises(ValueError, match=r"masks must be \[2, 4\]"):
        flow_loss(tokens, tokens, masks=torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"weights must be \[2\]"):
        flow_loss(tokens, tokens, weights=torch.ones(1))
    with pytest.raises(ValueError, match="noise must be"):
        noised(tokens, tokens[:1], torch.ones(2))
    with pytest.raises(ValueError, match="multiples of 16"):
        token_masks(torch.ones(1, 1, 24, 16))
    with pytest.raises(ValueError, match="multiples of 16"):
        token_masks(torch.ones(1, 16, 16))


def test_validation_losses_are_those_at_the_levels():
    latents, noise = normal(2, 4, 8), normal(2, 4, 8, seed=1)
    seen = []

    def model(tokens, sigmas):
        seen.append(float(sigmas[0]))
        assert torch.equal(tokens, noised(latents, noise, sigmas))
        return velocity(latents, noise) + sigmas[:, None, None]

    found = validation_losses(model, latents, noise, count=4)
    assert seen == [0.125, 0.375, 0.625, 0.875]
    expected = torch.tensor([[s * s for s in seen]] * 2)
    assert torch.allclose(found, expected, rtol=1e-5)

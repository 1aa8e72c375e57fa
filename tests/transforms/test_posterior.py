"""The draw from the posterior: of the right mean and width, and a function of its generator."""

import torch

from penstock.transforms import draw_latents


def test_draws_have_the_posteriors_mean_and_width() -> None:
    n = 40_000
    entry = {
        "mean": torch.tensor([-2.0, 0.0, 5.0]).view(3, 1, 1, 1).expand(3, n, 1, 1).bfloat16(),
        "logvar": torch.tensor([0.0, 2.0, -4.0]).view(3, 1, 1, 1).expand(3, n, 1, 1).bfloat16(),
    }
    drawn = draw_latents(entry, torch.Generator().manual_seed(1))
    assert isinstance(drawn, torch.Tensor)
    assert drawn.dtype == torch.float32
    wide = torch.exp(0.5 * entry["logvar"].float())[:, 0, 0, 0]
    error = (drawn.mean((1, 2, 3)) - entry["mean"].float()[:, 0, 0, 0]) / wide
    assert error.abs().max() < 5 / n**0.5
    assert (drawn.std((1, 2, 3)) / wide - 1).abs().max() < 5 / (2 * n) ** 0.5
    again = draw_latents(entry, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)


def test_log_variances_are_clamped_as_in_diffusers() -> None:
    entry = {"mean": torch.zeros(1, 1, 1, 2), "logvar": torch.tensor([[[[90.0, -90.0]]]])}
    drawn = draw_latents(entry, torch.Generator().manual_seed(1))
    noise = torch.randn(1, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    width = torch.exp(torch.tensor([10.0, -15.0]))
    assert torch.equal(drawn, width * noise)

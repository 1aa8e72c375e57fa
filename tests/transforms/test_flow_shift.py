import math

import pytest
import torch

from penstock.transforms import flux2_mu, flux_mu, shift_sigmas

TOKENS = [*range(1, 9000, 37), 256, 1024, 4096, 4300, 4301, 16384]


def test_mu_is_diffusers():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
        calculate_shift as sd3,
    )

    for n in TOKENS:
        assert flux_mu(n) == calculate_shift(n) == sd3(n)
        more = {"base_seq_len": 64, "max_seq_len": 900, "base_shift": 0.1, "max_shift": 3.0}
        assert flux_mu(n, **more) == calculate_shift(n, **more)


def test_mu_goes_through_its_two_points():
    assert flux_mu(256) == pytest.approx(0.5)
    assert flux_mu(4096) == pytest.approx(1.15)
    assert math.exp(flux_mu(4096)) == pytest.approx(3.1582, abs=1e-4)  # kohya's recommendation


def test_flux2_mu_is_diffusers():
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    for n in TOKENS:
        for steps in (1, 4, 10, 28, 50, 200):
            assert flux2_mu(n, steps) == compute_empirical_mu(n, steps)
    assert flux2_mu(4096, 50) == pytest.approx(2.023, abs=1e-3)


@pytest.mark.parametrize("mu", [-1.0, 0.0, 0.5, 1.15, 2.0])
def test_shift_is_the_schedulers(mu):
    from diffusers import FlowMatchEulerDiscreteScheduler

    sigmas = torch.linspace(0, 1, 1001)
    expected = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).time_shift(
        mu, 1.0, sigmas
    )
    shifted = shift_sigmas(sigmas, mu)
    assert torch.equal(shifted, expected)
    assert (shifted[0], shifted[-1]) == (0, 1)
    if mu == 0:
        assert torch.allclose(shifted, sigmas)

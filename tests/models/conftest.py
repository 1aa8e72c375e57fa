"""Fixtures: a tiny FLUX.1 checkpoint and what its transformer takes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.recipes.tiny_flux import write_tiny_flux
from penstock.transforms import flux_image_ids, flux_text_ids


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of FLUX.1 dev; not to be changed."""
    return write_tiny_flux(tmp_path_factory.mktemp("flux") / "tiny")


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "broken"))


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., dict[str, Any]]:
    """Return a function that makes arguments of flux_velocity."""

    def made(batch: int = 2, height: int = 4, width: int = 6, text: int = 5) -> dict[str, Any]:
        rng = np.random.default_rng(7)

        def normal(*shape: int) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(shape)).float()

        return {
            "tokens": normal(batch, height * width, 64),
            "sigmas": torch.linspace(0.2, 0.9, batch),
            "prompt_embeds": normal(batch, text, 32),
            "pooled_embeds": normal(batch, 32),
            "image_ids": flux_image_ids(height, width),
            "text_ids": flux_text_ids(text),
        }

    return made


@pytest.fixture
def same_random_state() -> Iterator[None]:
    """Fail if the test leaves torch's global generator elsewhere than it was."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)

"""Small models, texts with paddings, images."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from penstock.models.dalle import DALLE, DiscreteVAE

WORDS, LENGTH = 40, 7


def shake(model: nn.Module, seed: int = 0) -> None:
    """Move all trained weights, so that layer scales and biases matter."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            size = 0.5 if name.endswith("scale") else 0.05
            weight += size * torch.randn(weight.shape, generator=draw)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are small: threads only wait for each other, long on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_vae() -> Callable[..., DiscreteVAE]:
    def made(**settings) -> DiscreteVAE:
        sizes = {"image_size": 16, "num_tokens": 20, "codebook_dim": 8, "num_layers": 2}
        torch.manual_seed(0)
        vae = DiscreteVAE(**{**sizes, "hidden_dim": 8, **settings})
        shake(vae)
        return vae

    return made


@pytest.fixture
def make_dalle(make_vae) -> Callable[..., DALLE]:
    """Return a function that makes a DALLE of 7 words and 8 x 8 codes."""

    def made(**settings) -> DALLE:
        sizes = {"dim": 24, "depth": 2, "heads": 2, "dim_head": 12}
        vae = make_vae(image_size=32)
        torch.manual_seed(1)
        dalle = DALLE(vae=vae, num_text_tokens=WORDS, text_seq_len=LENGTH, **{**sizes, **settings})
        shake(dalle)
        return dalle

    return made


@pytest.fixture
def text() -> Tensor:
    """Three texts: with paddings, whole, empty."""
    words = torch.randint(1, WORDS, (3, LENGTH), generator=torch.Generator().manual_seed(2))
    words[0, 3:] = 0
    words[2] = 0
    return words


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def codes() -> Tensor:
    return torch.randint(0, 20, (3, 64), generator=torch.Generator().manual_seed(4))

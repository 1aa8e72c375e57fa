"""Pixels that were changed are told from those that were not."""

from collections.abc import Callable

import pytest
import torch

from penstock.transforms import normalize_image
from penstock.transforms.pixel_sums import denormalized, row_sums

CHANGES: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: x.flip(-1),
    lambda x: x.flip(-2),
    lambda x: x.flip(0),
    lambda x: x.roll(1, -1),
    lambda x: x.transpose(1, 2),
    lambda x: (x + (torch.arange(x.numel()).view_as(x) == 77)).to(torch.uint8),
    lambda x: torch.zeros_like(x),
    lambda x: x[:, :-1],
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_show(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    image = torch.randint(0, 255, (3, 16, 24), generator=torch.Generator().manual_seed(0))
    image = image.to(torch.uint8)
    assert row_sums(image) == row_sums(image.clone())
    assert row_sums(image) != row_sums(change(image))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_level_comes_back(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(denormalized(normalize_image(levels, dtype)), levels)
    assert denormalized(levels) is levels

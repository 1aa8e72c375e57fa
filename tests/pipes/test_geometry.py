import math
from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torchvision.transforms import transforms

from penstock.pipes.draws import Draws
from penstock.pipes.geometry import (
    TRIES,
    Crop,
    cover_crop,
    crop_top_left,
    resized_crop,
    stored_crop,
)
from penstock.pipes.sample import Ref

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
UNIT = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("original", "target", "anchor", "expected"),
    [
        ((600, 400), (512, 512), (0.5, 0.5), Crop(100, 0, 400, 400)),
        ((600, 400), (512, 512), (1, 0), Crop(200, 0, 400, 400)),
        ((400, 600), (512, 512), (0, 1), Crop(0, 200, 400, 400)),
        ((400, 600), (200, 300), (0.3, 0.9), Crop(0, 0, 400, 600)),
        ((100, 100), (256, 512), (0.5, 0.5), Crop(25, 0, 50, 100)),
        ((10, 1000), (64, 64), (0.5, 0.25), Crop(0, 247.5, 10, 10)),
    ],
)
def test_cover_crop_by_hand(original, target, anchor, expected):
    assert cover_crop(original, target, anchor=anchor) == expected


@given(original=SIZES, target=SIZES, y=UNIT, x=UNIT)
def test_cover_crop_is_inside_has_the_ratio_and_is_largest(original, target, y, x):
    crop = cover_crop(original, target, anchor=(y, x))
    slack = 1e-9 * max(original)
    assert min(crop.top, crop.left) >= 0
    assert crop.top + crop.height <= original[0] + slack
    assert crop.left + crop.width <= original[1] + slack
    assert math.isclose(crop.height * target[1], crop.width * target[0], rel_tol=1e-9)
    assert crop.height == original[0] or crop.width == original[1]


class ScriptedTorch:
    """Stands for torch in torchvision: its random numbers are ours, 4k to 4k + 3 for try k."""

    def __init__(self, draws: Draws) -> None:
        self.draws, self.uniforms, self.integers = draws, 0, 0

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def empty(self, _: int) -> "ScriptedTorch":
        return self

    def uniform_(self, low: float, high: float) -> torch.Tensor:
        k, j = divmod(self.uniforms, 2)
        self.uniforms += 1
        number = self.draws.uniform("crop", 4 * k + j)
        return torch.tensor([float(low) + number * (float(high) - float(low))], dtype=torch.float64)

    def randint(self, low: int, high: int, size: tuple[int]) -> torch.Tensor:
        n = 4 * (self.uniforms // 2 - 1) + 2 + self.integers
        self.integers += 1
        return torch.tensor([low + int(self.draws.uniform("crop", n) * (high - low))])


@pytest.mark.parametrize(
    "original", [(375, 500), (500, 375), (64, 640), (640, 64), (3, 90), (5, 5)]
)
def test_resized_crop_is_torchvisions(original, monkeypatch):
    image, scale = torch.empty(3, *original), (0.08, 1.0)
    for seed in range(100):
        draws, ratio = Draws(seed, Ref(0, 0, 0)), (0.75, 1.0 + seed / 100)
        crop = resized_crop(
            original, (64, 64), scale=scale, ratio=ratio, draws=partial(draws.uniform, "crop")
        )
        monkeypatch.setattr(transforms, "torch", ScriptedTorch(draws))
        theirs = transforms.RandomResizedCrop.get_params(image, scale, ratio)
        assert (crop.top, crop.left, crop.height, crop.width) == tuple(theirs)


@given(original=SIZES, target=SIZES, numbers=st.lists(UNIT, min_size=40, max_size=40))
def test_resized_crop_stays_inside_in_whole_pixels(original, target, numbers):
    for ratio in (None, (0.5, 1.5)):
        crop = resized_crop(
            original, target, scale=(0.1, 0.9), ratio=ratio, draws=numbers.__getitem__
        )
        for value in (crop.top, crop.left, crop.height, crop.width):
            assert value == int(value)
        assert min(crop.top, crop.left) >= 0
        assert min(crop.height, crop.width) >= 1
        assert crop.top + crop.height <= original[0]
        assert crop.left + crop.width <= original[1]


@given(original=SIZES, target=SIZES, share=st.floats(0.05, 0.9), number=UNIT)
def test_without_a_ratio_the_targets_own_is_kept(original, target, share, number):
    crop = resized_crop(original, target, scale=(share, share), ratio=None, draws=lambda n: number)
    assume(min(crop.height, crop.width) > 1)
    ideal = target[0] / target[1]
    low = (crop.height - 0.5) / (crop.width + 0.5)
    high = (crop.height + 0.5) / (crop.width - 0.5)
    assert low * (1 - 1e-9) <= ideal <= high * (1 + 1e-9)


def test_resized_crop_falls_back_to_the_centre():
    asked = []

    def draws(n: int) -> float:
        asked.append(n)
        return 0.999

    crop = resized_crop((100, 1000), (64, 64), scale=(1, 1), ratio=(0.75, 4 / 3), draws=draws)
    assert crop == Crop(0, 433, 100, 133)
    assert asked == [n for k in range(TRIES) for n in (4 * k, 4 * k + 1)]
    crop = resized_crop((1000, 100), (64, 64), scale=(1, 1), ratio=(0.75, 4 / 3), draws=draws)
    assert crop == Crop(433, 0, 133, 100)


def test_resized_crop_is_never_empty():
    crop = resized_crop((1000, 1), (100, 400), scale=(1, 1), ratio=None, draws=lambda n: 0.5)
    assert (crop.height, crop.width) == (1, 1)
    crop = resized_crop((1, 1000), (400, 100), scale=(1, 1), ratio=None, draws=lambda n: 0.5)
    assert (crop.height, crop.width) == (1, 1)


def test_resized_crop_covers_all_scales():
    def areas(number: float) -> float:
        crop = resized_crop(
            (1000, 1000), (9, 9), scale=(0.25, 1), ratio=None, draws=lambda n: number
        )
        return crop.height * crop.width / 1e6

    assert areas(0) == 0.25
    assert abs(areas(0.5) - 0.625) < 0.002
    assert areas(0.9999999) == 1.0


@pytest.mark.parametrize(
    ("original", "target", "anchor", "flipped", "expected"),
    [
        ((400, 600), (512, 512), (0.5, 0.5), False, (0, 128)),
        ((400, 600), (512, 512), (0.5, 0.0), False, (0, 0)),
        ((400, 600), (512, 512), (0.5, 0.0), True, (0, 256)),
        ((400, 600), (512, 512), (0.5, 1.0), True, (0, 0)),
        ((600, 400), (512, 512), (1.0, 0.5), False, (256, 0)),
        ((600, 400), (512, 512), (1.0, 0.5), True, (256, 0)),
        ((1024, 1024), (512, 512), (0.5, 0.5), False, (0, 0)),
    ],
)
def test_crop_top_left_by_hand(original, target, anchor, flipped, expected):
    crop = cover_crop(original, target, anchor=anchor)
    assert crop_top_left(crop, original, target, flipped) == expected


def test_crop_top_left_of_a_stretched_region():
    crop = Crop(30, 60, 100, 50)  # to 200 x 200: twice as high, four times as wide
    assert crop_top_left(crop, (400, 300), (200, 200), False) == (60, 240)
    assert crop_top_left(crop, (400, 300), (200, 200), True) == (60, (300 - 60 - 50) * 4)


@given(original=SIZES, target=SIZES, y=UNIT, x=UNIT)
def test_crop_top_left_stays_in_the_resized_image(original, target, y, x):
    crop = cover_crop(original, target, anchor=(y, x))
    for flipped in (False, True):
        top, left = crop_top_left(crop, original, target, flipped)
        assert 0 <= top <= round(original[0] * target[0] / crop.height) - target[0] + 1
        assert 0 <= left <= round(original[1] * target[1] / crop.width) - target[1] + 1


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, Crop(1, 2, 3, 4)),
        (2, Crop(1, 14, 3, 4)),
        (3, Crop(6, 14, 3, 4)),
        (4, Crop(6, 2, 3, 4)),
        (5, Crop(2, 1, 4, 3)),
        (6, Crop(14, 1, 4, 3)),
        (7, Crop(14, 6, 4, 3)),
        (8, Crop(2, 6, 4, 3)),
    ],
)
def test_stored_crop_by_hand(orientation, expected):
    assert stored_crop(Crop(1, 2, 3, 4), (10, 20), orientation) == expected

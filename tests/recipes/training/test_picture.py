import numpy as np
import pytest
import torch
from PIL import Image

from penstock.recipes.training.picture import to_pil


def test_every_kind_becomes_the_same_picture():
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    for picture in (
        Image.fromarray(pixels),
        pixels,
        pixels[::-1][::-1],
        torch.from_numpy(pixels).permute(2, 0, 1),
    ):
        made = to_pil(picture)
        assert (made.mode, made.size) == ("RGB", (5, 4))
        assert np.array_equal(np.asarray(made), pixels)


def test_grey_pictures_are_taken():
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    for picture in (Image.fromarray(grey), grey, torch.from_numpy(grey)[None]):
        assert np.array_equal(np.asarray(to_pil(picture))[:, :, 1], grey)


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (torch.zeros(3, 4, 4), TypeError, "uint8, got torch.float32"),
        (np.zeros((4, 4, 3)), TypeError, "uint8, got float64"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), ValueError, r"\[4, 4, 3\]"),
        (np.zeros((3, 4, 4), np.uint8), ValueError, r"\[3, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "pixels"),
    ],
)
def test_what_is_no_picture_is_refused(picture, error, message):
    with pytest.raises(error, match=message):
        to_pil(picture)

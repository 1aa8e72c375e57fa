import numpy as np
import pytest
from PIL import Image

from penstock.recipes.training.grid import picture_grid

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]


def places(grid):
    """Where each colour lies: (left, top, right, bottom), inclusive."""
    pixels = np.asarray(grid)
    found = []
    for colour in COLOURS:
        y, x = np.nonzero((pixels == colour).all(2))
        found.append((x.min(), y.min(), x.max(), y.max()) if len(x) else None)
    return found


def test_pictures_stand_in_rows():
    pictures = [Image.new("RGB", (150, 100), c) for c in COLOURS]
    grid = picture_grid(pictures, columns=2)
    found = places(grid)
    assert found[0] == (24, 24, 173, 123)
    assert found[1] == (190, 24, 339, 123)
    assert found[2] == (24, 140, 173, 239)
    assert found[4][:2] == (24, 256)
    assert grid.size == (2 * 24 + 2 * 150 + 16, 2 * 24 + 3 * 100 + 2 * 16)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (17, 4)])
def test_columns_make_it_about_square(count, columns):
    grid = picture_grid([Image.new("RGB", (200, 200))] * count)
    assert grid.width == 2 * 24 + columns * 200 + (columns - 1) * 16


def test_captions_and_title_make_room_and_are_drawn():
    pictures = [Image.new("RGB", (200, 100), c) for c in COLOURS[:2]]
    plain = picture_grid(pictures, ["", " "])
    told = picture_grid(pictures, ["", "a cat"], title="samples, step 100")
    assert told.height > plain.height
    below = np.asarray(told)[places(told)[1][3] + 1 :, places(told)[1][0] :]
    assert (below < 90).all(2).any()
    left = np.asarray(told)[places(told)[0][3] + 1 :, : places(told)[0][2]]
    assert not (left < 90).all(2).any()


def test_large_pictures_are_scaled_and_small_ones_are_not():
    pictures = [Image.new("RGB", (1000, 500), COLOURS[0]), Image.new("RGB", (10, 10), COLOURS[1])]
    wide, small = places(picture_grid(pictures, cell=300))[:2]
    assert (wide[2] - wide[0] + 1, wide[3] - wide[1] + 1) == (300, 150)
    assert (small[2] - small[0] + 1, small[3] - small[1] + 1) == (10, 10)
    assert pictures[0].size == (1000, 500)  # left as it was


@pytest.mark.parametrize(
    "caption", ["word " * 500, "x" * 9000, "日本語 🐶", "a\n\n b", "\ud83d", "\x00\x07", "אבג"]
)
def test_any_caption_can_be_drawn(caption):
    grid = picture_grid([Image.new("RGB", (64, 64))], [caption], title=caption)
    assert grid.height < 64 + 2 * 24 + 3 * 18 + 6 + 2 * 28 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pictures": []}, "no pictures"),
        ({"captions": ["a", "b"]}, "1 pictures and 2 captions"),
        ({"columns": 0}, "at least 1, got 384 and 0"),
        ({"cell": 0}, "at least 1, got 0"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        picture_grid(**{"pictures": [Image.new("RGB", (4, 4))], **arguments})

import math

import pytest
import torch
from PIL import Image

from penstock.recipes.training.tracker import Trackers, short_name, short_number


class Fake:
    def __init__(self, *, required=False, fails=False):
        self.required, self.fails, self.told = required, fails, []

    def _take(self, *told):
        if self.fails:
            raise OSError("no room")
        self.told.append(told)

    def progress(self, step):
        self._take("progress", step)

    def log(self, step, values):
        self._take("log", step, values)

    def images(self, step, name, pictures, captions):
        self._take("images", step, name, [p.size for p in pictures], list(captions))

    def text(self, step, name, words):
        self._take("text", step, name, words)

    def close(self, *, failed=False):
        self._take("close", failed)


def test_all_are_told_the_same():
    one, two = Fake(), Fake(required=True)
    with Trackers([one, two]) as trackers:
        trackers.progress(1)
        trackers.log(1, {"train/loss": torch.tensor(0.5), "n": 2})
        trackers.image(1, "samples", Image.new("L", (4, 3)), "a cat")
        trackers.images(2, "samples", [torch.zeros(3, 8, 9, dtype=torch.uint8)] * 2)
        trackers.text(2, "note", "words")
    assert one.told == two.told
    assert one.told == [
        ("progress", 1),
        ("log", 1, {"train/loss": 0.5, "n": 2.0}),
        ("images", 1, "samples", [(4, 3)], ["a cat"]),
        ("images", 2, "samples", [(9, 8)] * 2, ["", ""]),
        ("text", 2, "note", "words"),
        ("close", False),
    ]
    assert [type(value) for value in one.told[1][2].values()] == [float, float]
    trackers.close()
    assert one.told[-2:] != [("close", False)] * 2


def test_close_says_that_it_failed():
    one = Fake()
    with pytest.raises(KeyError), Trackers([one]):
        raise KeyError("x")
    assert one.told == [("close", True)]


def test_one_that_fails_is_left_out_and_said():
    bad, good = Fake(fails=True), Fake()
    trackers = Trackers([bad, good])
    with pytest.warns(RuntimeWarning, match=r"Fake failed .*OSError: no room.*log\.jsonl") as said:
        trackers.log(1, {"a": 1.0})
    assert said[0].filename == __file__
    bad.fails = False
    trackers.log(2, {"a": 1.0})
    trackers.close()
    assert bad.told == []
    assert [told[0] for told in good.told] == ["log", "log", "close"]


def test_one_that_is_required_ends_the_training():
    trackers = Trackers([Fake(required=True, fails=True)])
    with pytest.raises(OSError, match="no room"):
        trackers.log(1, {"a": 1.0})


def test_all_are_closed_even_if_one_fails():
    first, bad, worse = Fake(), Fake(fails=True), Fake(fails=True, required=True)
    with (
        pytest.warns(RuntimeWarning, match="Fake failed"),
        pytest.raises(OSError, match="no room"),
    ):
        Trackers([first, worse, bad]).close()
    assert first.told == [("close", False)]


def test_none_are_told_on_other_ranks():
    with Trackers() as trackers:
        trackers.progress(1)
        trackers.log(1, {"a": 1.0})
        trackers.image(1, "a", Image.new("RGB", (1, 1)))
        trackers.text(1, "a", "b")


@pytest.mark.parametrize("name", ["", "/loss", " loss", "a\nb", "a\x00"])
def test_names_that_no_tracker_could_write(name):
    trackers = Trackers([Fake()])
    with pytest.raises(ValueError, match="a name must not be empty"):
        trackers.log(1, {name: 1.0})
    with pytest.raises(ValueError, match="a name must not be empty"):
        trackers.text(1, name, "words")


def test_what_makes_no_sense_is_refused_on_every_rank():
    for trackers in (Trackers([Fake()]), Trackers()):
        with pytest.raises(ValueError, match="at least 0, got -1"):
            trackers.log(-1, {"a": 1.0})
        with pytest.raises(ValueError, match="0 pictures and 0 captions"):
            trackers.images(1, "a", [])
        with pytest.raises(ValueError, match="1 pictures and 2 captions"):
            trackers.images(1, "a", [Image.new("RGB", (1, 1))], ["x", "y"])


def test_short_words():
    assert [short_name(n) for n in ("train/loss", "val/loss", "images_per_second")] == [
        *("loss", "val/loss", "images/s")
    ]
    found = [short_number(x) for x in (0.41324, 1e-5, 1234.5, 0, math.nan, -math.inf, 123456789)]
    assert found == ["0.4132", "1e-05", "1,234", "0", "nan", "-inf", "1.235e+08"]

import pytest

from penstock.recipes.training.pace import Pace


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_images_per_second_over_the_last_steps():
    clock = Clock()
    pace = Pace(2, clock=clock)
    assert pace.rate() == 0.0
    for images, seconds, rate in [(4, 2.0, 2.0), (4, 1.0, 8 / 3), (8, 1.0, 6.0)]:
        clock.now += seconds
        pace.add(images)
        assert pace.rate() == pytest.approx(rate)


def test_pauses_do_not_count():
    clock = Clock()
    pace = Pace(clock=clock)
    clock.now += 1.0
    with pytest.raises(KeyError), pace.pause():
        clock.now += 100.0
        raise KeyError("x")
    clock.now += 1.0
    pace.add(10)
    assert pace.rate() == pytest.approx(5.0)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Pace(0)

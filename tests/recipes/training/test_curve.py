import math

import numpy as np
import pytest

from penstock.recipes.training.curve import Curve, curves_of
from penstock.recipes.training.run_log import LogLine


def curve(values, name="train/loss"):
    values = np.asarray(values, np.float64)
    return Curve(name, np.arange(1, len(values) + 1), values)


def test_curves_of_a_log():
    lines = [
        LogLine(2, 0.0, values={"b": 1.0, "a": 2.0}),
        LogLine(1, 0.0, values={"a": 3.0}),
        LogLine(2, 1.0, values={"a": 4.0}),
        LogLine(3, 1.0, text="x"),
    ]
    found = curves_of(lines)
    assert list(found) == ["b", "a"]
    assert (found["a"].steps.tolist(), found["a"].values.tolist()) == ([1, 2], [3.0, 4.0])


def test_what_is_not_finite_is_told_apart():
    made = curve([1.0, math.nan, 3.0, math.inf])
    assert made.finite.values.tolist() == [1.0, 3.0]
    assert made.bad_steps.tolist() == [2, 4]


def test_smoothing_by_hand():
    keep = math.exp(-1 / 2)
    one, two, three = curve([1.0, 2.0, 4.0]).smooth(2).values
    assert one == pytest.approx(1.0)
    assert two == pytest.approx((2 + keep) / (1 + keep))
    assert three == pytest.approx((4 + 2 * keep + keep**2) / (1 + keep + keep**2))


def test_smoothing_keeps_a_level_and_skips_what_is_not_finite():
    made = curve([5.0, math.nan, 5.0, 5.0]).smooth(10)
    assert made.values == pytest.approx([5.0] * 3)
    assert made.steps.tolist() == [1, 3, 4]


def test_schedules_are_not_rough_and_losses_are():
    steps = np.arange(1000)
    cosine = np.minimum(1, steps / 100) * (1 + np.cos(np.pi * steps / 1000))
    noise = np.random.default_rng(0).normal(size=1000)
    assert not curve(cosine).is_rough
    assert not curve(np.ones(1000)).is_rough
    cosine[500] = 1000.0  # a spike makes no noise of it
    assert not curve(cosine).is_rough
    assert curve(1 / (1 + steps) + noise).is_rough
    noise[500] = 1000.0
    assert curve(noise).is_rough
    assert not curve(noise[:30]).is_rough  # few points say enough as they are


def test_thinning_keeps_every_spike_and_both_ends():
    values = np.sin(np.arange(10_000) / 700)
    values[1234], values[8765] = 50.0, -40.0
    thin = curve(values).thin(100)
    assert len(thin.steps) <= 202
    assert (thin.values.max(), thin.values.min()) == (50.0, -40.0)
    assert (thin.steps[0], thin.steps[-1]) == (1, 10_000)
    assert (np.diff(thin.steps) > 0).all()
    assert np.array_equal(values[thin.steps - 1], thin.values)
    few = curve(values[:150])
    assert np.array_equal(few.thin(100).values, few.values)

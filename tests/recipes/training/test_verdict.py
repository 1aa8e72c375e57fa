import math

import numpy as np
import pytest

from penstock.recipes.training.curve import Curve
from penstock.recipes.training.verdict import change, verdict


def curve(values, every=100, name="val/loss"):
    values = np.asarray(values, np.float64)
    return Curve(name, np.arange(len(values)) * every, values)


def noisy(levels, spread, seed=0):
    noise = np.random.default_rng(seed).normal(0, spread, len(levels))
    return curve(np.asarray(levels) + noise, every=1, name="train/loss")


@pytest.mark.parametrize(
    ("losses", "kind", "headline"),
    [
        ([0.6, 0.5, 0.45], "good", "Learning"),
        ([0.6, 0.5, 0.45, 0.451], "good", "Learning; level of late"),
        ([0.6, 0.5, 0.45, 0.452, 0.453], "good", "Learning; level of late"),
        ([0.6, 0.5, 0.45, 0.5], "good", "Learning; level of late"),  # one may be chance
        ([0.6, 0.5, 0.45, 0.47, 0.5], "watch", "It may be overfitting"),
        ([0.6, 0.61, 0.7], "watch", "Not learning yet"),
        ([0.6, 0.6], "watch", "Not learning yet"),
        ([0.6, 0.5, math.nan], "bad", "The loss is not a finite number"),
        ([0.6, math.nan, 0.5, 0.4], "good", "Learning"),
        ([-1.0, -2.0, -1.5, -1.2], "watch", "It may be overfitting"),
        ([0.6], "unknown", "Too early to say"),
    ],
)
def test_validation_decides(losses, kind, headline):
    said = verdict(None, curve(losses))
    assert (said.kind, said.headline) == (kind, headline)


def test_figures_of_overfitting():
    train = curve([1.0, 0.8, 0.6, 0.4, 0.2])
    said = verdict(train, curve([0.6, 0.5, 0.45, 0.47, 0.495]))
    assert "from 0.6 at step 0 to 0.45 at step 200 (\N{MINUS SIGN}25 %)" in said.words
    assert "The 2 since then were all higher, the last one 0.495 (+10 %)" in said.words
    assert "the training loss went \N{MINUS SIGN}" in said.words
    assert said.words.endswith("The checkpoint nearest to step 200 may be the best one.")


def test_not_finite_is_said_with_its_first_step():
    values = [0.5] * 30
    values[20:] = [math.inf] * 10
    said = verdict(curve(values, every=1), curve([0.6, 0.5]))
    assert said.kind == "bad"
    assert "It was inf when last logged, and first not finite at step 20" in said.words


@pytest.mark.parametrize(("slope", "kind"), [(-0.5, "good"), (0.5, "bad"), (0.0, "watch")])
def test_a_training_loss_alone(slope, kind):
    levels = 1 + slope * np.linspace(0, 1, 400)
    assert verdict(noisy(levels, 0.3), None).kind == kind
    assert verdict(noisy(levels, 0.3), curve([0.5])).kind == kind


def test_noise_alone_is_seldom_called_a_trend():
    kinds = [verdict(noisy(np.ones(200), 0.3, seed), None).kind for seed in range(400)]
    # Two standard errors: about one in twenty.
    assert 350 < kinds.count("watch") < 399


def test_nothing_can_be_said_of_nothing():
    assert verdict(None, None).kind == "unknown"
    assert verdict(curve([]), curve([])).kind == "unknown"
    assert verdict(curve([1.0] * 19), None).kind == "unknown"
    assert verdict(curve([1.0] * 20), None).kind == "watch"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (2.0, 1.5, "\N{MINUS SIGN}25 %"),
        (2.0, 2.0, "+0 %"),
        (0.0, 0.5, "+0.5"),
        (-1.0, -2.0, "\N{MINUS SIGN}1"),
        (0.1, 0.2, "+100 %"),
    ],
)
def test_changes_in_words(before, after, words):
    assert change(before, after) == words

"""What the losses say, in words: is it learning, is it overfitting."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .curve import Curve
from .tracker import short_number

NOTABLE = 0.01
"""The least relative rise of the validation loss above its lowest that is called one."""
ENOUGH = 20
"""The fewest training losses from which a trend is told."""


@dataclass(frozen=True)
class Verdict:
    """What the losses say.

    Attributes:
        kind: good, watch, bad, or unknown.
        headline: In a few words.
        words: The figures behind it.
    """

    kind: Literal["good", "watch", "bad", "unknown"]
    headline: str
    words: str


def verdict(train: Curve | None, validation: Curve | None) -> Verdict:
    """Return what the losses say.

    The validation loss decides where there are two or more of it. A training loss alone is told to
    fall where the mean of its last quarter is below that of its first by more than twice the
    standard error of their difference: losses of diffusion models vary widely from step to step.

    Args:
        train: The training loss.
        validation: The validation loss; it should be of fixed samples, timesteps and noise.
    """
    for curve in (train, validation):
        if curve is not None and len(curve.values) and not np.isfinite(curve.values[-1]):
            step = int(curve.bad_steps[0])
            return Verdict(
                "bad",
                "The loss is not a finite number",
                f"It was {curve.values[-1]} when last logged, and first not finite at step "
                f"{step:,}. A lower learning rate or clipping of gradients may help; go on from a "
                "checkpoint before that step.",
            )
    train = train.finite if train is not None else None
    if validation is not None and len(validation.finite.steps) > 1:
        return _of_validation(validation.finite, train)
    if train is not None and len(train.steps) >= ENOUGH:
        return _of_training(train)
    return Verdict(
        "unknown", "Too early to say", "There are too few losses yet to tell a trend from noise."
    )


def _of_validation(curve: Curve, train: Curve | None) -> Verdict:
    best = int(curve.values.argmin())
    first, lowest, last = (float(curve.values[i]) for i in (0, best, -1))
    steps = [f"{int(curve.steps[i]):,}" for i in (0, best, -1)]
    since = len(curve.steps) - 1 - best
    if best == 0:
        return Verdict(
            "watch",
            "Not learning yet",
            f"No validation loss has been below the first, {short_number(first)} at step "
            f"{steps[0]}; the last is {short_number(last)} at step {steps[2]}.",
        )
    fall = f"from {short_number(first)} at step {steps[0]} to {short_number(lowest)} at step "
    fall += f"{steps[1]} ({change(first, lowest)})"
    if since >= 2 and last - lowest > NOTABLE * abs(lowest):
        words = f"The validation loss fell {fall}. The {since} since then were all higher, the "
        words += f"last one {short_number(last)} ({change(lowest, last)})"
        at = train.steps <= curve.steps[best] if train is not None else np.zeros(0, bool)
        if train is not None and at.any():
            smooth = train.smooth(smoothing_of(train)).values
            words += f"; the training loss went {change(smooth[at][-1], smooth[-1])} meanwhile"
        return Verdict(
            "watch",
            "It may be overfitting",
            f"{words}. The checkpoint nearest to step {steps[1]} may be the best one.",
        )
    if since:
        return Verdict(
            "good",
            "Learning; level of late",
            f"The validation loss fell {fall}; the last is {short_number(last)} "
            f"({change(lowest, last)} above the lowest) at step {steps[2]}.",
        )
    return Verdict(
        "good", "Learning", f"The validation loss fell {fall}: its latest is its lowest."
    )


def _of_training(curve: Curve) -> Verdict:
    quarter = len(curve.values) // 4
    early, late = curve.values[:quarter], curve.values[-quarter:]
    difference = float(early.mean() - late.mean())
    error = float(np.sqrt(early.var(ddof=1) / quarter + late.var(ddof=1) / quarter))
    means = f"from {short_number(early.mean())} to {short_number(late.mean())} "
    means += f"({change(float(early.mean()), float(late.mean()))}), means of its first and last "
    means += "quarter. Without a validation loss nobody can tell whether it is overfitting."
    if difference > 2 * error:
        return Verdict("good", "The training loss falls", f"It went {means}")
    if difference < -2 * error:
        return Verdict("bad", "The training loss rises", f"It went {means}")
    return Verdict("watch", "No trend yet", f"The training loss went {means} That is within noise.")


def smoothing_of(curve: Curve) -> float:
    """Return over how many points a curve is smoothed."""
    return max(5.0, len(curve.steps) / 25)


def change(before: float, after: float) -> str:
    """Return a change in words: ``-12 %``; where percents would mean nothing, the difference."""
    if before > 0 and after >= 0:
        return f"{100 * (after / before - 1):+.3g} %".replace("-", "\N{MINUS SIGN}")
    return f"{after - before:+.3g}".replace("-", "\N{MINUS SIGN}")

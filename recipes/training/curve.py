"""A curve of a chart: what was logged under one name."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .run_log import LogLine

ROUGH = 6.0
FEW = 30  # points that need no smoothing


@dataclass(frozen=True, eq=False)
class Curve:
    """Numbers by step.

    Attributes:
        name: As it was logged.
        steps: int64 [N], ascending.
        values: float64 [N]; they may be infinite or no number.
    """

    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def finite(self) -> "Curve":
        """The curve without what is no finite number."""
        good = np.isfinite(self.values)
        return Curve(self.name, self.steps[good], self.values[good])

    @property
    def bad_steps(self) -> NDArray[np.int64]:
        """Steps at which the value is no finite number."""
        return self.steps[~np.isfinite(self.values)]

    @property
    def is_rough(self) -> bool:
        """Whether it goes up and down so much that only its trend can be seen.

        That is, whether the way along it is many times its height, spikes cut off. A schedule that
        rises and falls once goes twice its height.
        """
        values = self.finite.values
        if len(values) <= FEW:
            return False
        low, high = np.percentile(values, [1, 99])
        way = np.abs(np.diff(np.clip(values, low, high))).sum()
        return bool(way > ROUGH * (high - low))

    def smooth(self, points: float) -> "Curve":
        """Return the mean of the last values at each step, the latest counting most.

        It is an exponential mean, corrected at its beginning as Adam's is (Kingma and Ba, 2015).

        Args:
            points: Of how many points: the age, in points, that counts 1/e of the latest.
        """
        curve, keep = self.finite, float(np.exp(-1 / points))
        values = np.empty(len(curve.values))
        total = weight = 0.0
        for i, value in enumerate(curve.values.tolist()):
            total = keep * total + (1 - keep) * value
            weight = keep * weight + (1 - keep)
            values[i] = total / weight
        return Curve(self.name, curve.steps, values)

    def thin(self, buckets: int) -> "Curve":
        """Return at most about ``2 * buckets`` points: the least and the greatest of each stretch.

        So that no spike is lost.
        """
        curve = self.finite
        if len(curve.steps) <= 2 * buckets:
            return curve
        edges = np.linspace(0, len(curve.steps), buckets + 1).astype(int)
        kept = {0, len(curve.steps) - 1}
        for a, b in pairwise(edges.tolist()):
            kept |= {a + int(curve.values[a:b].argmin()), a + int(curve.values[a:b].argmax())}
        chosen = np.array(sorted(kept))
        return Curve(self.name, curve.steps[chosen], curve.values[chosen])


def curves_of(lines: Iterable[LogLine]) -> dict[str, Curve]:
    """Return the curves of a log by name, in the order in which the names first came."""
    points: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.values.items():
            points.setdefault(name, {})[line.step] = value  # of a step told twice, the later
    return {
        name: Curve(
            name,
            np.array(sorted(found), np.int64),
            np.array([found[step] for step in sorted(found)], np.float64),
        )
        for name, found in points.items()
    }

"""How the learning rate goes: a factor of the step, or of how the loss goes."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate's factor at each step: a function of the step alone, with no state.

    Attributes:
        kind: ``constant``; ``linear`` or ``cosine`` down to ``floor`` at the last step.
        warmup: Steps over which it rises to 1: 1/(warmup+1), 2/(warmup+1), ...
        floor: Factor at the end.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "linear", "cosine"):
            raise ValueError(f"kind must be constant, linear or cosine, got {self.kind!r}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0 steps, got {self.warmup}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be between 0 and 1, got {self.floor}")

    def factor(self, step: int, steps: int) -> float:
        """Return what the learning rate is multiplied with.

        Args:
            step: The optimizer step that comes, from 0.
            steps: How many the run has.
        """
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.kind == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        left = 1 - done if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.floor + (1 - self.floor) * left


class Plateau:
    """Lower the learning rate's factor when the loss no longer falls.

    As torch's ReduceLROnPlateau does with its relative threshold, but with a state that is JSON.

    Args:
        by: Factor at each lowering.
        patience: Looks without a better loss that are borne.
        threshold: A loss is better when it is below the best by this part of it.
        floor: The factor goes no lower.
    """

    def __init__(
        self,
        *,
        by: float = 0.5,
        patience: int = 10,
        threshold: float = 1e-4,
        floor: float = 0.0,
    ) -> None:
        if not 0 < by < 1:
            raise ValueError(f"by must be between 0 and 1, got {by}")
        if patience < 0:
            raise ValueError(f"patience must be at least 0 looks, got {patience}")
        self.by, self.patience, self.threshold, self.floor = by, patience, threshold, floor
        self.factor = 1.0
        self._best: float | None = None
        self._bad = 0

    def look(self, loss: float) -> None:
        """Take note of a loss (the same on all ranks), and lower the factor where it is time."""
        if self._best is None or loss < self._best - self.threshold * abs(self._best):
            self._best, self._bad = loss, 0
            return
        self._bad += 1
        if self._bad > self.patience:
            self.factor, self._bad = max(self.floor, self.factor * self.by), 0

    def state_dict(self) -> dict[str, Any]:
        """Return the factor and what it follows from."""
        return {"factor": self.factor, "best": self._best, "bad": self._bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.factor, self._best, self._bad = state["factor"], state["best"], state["bad"]


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set each group's rate to its first one times ``factor``; return the first group's."""
    for group in optimizer.param_groups:
        first = group.setdefault("initial_lr", float(group["lr"]))
        if isinstance(group["lr"], torch.Tensor):  # so that compiled steps are not compiled again
            group["lr"].fill_(first * factor)
        else:
            group["lr"] = first * factor
    return float(optimizer.param_groups[0]["lr"])

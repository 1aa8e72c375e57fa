"""Ticks of a chart's axes: round numbers, and what is written at them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from sys import float_info

LEAST, GREATEST = float_info.min, float_info.max


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``, which are drawn at 0 and 1.

    Attributes:
        low: Its beginning.
        high: Its end, greater.
        log: Whether equal ratios are equally long; ``low`` is positive then.
    """

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies: 0 at ``low``, 1 at ``high``, and beyond either."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return -math.inf
        low, high = math.log(self.low), math.log(self.high)  # their ratio may be too great
        return (math.log(value) - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        """Return about ``count`` round numbers on the axis, ascending."""
        return _log_ticks(self.low, self.high, count) if self.log else self._linear(count)

    def _linear(self, count: int) -> list[float]:
        rough = (self.high - self.low) / max(1, count)
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * min((1, 2, 2.5, 5, 10), key=lambda m: abs(math.log(m * power / rough)))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        # A multiple of the step is a rounder number than a sum of steps.
        return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def axis_of(values: Sequence[float], *, log: bool = False, room: float = 0.05) -> Axis:
    """Return an axis that holds all values, and a share of ``room`` beyond them at either end.

    Args:
        values: Finite ones, at least one; positive where ``log``.
        log: As of `Axis`.
        room: A share of the axis, at least 0.
    """
    low, high = min(values), max(values)
    if log:
        beyond = max(math.exp((math.log(high) - math.log(low)) * room), 1.01)
        return Axis(max(low / beyond, LEAST), min(high * beyond, GREATEST), log=True)
    # A flat line is drawn in the middle. Widths beneath float's own grain would make no ticks.
    beyond = (high - low) * room
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        beyond = abs(high) * 0.1 or 1.0
    # All that is counted and measured here is positive: no axis need show what lies below 0.
    bottom = 0.0 if low >= 0 and low - beyond < 0 else low - beyond
    return Axis(bottom, high + beyond)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Return what is written at ticks: as many decimals at each as tell them apart."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest and not 1e-3 <= largest < 1e7:
        return ["0" if tick == 0 else _power(tick) for tick in ticks]
    decimals = max((_decimals(tick) for tick in ticks), default=0)
    if len(ticks) > 1 and ticks[0] > 0 and ticks[-1] / ticks[0] > 50:  # of a logarithmic axis
        return [f"{tick:,.{_decimals(tick)}f}" if tick >= 1e-3 else _power(tick) for tick in ticks]
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Return powers of ten, every so many of them, or 1, 2 and 5 times such where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, round((len(powers) - 2) / max(1, count)))
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        ticks = [float(f"{f}e{p}") for p in powers if p % every == 0 for f in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= min(3, count):
            return ticks
    inside = Axis(low, high).ticks(count)  # under a decade
    return [tick for tick in inside if tick > 0]


def _decimals(tick: float) -> int:
    digits = f"{abs(tick):.10f}".rstrip("0")
    return len(digits.partition(".")[2])


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"

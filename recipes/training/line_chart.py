"""Line charts as SVG: axes with round numbers, raw and smoothed curves, values under the pointer.

Colours and type come from the page's style, so that one chart suits light pages and dark ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

from .axis import Axis, axis_of, tick_labels
from .curve import Curve
from .tracker import short_number
from .verdict import smoothing_of

LEFT, RIGHT, TOP, BOTTOM = 62, 14, 26, 40  # pixels around the plot
BUCKETS = 400  # stretches of a raw curve, about one for each two pixels
STOPS = 100  # places under the pointer
COLOURS = 8  # of the style
LOG_RATIO = 30.0
LIMIT = 1e100  # beyond it, differences would overflow

STYLE = """
:root { --c0: #2563a8; --c1: #d9622b; --c2: #2a8f6d; --c3: #9b4d96; --c4: #b38600; --c5: #3aa0c9;
  --c6: #b8405e; --c7: #6b7280; --bad: #c92a2a }
@media (prefers-color-scheme: dark) {
  :root { --c0: #6ea8e5; --c1: #f0915f; --c2: #5cc4a0; --c3: #cf8fca; --c4: #dcb84a; --c5: #7cc9e8;
    --c6: #e88aa2; --c7: #a3a9b5; --bad: #ff7b7b } }
svg.chart { display: block; width: 100%; height: auto; overflow: visible }
.chart text { fill: var(--faint); font: 12px system-ui, sans-serif;
  font-variant-numeric: tabular-nums }
.chart .grid { stroke: var(--line); stroke-width: 1 } .chart .axis { stroke: var(--faint) }
.chart .raw, .chart .line { fill: none; stroke-linejoin: round; stroke-linecap: round }
.chart .raw { stroke-width: 1; opacity: .28 } .chart .line { stroke-width: 2 }
.chart .dot { stroke: var(--paper); stroke-width: 1.2 } .chart .best { fill: none; stroke-width: 2 }
.chart .bad { fill: var(--bad) } .chart .stop rect { fill: transparent }
.chart .stop line { stroke: var(--faint); stroke-dasharray: 2 3 }
.chart .stop line, .chart .stop text { visibility: hidden }
.chart .stop:hover line, .chart .stop:hover text { visibility: visible }
.chart .stop text { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 4px }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .85rem;
  color: var(--faint); margin: .1rem 0 .3rem }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums }
.legend i { display: inline-block; width: 1.1em; height: 3px; border-radius: 2px;
  vertical-align: middle; margin-right: .4em }
"""


@dataclass(frozen=True, eq=False)
class Drawn:
    """A curve and how it is drawn.

    Attributes:
        curve: Its numbers.
        label: Its name in the legend.
        dots: Whether every point is marked, and nothing smoothed.
        best: Whether its lowest point is marked.
    """

    curve: Curve
    label: str
    dots: bool = False
    best: bool = False


def line_chart(
    curves: Sequence[Drawn],
    *,
    title: str,
    width: int = 360,
    height: int = 220,
    log: bool | None = None,
) -> str:
    """Return a figure in HTML: title, legend with the last values, and the chart in SVG.

    A rough curve is drawn twice, raw and smoothed. The axis is logarithmic where all values are
    positive and they span more than a factor of 30. Spikes of rough curves may go beyond the
    frame: the legend says how many do. Red triangles at the upper edge are values that are no
    finite numbers.

    Args:
        curves: What to draw.
        title: Heading, plain text.
        width: Width in pixels at which the type has its proper size.
        height: Height in pixels.
        log: Whether the axis is logarithmic; without it, as said above.
    """
    main = [_main(drawn) for drawn in curves]
    colours = _colours(curves)
    notes: list[str] = []
    if any(len(curve.steps) for curve in main):
        svg, notes = _svg(curves, main, colours, title, (width, height), log)
    else:
        svg = '<p class="empty faint">no finite values yet</p>'
    legend = "".join(_legend(*entry) for entry in zip(curves, main, colours, strict=True))
    legend += "".join(f"<span>{escape(note)}</span>" for note in notes)
    return (
        f'<figure class="plot"><h3>{escape(title)}</h3><div class="legend">{legend}</div>'
        f"{svg}</figure>"
    )


def _main(drawn: Drawn) -> Curve:
    """Return what is drawn in full colour: the smoothed curve where there is one."""
    curve = drawn.curve
    smoothed = not drawn.dots and curve.is_rough
    return curve.smooth(smoothing_of(curve)) if smoothed else curve.finite


def _is_smoothed(drawn: Drawn) -> bool:
    return not drawn.dots and drawn.curve.is_rough


def _colours(curves: Sequence[Drawn]) -> list[str]:
    if len(curves) <= COLOURS and not (len(curves) > 2 and all(map(_is_number, curves))):
        return [f"var(--c{i})" for i in range(len(curves))]
    # Timesteps and their like have an order: from blue to orange it can be seen.
    share = [i / (len(curves) - 1) for i in range(len(curves))]
    return [f"color-mix(in oklch longer hue, var(--c0), var(--c1) {100 * s:.0f}%)" for s in share]


def _is_number(drawn: Drawn) -> bool:
    try:
        return math.isfinite(float(drawn.label))
    except ValueError:
        return False


def _legend(drawn: Drawn, main: Curve, colour: str) -> str:
    last = f" <b>{escape(short_number(float(main.values[-1])))}</b>" if len(main.values) else ""
    words = escape(drawn.label)
    if _is_smoothed(drawn):
        words += f" (mean of about {smoothing_of(drawn.curve):.0f} points)"
    return f'<span><i style="background:{colour}"></i>{words}{last}</span>'


def _svg(
    curves: Sequence[Drawn],
    main: Sequence[Curve],
    colours: Sequence[str],
    title: str,
    size: tuple[int, int],
    log: bool | None,
) -> tuple[str, list[str]]:
    steps = np.concatenate([drawn.curve.steps for drawn in curves])
    x_axis = axis_of([float(steps.min()), float(steps.max())], room=0.0)
    y_axis = _y_axis(curves, main, log)
    width, height = size
    frame = _Frame(x_axis, y_axis, width, height)
    parts = frame.axes()
    outside = 0
    for drawn, curve, colour in zip(curves, main, colours, strict=True):
        if _is_smoothed(drawn):
            parts.append(frame.path(drawn.curve.thin(BUCKETS), "raw", colour))
            values = drawn.curve.finite.values
            outside += int(((values < y_axis.low) | (values > y_axis.high)).sum())
        thinned = curve if len(curve.steps) < 2 * BUCKETS else curve.thin(BUCKETS)
        parts.append(frame.path(thinned, "line", colour))
        parts += frame.dots(curve, colour) if drawn.dots or len(curve.steps) == 1 else []
        parts += frame.best(curve, colour) if drawn.best and len(curve.steps) > 1 else []
        parts += frame.bad(drawn.curve)
    parts += frame.stops(curves, main)
    label = escape(f"{title} by step", quote=True)
    svg = (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )
    notes = ["logarithmic"] if y_axis.log else []
    if outside:
        notes.append(f"{outside:,} raw point{'s' if outside > 1 else ''} beyond the frame")
    bad = sum(len(drawn.curve.bad_steps) for drawn in curves)
    if bad:
        notes.append(f"{bad:,} not finite")
    return svg, notes


def _y_axis(curves: Sequence[Drawn], main: Sequence[Curve], log: bool | None) -> Axis:
    values = [
        # One spike in a hundred does not press all else flat.
        np.percentile(drawn.curve.finite.values, [1, 99]) if _is_smoothed(drawn) else curve.values
        for drawn, curve in zip(curves, main, strict=True)
    ]
    shown = np.clip(np.concatenate(values), -LIMIT, LIMIT).tolist()
    positive = min(shown) > 0
    if log is None:
        log = max(shown) > LOG_RATIO * min(shown)
    return axis_of(shown, log=log and positive)


class _Frame:
    """Where things lie, in pixels of the SVG."""

    def __init__(self, x: Axis, y: Axis, width: int, height: int) -> None:
        self._x, self._y, self._width, self._height = x, y, width, height
        self._right, self._bottom = width - RIGHT, height - BOTTOM

    def at(self, step: float, value: float) -> tuple[float, float]:
        wide, tall = self._right - LEFT, self._bottom - TOP
        # Beyond the frame by a little, so that a line that leaves it is seen to leave.
        up = min(1.02, max(-0.02, self._y.place(value)))
        return LEFT + wide * self._x.place(step), self._bottom - tall * up

    def axes(self) -> list[str]:
        parts = []
        ticks = self._y.ticks(max(2, (self._height - TOP - BOTTOM) // 36))
        for tick, label in zip(ticks, tick_labels(ticks), strict=True):
            y = self.at(0, tick)[1]
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{self._right}" {_ys(y, y)}/>')
            parts.append(_text(LEFT - 8, y + 4, label, "end"))
        whole = [t for t in self._x.ticks(max(2, self._width // 110)) if t == int(t)]
        for tick, label in zip(whole, tick_labels(whole), strict=True):
            x = self.at(tick, 0)[0]
            parts.append(f'<line class="axis" {_xs(x)} {_ys(self._bottom, self._bottom + 4)}/>')
            parts.append(_text(x, self._bottom + 18, label, "middle"))
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{self._right}" {_ys(self._bottom, self._bottom)}/>'
        )
        parts.append(_text((LEFT + self._right) / 2, self._height - 5, "step", "middle"))
        return parts

    def path(self, curve: Curve, kind: str, colour: str) -> str:
        points = zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
        words = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(s, v) for s, v in points))
        return f'<polyline class="{kind}" style="stroke:{colour}" points="{words}"/>'

    def dots(self, curve: Curve, colour: str) -> list[str]:
        radius = 3.5 if len(curve.steps) <= 60 else 2.0
        points = zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
        return [
            self._circle("dot", step, value, radius, f"fill:{colour}") for step, value in points
        ]

    def best(self, curve: Curve, colour: str) -> list[str]:
        i = int(curve.values.argmin())
        step, value = int(curve.steps[i]), float(curve.values[i])
        x, y = self.at(step, value)
        anchor = "end" if x > self._width * 0.8 else "start" if x < self._width * 0.2 else "middle"
        below = y + 22 < self._bottom - 4
        words = f"lowest {short_number(value)}"
        return [
            self._circle("best", step, value, 6.5, f"stroke:{colour}"),
            _text(x, y + 22 if below else y - 13, words, anchor),
        ]

    def bad(self, curve: Curve) -> list[str]:
        steps = curve.bad_steps[:: max(1, len(curve.bad_steps) // STOPS)]
        return [
            f'<path class="bad" d="M{x - 4:.1f},{TOP} l8,0 l-4,7 z"/>'
            for x in (self.at(step, 0)[0] for step in steps.tolist())
        ]

    def stops(self, curves: Sequence[Drawn], main: Sequence[Curve]) -> list[str]:
        """Return what shows the values of a step while the pointer is above it."""
        every = np.unique(np.concatenate([curve.steps for curve in main]))
        if len(every) > STOPS:
            every = every[np.linspace(0, len(every) - 1, STOPS).astype(int)]
        places = [self.at(step, 0)[0] for step in every.tolist()]
        edges = [LEFT, *((a + b) / 2 for a, b in pairwise(places))]
        edges.append(self._right)
        parts = []
        for i, (step, x) in enumerate(zip(every.tolist(), places, strict=True)):
            words = [f"step {step:,}"]
            for drawn, curve in zip(curves, main, strict=True):
                k = int(np.searchsorted(curve.steps, step, side="right")) - 1
                if k >= 0 and len(curves) <= 4:
                    words.append(f"{drawn.label} {short_number(float(curve.values[k]))}")
            wide = max(0.0, edges[i + 1] - edges[i])
            parts.append(
                f'<g class="stop"><rect x="{edges[i]:.1f}" y="{TOP}" width="{wide:.1f}" '
                f'height="{self._bottom - TOP}"/><line {_xs(x)} {_ys(TOP, self._bottom)}/>'
                + _text(self._right, TOP - 9, "   ".join(words), "end")
                + "</g>"
            )
        return parts

    def _circle(self, kind: str, step: int, value: float, radius: float, style: str) -> str:
        x, y = self.at(step, value)
        tip = escape(f"step {step:,}: {value:.6g}")
        return (
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="{style}">'
            f"<title>{tip}</title></circle>"
        )


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _xs(x: float) -> str:
    return f'x1="{x:.1f}" x2="{x:.1f}"'


def _ys(a: float, b: float) -> str:
    return f'y1="{a:.1f}" y2="{b:.1f}"'

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from penstock.recipes.training import line_chart as charts
from penstock.recipes.training.curve import Curve
from penstock.recipes.training.line_chart import Drawn, line_chart

EVIL = "<script>alert(\"x\")</script> & 'more'"


def drawn(values, label="training", every=10, **how):
    values = np.asarray(values, np.float64)
    return Drawn(Curve(label, np.arange(len(values)) * every, values), label, **how)


class Chart:
    """A chart, read back."""

    def __init__(self, html):
        self.root = ElementTree.fromstring(html.replace("&nbsp;", " "))
        self.words = [w.strip() for w in self.root.itertext() if w.strip()]
        self.svg = self.root.find("svg")

    def of(self, tag, kind):
        return [e for e in self.svg.iter(tag) if e.get("class") == kind]

    def points(self, kind, n=0):
        pairs = self.of("polyline", kind)[n].get("points").split()
        return [tuple(map(float, pair.split(","))) for pair in pairs]


def test_points_lie_where_the_ticks_say():
    chart = Chart(line_chart([drawn([0, 1, 4])], title="T", width=400, height=300))
    labels = {t.text: t for t in chart.svg.iter("text") if t.text != "step"}
    (x0, y0), (x1, y1), (x2, y2) = chart.points("line")
    assert (x0, x2) == (charts.LEFT, 400 - charts.RIGHT)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert float(labels["4.0"].get("y")) - 4 == pytest.approx(y2, abs=0.2)
    assert float(labels["10"].get("x")) == pytest.approx(x1, abs=0.1)
    assert y0 == pytest.approx(300 - charts.BOTTOM)
    assert (y0 - y1) * 4 == pytest.approx(y0 - y2, abs=0.5)
    assert "step" in chart.words


def test_few_points_are_drawn_as_they_are_and_many_rough_ones_twice():
    few = Chart(line_chart([drawn([1, 3, 2])], title="T"))
    assert few.of("polyline", "raw") == []
    noise = np.random.default_rng(0).normal(1, 0.1, 5000)
    many = Chart(line_chart([drawn(noise)], title="T"))
    (raw,), (line,) = many.of("polyline", "raw"), many.of("polyline", "line")
    assert len(raw.get("points").split()) <= 2 * charts.BUCKETS + 2
    assert np.std([y for _, y in many.points("raw")]) > 5 * np.std(
        [y for _, y in many.points("line")]
    )
    assert raw.get("style") == line.get("style")
    assert any(w.startswith("training (mean of about 200 points)") for w in many.words)


def test_a_spike_does_not_press_all_else_flat_and_is_said():
    noise = np.random.default_rng(0).normal(1, 0.1, 1000)
    noise[500] = 1000.0
    chart = Chart(line_chart([drawn(noise, every=1)], title="T", log=False))
    beyond = next(w for w in chart.words if w.endswith("beyond the frame"))
    assert int(beyond.split()[0]) < 25
    heights = [y for _, y in chart.points("raw")]
    assert min(heights) >= 0  # it leaves the frame, but not the picture
    assert np.ptp(np.percentile(heights, [10, 90])) > 50


def test_validation_has_dots_and_its_lowest_is_named():
    chart = Chart(
        line_chart([drawn([0.6, 0.5, 0.55], "validation", dots=True, best=True)], title="T")
    )
    assert [c.find("title").text for c in chart.of("circle", "dot")] == [
        *("step 0: 0.6", "step 10: 0.5", "step 20: 0.55")
    ]
    (ring,) = chart.of("circle", "best")
    assert ring.find("title").text == "step 10: 0.5"
    assert "lowest 0.5" in chart.words


def test_values_are_logarithmic_where_they_span_much():
    values = 10.0 ** -np.arange(4)
    chart = Chart(line_chart([drawn(values)], title="T"))
    assert "logarithmic" in chart.words
    heights = np.diff([y for _, y in chart.points("line")])
    assert heights == pytest.approx([heights[0]] * 3, abs=0.2)
    assert "logarithmic" not in Chart(line_chart([drawn(values)], title="T", log=False)).words
    assert "logarithmic" not in Chart(line_chart([drawn([0, *values])], title="T", log=True)).words


def test_what_is_not_finite_is_marked():
    chart = Chart(line_chart([drawn([1, math.nan, 2, math.inf])], title="T"))
    marks = [float(re.match(r"M([\d.]+)", p.get("d"))[1]) + 4 for p in chart.of("path", "bad")]
    line = chart.points("line")
    assert len(line) == 2
    assert line[0][0] < marks[0] < line[1][0] < marks[1]
    assert "2 not finite" in chart.words


@pytest.mark.parametrize(
    "values",
    [
        [],
        [math.nan],
        [math.inf] * 3,
        [0.0],
        [5.0],
        [2.0] * 50,
        [1e-300, 1e300],
        [-1e308, 1e308],
        [-1e9, 0],
    ],
)
def test_any_values_make_a_chart(values):
    chart = Chart(line_chart([drawn(values, best=True)], title="T"))
    assert "T" in chart.words
    if not np.isfinite(values).any():
        assert "no finite values yet" in chart.words


def test_the_pointer_finds_the_values_of_each_step():
    curves = [drawn([3.0, 2.0, 1.0]), drawn([2.5], "validation", dots=True)]
    chart = Chart(line_chart(curves, title="T"))
    stops = chart.of("g", "stop")
    assert [s.find("text").text for s in stops] == [
        "step 0   training 3   validation 2.5",
        "step 10   training 2   validation 2.5",
        "step 20   training 1   validation 2.5",
    ]
    edges = [(float(s[0].get("x")), float(s[0].get("width"))) for s in stops]
    for (x, wide), (after, _) in pairwise(edges):
        assert x + wide == pytest.approx(after, abs=0.11)
    long = Chart(line_chart([drawn(range(10_000))], title="T"))
    assert len(long.of("g", "stop")) == charts.STOPS


def test_numbered_curves_have_ordered_colours():
    curves = [drawn([1, 2], label) for label in ("0.1", "0.5", "0.9")]
    chart = Chart(line_chart(curves, title="T"))
    styles = [line.get("style") for line in chart.of("polyline", "line")]
    assert [re.search(r"(\d+)%", style)[1] for style in styles] == ["0", "50", "100"]
    named = Chart(line_chart([drawn([1, 2], label) for label in "abc"], title="T"))
    assert named.of("polyline", "line")[2].get("style") == "stroke:var(--c2)"


def test_words_from_outside_are_escaped():
    html = line_chart([drawn([1, 2], EVIL)], title=EVIL)
    assert "<script" not in html
    chart = Chart(html)
    assert chart.root.find("h3").text == EVIL
    assert chart.svg.get("aria-label") == f"{EVIL} by step"

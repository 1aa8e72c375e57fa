import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.recipes.training.axis import Axis, axis_of, tick_labels


@pytest.mark.parametrize(
    ("axis", "count", "labels"),
    [
        (Axis(0, 2400), 4, ["0", "500", "1,000", "1,500", "2,000"]),
        (Axis(0, 2400), 10, [f"{k:,}" for k in range(0, 2401, 250)]),
        (Axis(0.31, 0.52), 4, ["0.35", "0.40", "0.45", "0.50"]),
        (Axis(-1, 1), 4, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        (Axis(0, 1.05e-4), 2, ["0", "5e-5", "1e-4"]),
        (Axis(0, 3e7), 3, ["0", "1e7", "2e7", "3e7"]),
        (Axis(0.9, 1100, log=True), 4, ["1", "10", "100", "1,000"]),
        (Axis(0.05, 3, log=True), 3, ["0.1", "0.3", "1.0", "3.0"]),
        (Axis(1e-6, 2e-4, log=True), 3, ["1e-6", "1e-5", "1e-4"]),
        (Axis(5e-5, 2, log=True), 4, ["1e-4", "0.001", "0.01", "0.1", "1"]),
    ],
)
def test_ticks_are_round(axis, count, labels):
    assert tick_labels(axis.ticks(count)) == labels


def test_places():
    assert [Axis(2, 4).place(x) for x in (1, 2, 3, 4)] == [-0.5, 0, 0.5, 1]
    log = Axis(1, 100, log=True)
    assert [log.place(x) for x in (1, 10, 100)] == pytest.approx([0, 0.5, 1])
    assert log.place(0) == -math.inf


def test_axes_hold_their_values():
    assert axis_of([1, 3]) == Axis(0.9, 3.1)
    assert axis_of([0, 2]) == Axis(0, 2.1)  # no room below zero
    assert axis_of([0.01, 2]).low == 0
    assert axis_of([-2, 2]) == Axis(-2.2, 2.2)
    assert axis_of([4.0, 4.0]) == Axis(3.6, 4.4)
    assert axis_of([0.0]) == Axis(0, 1)
    assert axis_of([3.0, 8.0], room=0.0) == Axis(3, 8)


@given(
    st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=5),
    st.booleans(),
    st.integers(1, 12),
)
def test_any_values_make_an_axis_with_ticks(values, log, count):
    values = [abs(x) + 1e-12 for x in values] if log else values
    axis = axis_of(values, log=log)
    assert axis.low < axis.high
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values)
    ticks = axis.ticks(count)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 3 * count + 3
    assert all(-1e-6 <= axis.place(tick) <= 1 + 1e-6 for tick in ticks)
    assert len(set(tick_labels(ticks))) == len(ticks)

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipes.buckets import MEMO, Buckets

SIDES = st.integers(1, 6000)
SIZES = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=60)
MADE = st.builds(
    Buckets.make,
    st.sampled_from([256, 512, 1000, [256, 512], [512, 768, 1024]]),
    step=st.sampled_from([16, 32, 64]),
    max_ratio=st.sampled_from([1.0, 1.9, 2.5, 4.0]),
    min_gap=st.sampled_from([0.0, 0.05]),
    upscale=st.sampled_from([True, False, 1.25, 3.0]),
)
LISTED = st.builds(
    lambda sizes, upscale: Buckets.make(sizes=sizes, upscale=upscale),
    st.lists(
        st.tuples(*[st.sampled_from([64, 128, 192, 256, 512, 700])] * 2),
        min_size=1,
        max_size=12,
        unique=True,
    ),
    st.sampled_from([True, False, 1.25, 3.0]),
)


def brute_force(buckets, height, width):
    """Return the bucket by the rule's words, in exact arithmetic."""
    sizes, enlarge = buckets.sizes, buckets.enlarge

    def covers(i, factor):
        return sizes[i][0] <= height * factor and sizes[i][1] <= width * factor

    def error(i):
        r, b = Fraction(height, width), Fraction(*sizes[i])
        return max(r / b, b / r), max(b, 1 / b), b

    def area(i):
        return sizes[i][0] * sizes[i][1]

    for level in buckets.levels:
        least = min(map(error, level))
        tied = sorted((i for i in level if error(i) == least), key=area)
        filled = [i for i in tied if covers(i, 1)]
        if filled:
            return filled[-1]
    if covers(tied[0], enlarge):
        return tied[0]
    covered = [i for i in range(len(sizes)) if covers(i, enlarge)]
    if not covered:
        return -1
    largest = max(map(area, covered))
    return min((i for i in covered if area(i) == largest), key=lambda i: (error(i)[0], i))


@settings(max_examples=60, deadline=None)
@given(st.one_of(MADE, LISTED), SIZES)
def test_scalar_and_many_agree_with_brute_force(buckets, sizes):
    expected = [brute_force(buckets, h, w) for h, w in sizes]
    assert [buckets.assign(h, w) for h, w in sizes] == expected
    many = buckets.assign_many(np.array(sizes))
    assert many.dtype == np.int32
    assert many.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(MADE)
def test_ladder_fills_the_budget_and_nothing_else(buckets):
    for level in buckets.levels:
        sizes = [buckets.sizes[i] for i in level]
        square = next(h for h, w in sizes if h == w)
        assert sorted((w, h) for h, w in sizes) == sorted(sizes)
        assert all(h * w <= square * square for h, w in sizes)
        ratios = [Fraction(h, w) for h, w in sizes]
        assert ratios == sorted(set(ratios))


def test_ladder_by_hand():
    # In units of 64 with an area of 64: 8x8, 7x9, 6x10, 5x12; 4x16 is too long; 5x11 could grow.
    tall = [(576, 448), (640, 384), (768, 320)]
    assert Buckets.make().sizes == ((320, 768), (384, 640), (448, 576), (512, 512), *tall)
    assert Buckets.make(512, max_ratio=2).sizes == ((384, 640), (448, 576), (512, 512), *tall[:2])
    assert Buckets.make(575).sizes == Buckets.make(512).sizes
    assert Buckets.make(512, max_ratio=1).sizes == ((512, 512),)
    assert Buckets.make(512, max_ratio=4).sizes[-1] == (1024, 256)
    assert Buckets.make(512, max_ratio=3.99).sizes[-1] == (768, 320)


def test_ladder_is_not_shortened_at_long_ratios():
    assert (1344, 768) in Buckets.make(1024).sizes  # 16:9 within 2 % of the budget


def test_neither_side_can_grow_within_the_budget():
    for h, w in Buckets.make(1024, step=16, max_ratio=4, min_gap=0).sizes:
        assert (h + 16) * w > 1024 * 1024
        assert h * (w + 16) > 1024 * 1024


def test_min_gap_thins_a_small_step_out():
    fine, thin = (Buckets.make(1024, step=16, min_gap=gap) for gap in (0.0, 0.05))
    assert set(thin.sizes) < set(fine.sizes)
    logs = [math.log(h / w) for h, w in thin.sizes]
    assert np.diff(logs).min() >= 0.05
    assert (len(fine), len(thin)) == (47, 23)


def test_nearest_is_by_log_ratio_and_ties_go_to_the_squarer():
    buckets = Buckets.make(sizes=[(100, 100), (400, 100), (100, 400)])
    wide, square, tall = range(3)
    assert buckets.sizes == ((100, 400), (100, 100), (400, 100))
    # The geometric mean of ratios 1 and 4 is 2; the arithmetic one, 2.5, would take 2.2 too.
    assert [buckets.assign(h, 1000) for h in (1999, 2000, 2001, 2200)] == [square] * 2 + [tall] * 2
    assert [buckets.assign(1000, w) for w in (1999, 2000, 2001, 2200)] == [square] * 2 + [wide] * 2
    ties = np.array([(2000, 1000), (1000, 2000)])
    assert buckets.assign_many(ties).tolist() == [square, square]


@settings(max_examples=60, deadline=None)
@given(MADE, SIDES, SIDES)
def test_a_turned_image_goes_to_the_turned_bucket(buckets, height, width):
    index, turned = buckets.assign(height, width), buckets.assign(width, height)
    assert (index < 0) == (turned < 0)
    if index >= 0:
        assert buckets.sizes[index] == buckets.sizes[turned][::-1]


def test_several_resolutions_go_by_what_the_image_fills():
    buckets = Buckets.make([512, 1024])
    size = {side: buckets.sizes[buckets.assign(side, side)] for side in (3000, 1024, 1023, 512, 99)}
    assert size == {
        3000: (1024, 1024),
        1024: (1024, 1024),
        1023: (512, 512),
        512: (512, 512),
        99: (512, 512),
    }
    assert Buckets.make([1024, 512]) == buckets


def test_listed_sizes_of_one_ratio_go_by_what_the_image_fills():
    buckets = Buckets.make(sizes=[(512, 512), (256, 256), (512, 256)])
    assert buckets.sizes[buckets.assign(600, 590)] == (512, 512)
    assert buckets.sizes[buckets.assign(300, 290)] == (256, 256)
    assert buckets.sizes[buckets.assign(100, 90)] == (256, 256)
    assert buckets.sizes[buckets.assign(200, 100)] == (512, 256)


def test_upscale_policies():
    size = (500, 505)
    assert Buckets.make(512).assign(*size) == 3
    assert Buckets.make(512, upscale=False).assign(*size) == -1
    assert Buckets.make(512, upscale=1.0).assign(*size) == -1
    assert Buckets.make(512, upscale=1.05).assign(*size) == 3
    assert Buckets.make(512, upscale=1.02).assign(*size) == -1
    # A pixel too narrow for the nearest (576, 448): the next one is filled, and nothing enlarged.
    strict = Buckets.make(512, upscale=False)
    assert strict.sizes[strict.assign(640, 448)] == (576, 448)
    assert strict.sizes[strict.assign(640, 447)] == (640, 384)


def test_what_fills_no_nearest_bucket_gets_the_largest_it_covers():
    sizes = [(700, 700), (300, 600), (600, 300), (240, 260)]
    buckets = Buckets.make(sizes=sizes, upscale=False)
    images = [(690, 680), (680, 690), (690, 599), (280, 270), (239, 600)]
    expected = [(600, 300), (300, 600), (600, 300), (240, 260), None]
    found = [buckets.assign(h, w) for h, w in images]
    assert [buckets.sizes[i] if i >= 0 else None for i in found] == expected
    assert buckets.assign_many(np.array(images)).tolist() == found


@settings(max_examples=60, deadline=None)
@given(MADE, SIZES)
def test_nothing_is_enlarged_beyond_the_policy(buckets, sizes):
    for h, w in sizes:
        index = buckets.assign(h, w)
        if index < 0:
            assert buckets.enlarge < math.inf
        else:
            bucket_h, bucket_w = buckets.sizes[index]
            assert max(bucket_h / h, bucket_w / w) <= buckets.enlarge * (1 + 1e-12)


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-1, 10)])
def test_sizes_that_are_not_positive_are_refused(size):
    assert Buckets.make().assign(*size) == -1
    assert Buckets.make().assign_many(np.array([size, (512, 512)])).tolist() == [-1, 3]


def test_many_takes_none_and_any_integers():
    buckets = Buckets.make()
    assert buckets.assign_many(np.empty((0, 2))).tolist() == []
    for dtype in (np.uint16, np.int32, np.uint64):
        assert buckets.assign_many(np.array([[3000, 1000]], dtype)).tolist() == [6]


def test_memory_is_bounded_and_not_pickled():
    buckets = Buckets.make(64, step=64, upscale=1.5)
    for height in range(1, MEMO + 10):
        buckets.assign(height, 1)
    assert len(buckets._memo) < MEMO
    data = pickle.dumps(buckets)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy == buckets
    assert hash(copy) == hash(buckets)
    assert copy.assign(3, 2) == buckets.assign(3, 2)


def test_batch_size():
    buckets = Buckets.make(sizes=[(512, 512), (256, 256)])
    small, large = (buckets.sizes.index((side, side)) for side in (256, 512))
    assert buckets.batch_size(small, batch_size=7) == 7
    assert buckets.batch_size(small, pixels=2**18) == 4
    assert buckets.batch_size(large, pixels=2**18) == 1
    assert buckets.batch_size(large, pixels=5) == 1
    for wrong in ({}, {"batch_size": 1, "pixels": 1}, {"batch_size": 0}, {"pixels": 0}):
        with pytest.raises(ValueError, match=r"batch_size|pixels"):
            buckets.batch_size(0, **wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 32}, "at least step 64"),
        ({"resolution": 0}, "resolution must be a whole number"),
        ({"resolution": "512"}, "resolution must be a whole number of 1 or more, got '5'"),
        ({"resolution": 512.5}, "got 512.5"),
        ({"resolution": []}, "one or more sides"),
        ({"resolution": [512, 520]}, "distinct"),
        ({"step": 0}, "step must be"),
        ({"max_ratio": 0.5}, "max_ratio"),
        ({"max_ratio": math.nan}, "max_ratio"),
        ({"min_gap": -1}, "min_gap"),
        ({"sizes": []}, "pairs"),
        ({"sizes": [512]}, "pairs"),
        ({"sizes": [(512, 512, 3)]}, "pairs"),
        ({"sizes": [(512, 0)]}, "width"),
        ({"sizes": [(8, 8), (8, 8)]}, "twice"),
        ({"sizes": [(8, 8)], "resolution": 512}, "not both"),
        ({"upscale": 0.5}, "upscale"),
        ({"upscale": 0}, "upscale"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Buckets.make(**arguments)


@pytest.mark.parametrize("sizes", [np.zeros((3, 3), int), np.zeros((2, 2)), np.zeros(4, int)])
def test_many_refuses_other_arrays(sizes):
    with pytest.raises(ValueError, match=r"integers \[n, 2\]"):
        Buckets.make().assign_many(sizes)

"""Crops and flips: the fixed ones of a sample, and what may come of each."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from penstock.pipes.crops import Crops, CropVariant
from penstock.pipes.draws import Draws
from penstock.pipes.geometry import check_inside
from penstock.pipes.sample import Ref

WIDE, SQUARE = (40, 100), (40, 40)


def visit(i, key="k", shard="00000.tar", seed=0):
    return Draws(seed, Ref(i % 5, 1, i), (shard, key))


@pytest.mark.parametrize("crop", ["random", "resized"])
def test_visits_draw_among_the_fixed_crops(crop):
    crops = Crops(crop, flip=0.25, variants=4)
    listed = crops.outcomes(WIDE, SQUARE, visit(0))
    assert len(listed) == len({v for _, v in listed}) == 8
    assert {(w, v.flip) for w, v in listed} == {(Fraction(3, 16), False), (Fraction(1, 16), True)}
    assert [v.variant for _, v in listed] == [0, 0, 1, 1, 2, 2, 3, 3]
    found = {crops.draw(WIDE, SQUARE, visit(i)) for i in range(500)}
    assert found == {(v.crop, v.flip) for _, v in listed}
    for _, variant in listed:
        check_inside(variant.crop, WIDE)
    anew = {Crops(crop).draw(WIDE, SQUARE, visit(i))[0] for i in range(500)}
    assert len(anew) > 400


@pytest.mark.parametrize("crop", ["random", "resized"])
def test_a_variant_is_the_samples_and_its_numbers_alone(crop):
    def regions(draws, variants=6):
        return [v.crop for _, v in Crops(crop, variants=variants).outcomes(WIDE, SQUARE, draws)]

    own = regions(visit(0))
    assert regions(visit(77, seed=9)) == own
    assert regions(visit(0), 3) == own[:3]
    assert not set(regions(visit(0, key="l"))) & set(own)
    assert not set(regions(visit(0, shard="00001.tar"))) & set(own)


def test_the_crops_of_a_sample_keep_their_distance():
    nearest = []
    for key, count in itertools.product("abcdefgh", (2, 3, 4, 8)):
        found = Crops("random", variants=count).outcomes(WIDE, SQUARE, visit(0, key))
        places = sorted(v.crop.left / 60 for _, v in found)
        around = np.diff([*places, places[0] + 1])
        nearest.append(around.min() * count)
    assert min(nearest) > 0.4  # by chance they would lie at a tenth of that, often


def test_each_variant_by_itself_lies_anywhere_as_likely():
    crops = Crops("random", variants=5)
    for k in range(5):
        lefts = [crops.region(WIDE, SQUARE, visit(0, str(i)), k).left / 60 for i in range(4000)]
        counts = np.histogram(lefts, 10, (0, 1))[0]
        assert abs(counts - 400).max() < 90, f"variant {k}: {counts}"


def test_the_choices():
    assert Crops().choices() == [(None, False)]
    assert Crops(flip=0.5, variants=3).choices() == [(None, False), (None, True)]
    assert Crops(flip=1).choices() == [(None, True)]
    assert Crops("random", variants=2).choices() == [(0, False), (1, False)]
    assert len(Crops("resized", variants=8, flip=0.1).choices()) == 16
    center = Crops(flip=0.25, variants=3).outcomes(WIDE, SQUARE, visit(0))
    assert [(w, v.variant, v.flip, v.crop.left) for w, v in center] == [
        (Fraction(3, 4), None, False, 30),
        (Fraction(1, 4), None, True, 30),
    ]


def test_crops_that_are_the_same_are_listed_once():
    found = Crops("random", flip=0.5, variants=7).outcomes(SQUARE, SQUARE, visit(0))
    assert [(w, v.variant, v.flip) for w, v in found] == [
        (Fraction(1, 2), 0, False),
        (Fraction(1, 2), 0, True),
    ]


@pytest.mark.parametrize("crop", ["center", "random", "resized"])
def test_one_variant_can_be_made_by_itself(crop):
    crops = Crops(crop, flip=0.5, variants=3)
    for _, variant in crops.outcomes(WIDE, SQUARE, visit(0)):
        only = crops.at(variant.variant, variant.flip)
        for i in range(20):
            assert only.draw(WIDE, SQUARE, visit(i)) == (variant.crop, variant.flip)
        assert only.outcomes(WIDE, SQUARE, visit(0)) == [(1, variant)]
        assert isinstance(variant, CropVariant)


@pytest.mark.parametrize(
    ("crops", "variant", "message"),
    [
        (Crops("random", variants=3), (3, False), r"no \(variant, flip\) \(3, False\)"),
        (Crops("random", variants=3), (None, False), r"no \(variant, flip\)"),
        (Crops("random", variants=3), (0, True), "flip=0.0, variants=3 makes"),
        (Crops(flip=1, variants=3), (None, False), r"no \(variant, flip\)"),
        (Crops(variants=3), (0, False), r"no \(variant, flip\)"),
        (Crops("random"), (0, False), r"crop='random'.*\.decode\(…, variants=K\)"),
        (Crops("resized"), (0, False), "crop='resized'"),
    ],
)
def test_variants_that_no_visit_has_are_refused(crops, variant, message):
    with pytest.raises(ValueError, match=message):
        crops.at(*variant)


def test_endless_crops_are_not_listed():
    with pytest.raises(ValueError, match=r"another one at each visit.*variants=K"):
        Crops("random").outcomes(WIDE, SQUARE, visit(0))
    with pytest.raises(ValueError, match="at least 1"):
        Crops("random", variants=0)

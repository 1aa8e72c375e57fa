from fractions import Fraction

import pytest

from penstock.pipes.draws import Draws
from penstock.pipes.outcomes import check_variants, either, fixed_draws, listed, merged
from penstock.pipes.sample import Ref

DRAWS = [Draws(1, Ref(0, 0, i), ("s.tar", "k")) for i in range(3000)]


def test_equal_outcomes_are_put_together():
    third = Fraction(1, 3)
    assert merged([(third, "b"), (third, "a"), (Fraction(0), "c"), (third, "b")]) == [
        (2 * third, "b"),
        (third, "a"),
    ]


def test_probabilities_are_those_of_the_floats():
    assert either(0) == [(1, False)]
    assert either(1) == [(1, True)]
    assert either(0.1) == [(1 - Fraction(0.1), False), (Fraction(0.1), True)]
    assert either(Fraction(1, 3)) == [(Fraction(2, 3), False), (Fraction(1, 3), True)]


def test_draws_are_fixed_where_there_are_more_outcomes_than_variants():
    for count, variants in ((9, None), (9, 9), (8, 9)):
        assert fixed_draws(DRAWS[0], count, variants, "x") is DRAWS[0]
    own = [DRAWS[0].variant(k).bits("y") for k in range(3)]
    seen = [own.index(fixed_draws(d, 4, 3, "x").bits("y")) for d in DRAWS]
    assert all(abs(seen.count(k) - 1000) < 120 for k in range(3))
    again = [own.index(fixed_draws(d, 4, 3, "z").bits("y")) for d in DRAWS]
    assert abs(sum(a == b for a, b in zip(seen, again, strict=True)) - 1000) < 120


def test_what_is_listed():
    assert listed(64, None, "w", "m")
    assert listed(65, 65, "w", "m")
    assert not listed(66, 65, "w", "m")
    with pytest.raises(ValueError, match=r"^w: more than 64 .*Give .m\(…, variants=K"):
        listed(65, None, "w", "m")


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "4"])
def test_variants_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="at least 1, or None"):
        check_variants(wrong)


def test_variants_that_make_sense():
    for right in (None, 1, 1000):
        check_variants(right)

"""Parts of captions are shuffled and dropped, and what may come of it is listed."""

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.pipes.caption_parts import (
    check_parts,
    drop_caption,
    drop_outcomes,
    drop_parts,
    shuffle_outcomes,
    shuffle_parts,
    split_parts,
)
from penstock.pipes.draws import Draws
from penstock.pipes.sample import Ref

DRAWS = st.builds(lambda seed, i: Draws(seed, Ref(0, 1, i)), st.integers(0, 99), st.integers(0, 99))
WORDS = st.lists(st.text("ab. é川", max_size=5), max_size=9)
NAME = ("00000.tar", "a")
MANY = [Draws(7, Ref(i % 3, i % 11, i), NAME) for i in range(4000)]


@pytest.fixture
def draws():
    return Draws(0, Ref(0, 0, 0), NAME)


def test_shuffle_by_hand(draws):
    assert shuffle_parts("a", draws=draws) == "a"
    assert shuffle_parts("", draws=draws) == ""
    assert shuffle_parts("a,b", keep=1, draws=draws) == "a,b"
    assert shuffle_parts("a,b", keep=9, draws=draws) == "a,b"
    seen = {shuffle_parts("a, b ,,c,", keep=1, draws=d) for d in MANY[:99]}
    assert seen == {"a, b, c", "a, c, b"}
    assert {shuffle_parts("a. b", separator=". ", draws=d) for d in MANY[:99]} == {"a. b", "b. a"}
    assert {shuffle_parts("a||b", separator="||", draws=d) for d in MANY[:99]} == {"a|| b", "b|| a"}


@given(WORDS, st.integers(0, 10), st.sampled_from([",", "|", ";;", ", "]), DRAWS)
def test_shuffle_is_a_permutation_that_keeps_the_first(words, keep, separator, draws):
    caption = separator.join(words)
    before = split_parts(caption, separator)
    shuffled = shuffle_parts(caption, separator=separator, keep=keep, draws=draws)
    after = split_parts(shuffled, separator)
    assert sorted(after) == sorted(before)
    assert after[:keep] == before[:keep]
    assert shuffled == shuffle_parts(caption, separator=separator, keep=keep, draws=draws)


def test_every_order_is_as_likely():
    count = Counter(shuffle_parts("x, a, b, c", keep=1, draws=d) for d in MANY)
    assert len(count) == 6
    assert all(abs(n - 4000 / 6) < 100 for n in count.values())


def test_shuffle_probability():
    changed = sum(shuffle_parts("a,b,c,d,e,f,g", p=0.3, draws=d) != "a,b,c,d,e,f,g" for d in MANY)
    assert abs(changed - 1200) < 120


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_captions_are_dropped_at_their_rate(p):
    dropped = sum(drop_caption("a", p=p, draws=d) == "" for d in MANY)
    assert abs(dropped - 4000 * p) <= (0 if p in (0, 1) else 130)


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_parts_are_dropped_at_their_rate_each_by_itself(p):
    left = [split_parts(drop_parts("k,a,b,c", keep=1, p=p, draws=d)) for d in MANY]
    assert all(parts[0] == "k" for parts in left)
    for part in "abc":
        dropped = sum(part not in parts for parts in left)
        assert abs(dropped - 4000 * p) <= (0 if p in (0, 1) else 110)
    both = sum("a" not in parts and "b" not in parts for parts in left)
    assert abs(both - 4000 * p * p) <= (0 if p in (0, 1) else 60)


def test_dropping_at_the_edges(draws):
    assert drop_parts("a,b", p=0, draws=draws) == "a,b"
    assert drop_parts("a,b", p=1, draws=draws) == ""
    assert drop_parts("", p=1, draws=draws) == ""
    assert drop_parts("a|b|c", separator="|", keep=2, p=1, draws=draws) == "a| b"
    assert drop_parts("a,b", keep=5, p=1, draws=draws) == "a,b"


def test_draws_of_different_purposes_are_independent():
    rows = [
        (
            drop_caption("a", p=0.5, draws=d) == "",
            drop_caption("a", p=0.5, draws=d, purpose="2") == "",
        )
        for d in MANY
    ]
    assert all(abs(n - 1000) < 120 for n in Counter(rows).values())


@pytest.mark.parametrize(
    "wrong", [{"separator": ""}, {"keep": -1}, {"p": 1.1}, {"p": float("nan")}]
)
def test_parts_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        check_parts(**wrong)


# Variants and outcomes

LETTERS = "x, a, b, c, d, e, f, g"


@pytest.mark.parametrize("p", [1.0, 0.75])
def test_shuffled_into_one_of_a_few_orders(p):
    seen = Counter(shuffle_parts(LETTERS, keep=1, p=p, variants=8, draws=d) for d in MANY)
    listed = shuffle_outcomes(LETTERS, keep=1, p=p, variants=8, draws=MANY[0])
    assert {caption for _, caption in listed} == set(seen)
    assert len(seen) == 8 + (p < 1)
    assert sum(weight for weight, _ in listed) == 1
    for weight, caption in listed:
        assert abs(seen[caption] - 4000 * weight) < 130
        assert weight == (Fraction(1 - p) if caption == LETTERS else Fraction(p) / 8)


def test_few_orders_are_all_there_each_once():
    for variants in (None, 6, 7):
        listed = shuffle_outcomes("x, a, b, c", keep=1, variants=variants, draws=MANY[0])
        assert len(listed) == 6
        assert {weight for weight, _ in listed} == {Fraction(1, 6)}
        seen = {shuffle_parts("x, a, b, c", keep=1, variants=variants, draws=d) for d in MANY}
        assert seen == {caption for _, caption in listed}
    # Equal orders are one, and so are the caption as it is and its own order.
    alike = shuffle_outcomes("a, a, b", p=0.5, draws=MANY[0])
    third = Fraction(1, 6)
    assert alike == [(third + Fraction(1, 2), "a, a, b"), (third, "a, b, a"), (third, "b, a, a")]
    assert shuffle_outcomes("a,b", p=0, draws=MANY[0]) == [(1, "a,b")]
    assert shuffle_outcomes("a,b", keep=1, draws=MANY[0]) == [(1, "a,b")]
    assert dict(map(reversed, shuffle_outcomes("a,b", p=0.5, draws=MANY[0]))) == {
        "a,b": Fraction(1, 2),  # not shuffled: not joined anew
        "a, b": Fraction(1, 4),
        "b, a": Fraction(1, 4),
    }


def test_variants_are_the_samples_own():
    def orders(name, variants=9, nth=0, seed=0):
        of = Draws(seed, Ref(seed, seed, seed), name).of(nth)
        return [c for _, c in shuffle_outcomes(LETTERS, keep=1, variants=variants, draws=of)]

    own = orders(NAME)
    assert orders(NAME, seed=5) == own
    assert orders(NAME, 6) == own[:6]  # more variants leave those before
    for others in (orders(("00000.tar", "b")), orders(("1.tar", "a")), orders(NAME, nth=1)):
        assert set(others) != set(own)
    with pytest.raises(ValueError, match="given the sample's name"):
        shuffle_parts(LETTERS, variants=3, draws=Draws(0, Ref(0, 0, 0)))


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_parts_dropped_in_one_of_a_few_ways(p):
    seen = Counter(drop_parts(LETTERS, keep=1, p=p, variants=6, draws=d) for d in MANY)
    listed = drop_outcomes(LETTERS, keep=1, p=p, variants=6, draws=MANY[0])
    assert {caption for _, caption in listed} == set(seen)
    assert sum(weight for weight, _ in listed) == 1
    assert all(abs(seen[caption] - 4000 * weight) < 130 for weight, caption in listed)
    assert all((6 * weight).denominator == 1 for weight, _ in listed)
    lost = [
        8 - len(split_parts(caption))
        for i in range(500)
        for weight, caption in drop_outcomes(
            LETTERS, keep=1, p=p, variants=6, draws=Draws(0, Ref(0, 0, 0), ("s", str(i)))
        )
        for _ in range(int(6 * weight))
    ]
    assert len(lost) == 3000
    assert abs(sum(lost) / 3000 - 7 * p) < 0.12


def test_few_ways_to_drop_are_all_there():
    for variants in (None, 4, 64):
        listed = drop_outcomes("k,a,b", keep=1, p=0.25, variants=variants, draws=MANY[0])
        assert dict(map(reversed, listed)) == {
            "k,a,b": Fraction(9, 16),
            "k, a": Fraction(3, 16),
            "k, b": Fraction(3, 16),
            "k": Fraction(1, 16),
        }
    assert drop_outcomes("a,b", p=0, draws=MANY[0]) == [(1, "a,b")]
    assert drop_outcomes("a,b", p=1, draws=MANY[0]) == [(1, "")]
    assert drop_outcomes("a,b", keep=5, p=0.5, draws=MANY[0]) == [(1, "a,b")]
    many = ",".join(map(str, range(3000)))
    assert drop_outcomes(many, keep=1, p=1, draws=MANY[0]) == [(1, "0")]


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        (shuffle_outcomes, r"'0, 1, .*3000 parts that move, in 3000! orders.*\.shuffle_caption\("),
        (drop_outcomes, r"3000 parts that may be dropped, in 2\^3000 ways.*\.drop_caption\("),
    ],
)
def test_too_many_outcomes_want_variants(outcomes, message, draws):
    caption = ", ".join(map(str, range(3000)))
    with pytest.raises(ValueError, match=message + "…, variants=K"):
        outcomes(caption, p=0.5, draws=draws)
    found = outcomes(caption, p=0.5, variants=5, draws=draws)
    assert len(found) == 5 + (outcomes is shuffle_outcomes)
    few, count = ("a,b,c,d", 1 + math.factorial(4)) if len(found) == 6 else ("a,b,c,d,e,f", 64)
    assert len(outcomes(few, p=0.5, draws=draws)) == count
    with pytest.raises(ValueError, match="more than 64 are not listed"):
        outcomes(few + ",g", p=0.5, draws=draws)

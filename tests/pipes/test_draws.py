"""Draws are functions of what they are for, and never change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.pipes.draws import GOLDEN, MASK, Draws, hash64, hash_text, mix64, permutation
from penstock.pipes.sample import Ref

MANY = [Draws(5, Ref(e, s, i)) for e in range(4) for s in range(10) for i in range(100)]
KEYS = st.integers(-(2**70), 2**70)


def test_mix64_is_the_finaliser_of_splitmix64():
    # The first outputs of splitmix64.c (Vigna, prng.di.unimi.it) with seed 0.
    outputs = [mix64((i + 1) * GOLDEN) for i in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert hash64(0) == 0xE220A8397B1DCDAF


def test_draws_are_those_of_runs_that_were_saved_before():
    # Other numbers here mean that no old checkpoint goes on as it would have.
    draws = Draws(3, Ref(1, 2, 4))
    assert hash64(1, 2, 3) == 7702586659592502839
    assert hash_text("shuffle.window") == 2852609041017635186
    assert draws.bits("decode.flip") == 12308634801702084321
    assert draws.bits("decode.flip", 7) == 15346136065646032586
    assert draws.of(1).bits("decode.flip") == 11683075482340510687
    assert permutation(8, 12345).tolist() == [3, 7, 1, 4, 2, 6, 5, 0]


def test_variants_are_those_of_caches_that_were_filled_before():
    # Other numbers here mean that no visit finds what a cache holds.
    draws = Draws(3, Ref(1, 2, 4), ("00012.tar", "000120007"))
    assert draws.variant(0).bits("decode.top") == 9465449343495663670
    assert draws.variant(3).bits("decode.top") == 18176174128588061554
    assert draws.of(1).variant(0).bits("decode.top") == 254815210671225604


def test_variants_are_the_samples_and_nothing_elses():
    draws = Draws(3, Ref(1, 2, 4), ("a.tar", "k"))
    own = draws.variant(2).bits("x")
    assert Draws(9, Ref(5, 6, 7), ("a.tar", "k")).variant(2).bits("x") == own
    assert draws.variant(2).variant(2).bits("x") == own
    others = [Draws(3, Ref(1, 2, 4), n) for n in (("b.tar", "k"), ("a.tar", "l"), ("k", "a.tar"))]
    found = [d.variant(2).bits("x") for d in (*others, draws.of(1))]
    assert len({own, *found, draws.variant(1).bits("x"), draws.variant(2).bits("y")}) == 7
    assert draws.of(1).bits("x") == Draws(3, Ref(1, 2, 4)).of(1).bits("x")
    with pytest.raises(ValueError, match="the sample's name"):
        Draws(3, Ref(1, 2, 4)).variant(0)


@given(st.lists(KEYS, min_size=1, max_size=6))
def test_hash64_depends_on_every_part_and_their_order(parts):
    h = hash64(*parts)
    assert 0 <= h <= MASK
    for i in range(len(parts)):
        assert hash64(*parts[:i], parts[i] + 1, *parts[i + 1 :]) != h
    if parts[0] & MASK != parts[-1] & MASK:
        assert hash64(*parts[::-1]) != h or parts == parts[::-1]
    assert hash64(*parts, 0) != h


def test_text_of_any_file_name_has_a_hash():
    assert hash_text("é\udcff.tar") != hash_text("é.tar")


@given(st.integers(0, 200), KEYS)
def test_a_permutation_has_each_number_once(n, key):
    assert sorted(permutation(n, key).tolist()) == list(range(n))


def test_permutations_are_even():
    firsts = np.array([permutation(5, hash64(1, key)) for key in range(4000)])
    for place in range(5):
        counts = np.bincount(firsts[:, place], minlength=5)
        assert abs(counts - 800).max() < 120, f"place {place}: {counts}"  # 4.7 sigma


@pytest.mark.parametrize("purpose", ["decode.flip", "caption.drop", "x"])
def test_uniform_numbers_are_even(purpose):
    numbers = np.array([d.uniform(purpose) for d in MANY])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, 10, (0, 1))[0]
    assert ((counts - 400.0) ** 2 / 400).sum() < 35  # chi-square, 9 degrees: p = 6e-5
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.07


def test_draws_of_other_purposes_numbers_pipes_and_seeds_are_independent():
    rows = np.array(
        [
            [
                d.uniform("a"),
                d.uniform("b"),
                d.uniform("a", 1),
                d.of(1).uniform("a"),
                d.of(2).uniform("a"),
            ]
            for d in MANY
        ]
    )
    apart = np.corrcoef(rows.T) - np.eye(5)
    assert abs(apart).max() < 0.07
    ref = Ref(0, 1, 2)
    assert len({Draws(seed, ref).bits("a") for seed in range(100)}) == 100
    assert Draws(0, Ref(1, 2, 3)).bits("a") != Draws(0, Ref(3, 2, 1)).bits("a")


def test_of_0_is_the_draws_themselves():
    assert MANY[3].of(0).bits("a") == MANY[3].bits("a")


def test_below_covers_its_range_evenly():
    counts = np.bincount([d.below(7, "n") for d in MANY], minlength=7)
    assert len(counts) == 7
    assert abs(counts - 4000 / 7).max() < 100


def test_shuffled_moves_everything_everywhere():
    firsts = [d.shuffled("abcd", "order")[0] for d in MANY]
    assert all(sorted(d.shuffled("abcd", "order")) == list("abcd") for d in MANY[:50])
    assert min(firsts.count(letter) for letter in "abcd") > 880


def test_generators_are_seeded_by_the_draw():
    a, b = MANY[0], MANY[1]
    assert a.generator("g").random() == a.generator("g").random() != b.generator("g").random()
    assert a.random("g").random() == a.random("g").random() != b.random("g").random()
    assert a.generator("g").random() != a.generator("h").random()

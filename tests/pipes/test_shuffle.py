"""The window moves samples by less than its size, loses none, and resumes anywhere."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipes import Mixer, Shuffler
from penstock.pipes.order import Through
from penstock.pipes.pipe import Pipe

SIZES = [7, 0, 13, 4, 9]  # 33 samples
WINDOWS = [1, 2, 7, 8, 30, 33, 100]


class Counting(Pipe):
    """Passes everything on and counts what was read."""

    def __init__(self, source):
        self.source = source
        self.counts = [0]

    def _order(self, lane):
        counts = self.counts

        class Count(Through):
            def next(self):
                counts[0] += 1
                return self.source.next()

        return Count(self.source._order(lane), lane)


def evens(sample):
    return int(sample["__key__"]) % 2 == 0


@pytest.mark.parametrize("n", WINDOWS)
@pytest.mark.parametrize("lanes", [1, 3])
def test_each_pass_is_a_permutation_of_its_own(n, lanes, fake, open_lane, take):
    for lane in range(lanes):
        plain = take(open_lane(fake(SIZES).lanes(lanes), lane)[0], 100)
        mixed = take(open_lane(fake(SIZES).shuffle(n).lanes(lanes), lane)[0], 100)
        ends = np.cumsum(list(Counter(ref.epoch for ref in plain).values())[:-1]).tolist()
        assert len(ends) >= 2
        for begin, end in zip([0, *ends], ends, strict=False):
            assert sorted(mixed[begin:end]) == sorted(plain[begin:end])
        if n >= 7:
            assert mixed[: ends[0]] != plain[: ends[0]]
        if n == 1:
            assert mixed == plain


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), seed=st.integers(0, 50))
def test_no_sample_moves_n_places(n, seed, fake, open_lane, take):
    def make():
        return fake([100], seed=seed)

    place = {ref: i for i, ref in enumerate(take(open_lane(make())[0], 200))}
    moves = [i - place[ref] for i, ref in enumerate(take(open_lane(make().shuffle(n))[0], 200))]
    assert max(map(abs, moves)) < n


def test_samples_move_as_far_as_they_may(fake, open_lane, take):
    refs = take(open_lane(fake([5000]).shuffle(200))[0], 5000)
    moves = np.arange(5000) - np.array([ref.sample for ref in refs])
    # i + u n, with u even in [0, 1): places differ from i by about u n - n/2.
    assert moves[500:-500].min() < -90
    assert moves[500:-500].max() > 90
    assert 50 < moves[500:-500].std() < 65  # 200 / sqrt(12) = 57.7
    assert abs(np.corrcoef(moves[:-1], moves[1:])[0, 1]) < 0.1


def test_a_window_of_the_whole_pass_leaves_little_order(fake, open_lane, take):
    refs = take(open_lane(fake([3000]).shuffle(30_000))[0], 6000)
    first, second = (np.array([r.sample for r in refs[k : k + 3000]]) for k in (0, 3000))
    for places in (first, second):
        rank_correlation = np.corrcoef(places, np.arange(3000))[0, 1]
        assert abs(rank_correlation) < 0.25  # keys i + u n with n = 10 passes
        neighbours = np.mean(abs(np.diff(places)) == 1)
        assert neighbours < 0.005
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


def test_passes_lanes_and_seeds_are_shuffled_apart(fake, open_lane, take):
    def places(refs):
        return tuple(ref.sample for ref in refs)

    unsorted = {"shuffle_shards": False}
    passes = take(open_lane(fake([40], **unsorted).shuffle(40))[0], 120)
    by_seed = take(open_lane(fake([40], seed=1, **unsorted).shuffle(40))[0], 40)
    by_lane = take(open_lane(fake([40, 40], **unsorted).shuffle(40).lanes(2), 1)[0], 40)
    drawn = [places(passes[k : k + 40]) for k in (0, 40, 80)] + [places(by_seed), places(by_lane)]
    assert len(set(drawn)) == 5


def test_two_shufflers_of_one_graph_draw_apart(fake, open_lane, take):
    # In step, they would bring like places of two sources side by side all the time.
    def make():
        return fake([400], shuffle_shards=False).shuffle(50)

    refs = take(open_lane(make().mix(make()))[0], 800)
    first, second = ([r.sample for r in refs if r.shard == k] for k in (0, 1))
    assert sorted(first) == sorted(second)
    same = sum(a == b for a, b in zip(first, second, strict=True))
    assert same < 40


def test_nested_shufflers_draw_apart_too(fake, open_lane):
    order, _ = open_lane(fake([9]).shuffle(5).mix(fake([9]).shuffle(5)).shuffle(5).shuffle(5))
    mixed = order.source.source
    shufflers = [order, order.source, *mixed.sources]
    assert len({shuffler._key for shuffler in shufflers}) == 4


def test_the_first_sample_leaves_before_the_window_is_full(fake, open_lane):
    source = Counting(fake([10_000]))
    order, _ = open_lane(source.shuffle(1000))
    order.next()
    first = source.counts[0]
    assert first < 250
    for _ in range(500):
        order.next()
    assert source.counts[0] <= first + 1000
    for _ in range(5000):
        order.next()
    assert source.counts[0] <= 5501 + 1001


@pytest.mark.parametrize("n", WINDOWS)
@pytest.mark.parametrize("repeat", [True, False])
def test_every_state_gives_the_same_tail(n, repeat, fake, open_lane, check_tails):
    for lane in (0, 1):
        pipe = fake(SIZES).shuffle(n).lanes(2, "samples", repeat)
        check_tails(lambda pipe=pipe, lane=lane: open_lane(pipe, lane)[0], 45, tail=40)


def graphs(fake):
    few = fake([2, 1]).filter(evens)
    return {
        "filter before": fake(SIZES).filter(evens).shuffle(9),
        "filter behind": fake(SIZES).shuffle(9).filter(evens),
        "nested": fake(SIZES).shuffle(5).shuffle(20),
        "nested over a filter": fake(SIZES).shuffle(20).filter(evens).shuffle(6),
        "over mix": fake(SIZES).mix(fake([5, 6]), weights=[2, 1]).shuffle(9),
        "in mix": fake(SIZES).shuffle(9).mix(fake([5, 6]).shuffle(30)).shuffle(4),
        "over resample": fake(SIZES, resample=True).shuffle(9),
        "few": few.shuffle(50),
        "tiny passes": fake([1, 1]).shuffle(3),
    }


@pytest.mark.parametrize("name", graphs(lambda *a, **k: Counting(None)))
@pytest.mark.parametrize("lanes", [1, 3])
def test_every_state_over_other_pipes_gives_the_same_tail(
    name, lanes, fake, open_lane, check_tails
):
    pipe = graphs(fake)[name].lanes(lanes)
    check_tails(lambda: open_lane(pipe, lanes - 1)[0], 50, tail=30)


def test_over_mixed_sources_every_sample_comes_in_each_of_its_passes(fake, open_lane, take):
    pipe = fake([20]).mix(fake([10]), weights=[2, 1]).shuffle(12)
    refs = take(open_lane(pipe)[0], 900)
    counts = Counter(refs)
    whole = [r for r in counts if r.epoch < 25]
    assert len(whole) == 25 * 30
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("n", [8, 200, 1000])
@pytest.mark.parametrize("walked", [5, 150, 1500, 1999, 2001, 3100])
def test_a_resume_reads_little_again(n, walked, fake, open_lane, take):
    source = Counting(fake([800, 1200]))
    order, _ = open_lane(source.shuffle(n))
    take(order, walked)
    state = json.dumps(order.state())
    source.counts[0] = 0
    expected = take(order, 1)
    new = source.counts[0]
    fresh, _ = open_lane(source.shuffle(n))
    source.counts[0] = 0
    fresh.load(json.loads(state))
    assert take(fresh, 1) == expected
    assert source.counts[0] <= n + n // 8 + new + 2


def test_the_state_does_not_grow(fake, open_lane, take):
    order, _ = open_lane(fake([5000, 5000]).shuffle(1000))
    lengths = []
    for _ in range(40):
        take(order, 700)
        lengths.append(len(json.dumps(order.state())))
    assert max(lengths) < 100
    assert len(order._notes) < 30


def test_a_window_has_at_least_one_place(fake):
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        Shuffler(fake([1]), 0)
    assert Mixer([fake([1]), fake([1])]).shuffle(3).passes_end is False
    assert fake([1]).filter(evens).shuffle(3).shuffle(2).passes_end is True
    assert fake([1], resample=True).shuffle(3).passes_end is False

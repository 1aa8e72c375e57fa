"""Over all lanes each pass visits each sample exactly once; every state goes on where it was."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipes.sample import Ref

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)
GRAPHS = st.fixed_dictionaries(
    {
        "sizes": SIZES,
        "lanes": st.integers(1, 12),
        "by": st.sampled_from(["samples", "shards"]),
        "shuffle_shards": st.booleans(),
        "seed": st.integers(0, 5),
    }
)
SKEWED = [3, 0, 11, 1, 6]


def graph_of(fake, sizes, lanes, by="samples", repeat=True, **more):
    return fake(sizes, **more).lanes(lanes, by, repeat)


def everything(sizes):
    return Counter((shard, i) for shard, size in enumerate(sizes) for i in range(size))


def passes(refs, number):
    """Return how often each sample came in pass ``number``."""
    return Counter((ref.shard, ref.sample) for ref in refs if ref.epoch == number)


@settings(max_examples=60, deadline=None)
@given(given_graph=GRAPHS)
def test_each_pass_visits_each_sample_once(given_graph, fake, open_lane):
    pipe = graph_of(fake, **given_graph)
    refs = []
    for number in range(given_graph["lanes"]):
        order, _ = open_lane(pipe, number)
        ref = order.next().ref
        while ref.epoch < 3:
            refs.append(ref)
            ref = order.next().ref
        assert ref.epoch >= 3
    for number in range(3):
        assert passes(refs, number) == everything(given_graph["sizes"])


@settings(max_examples=60, deadline=None)
@given(given_graph=GRAPHS)
def test_without_repeat_each_sample_comes_once_and_the_end_stays(
    given_graph, fake, open_lane, take
):
    pipe = graph_of(fake, **given_graph, repeat=False)
    refs = []
    for number in range(given_graph["lanes"]):
        order, _ = open_lane(pipe, number)
        refs += take(order, 10_000)
        for _ in range(3):
            with pytest.raises(StopIteration):
                order.next()
            order.load(order.state())
    assert passes(refs, 0) == everything(given_graph["sizes"])
    assert len(refs) == sum(given_graph["sizes"])


@settings(max_examples=30, deadline=None)
@given(given_graph=GRAPHS, repeat=st.booleans(), data=st.data())
def test_every_state_gives_the_same_tail(given_graph, repeat, data, fake, open_lane, check_tails):
    pipe = graph_of(fake, **given_graph, repeat=repeat)
    lane = data.draw(st.integers(0, given_graph["lanes"] - 1))
    check_tails(lambda: open_lane(pipe, lane)[0], 25)


@pytest.mark.parametrize("lanes", [1, 3])
def test_resampled_states_give_the_same_tail(lanes, fake, open_lane, check_tails):
    pipe = graph_of(fake, SKEWED, lanes, resample=True)
    for lane in range(lanes):
        check_tails(lambda lane=lane: open_lane(pipe, lane)[0], 60)


def test_lanes_get_equal_parts(fake, open_lane):
    pipe = graph_of(fake, SKEWED, 4)
    for lane in range(4):
        order, _ = open_lane(pipe, lane)
        found = [order.next().ref.epoch for _ in range(60)]
        assert {Counter(found)[p] for p in range(8)} <= {5, 6}  # of 21 samples


def test_a_lane_takes_turns_at_the_parts_of_a_pass(fake, open_lane, take):
    # Unshuffled, part k of 21 samples in 3 lanes is samples 7k to 7k+6; lane 1 starts with part 1.
    everyone = [(s, i) for s, size in enumerate(SKEWED) for i in range(size)]
    order, _ = open_lane(graph_of(fake, SKEWED, 3, shuffle_shards=False), 1)
    came = [(r.shard, r.sample) for r in take(order, 21)]
    assert came == everyone[7:14] + everyone[14:] + everyone[:7]
    order, _ = open_lane(graph_of(fake, [1] * 7, 3, "shards", shuffle_shards=False), 1)
    assert [r.shard for r in take(order, 7)] == [1, 4, 2, 5, 0, 3, 6]


def test_the_order_depends_on_the_seed_and_the_pass_alone(fake, open_lane, take):
    def orders(seed):
        refs = take(open_lane(graph_of(fake, [4] * 9, 1, seed=seed))[0], 36 * 3)
        return [[r.shard for r in refs if r.epoch == p][::4] for p in range(3)]

    assert orders(1) == orders(1)
    drawn = orders(1) + orders(2)
    assert len({tuple(order) for order in drawn}) == 6
    assert all(sorted(order) == list(range(9)) for order in drawn)


def test_unshuffled_passes_are_in_the_order_listed(fake, open_lane, take):
    order, _ = open_lane(graph_of(fake, [2, 0, 1], 1, shuffle_shards=False))
    once = [(0, 0), (0, 1), (2, 0)]
    assert take(order, 6) == [Ref(p, s, i) for p in range(2) for s, i in once]


def test_resampling_draws_shards_with_replacement(fake, open_lane, take):
    sizes, lanes = [3, 0, 5, 2], 2
    refs = [
        take(open_lane(graph_of(fake, sizes, lanes, resample=True), lane)[0], 3000)
        for lane in range(lanes)
    ]
    for lane, own in enumerate(refs):
        draws = sorted({r.epoch for r in own})
        assert all(draw % lanes == lane for draw in draws)  # no draw is dealt twice
        for draw in draws[:-1]:
            drawn = [r for r in own if r.epoch == draw]
            assert [r.sample for r in drawn] == list(range(sizes[drawn[0].shard]))
    counts = Counter(r.shard for own in refs for r in own if r.sample == 0)
    assert counts.keys() == {0, 2, 3}
    assert min(counts.values()) > 0.8 * max(counts.values())


def test_few_samples_among_empty_shards_are_found_however_long_it_takes(fake, open_lane, take):
    # With these, a lane's turns come to the empty shards many times in a row.
    one = [0, 0, 1]
    for more in ({"resample": True}, {"seed": 1}):
        for by in ("shards", "samples"):
            pipe = graph_of(fake, one, 5, by, **more)
            for lane in range(5):
                refs = take(open_lane(pipe, lane)[0], 300)
                assert {(r.shard, r.sample) for r in refs} == {(2, 0)}


@pytest.mark.parametrize("by", ["samples", "shards"])
@pytest.mark.parametrize("resample", [False, True])
def test_empty_shards_alone_are_an_error(by, resample, fake, open_lane):
    order, _ = open_lane(graph_of(fake, [0, 0, 0], 2, by, resample=resample), 1)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"lane 1 of 2 .*3 shard\(s\).*00000.tar.*empty"):
            order.next()


@pytest.mark.parametrize("resample", [False, True])
def test_a_shard_that_has_changed_is_refused_by_name(resample, fake, open_lane):
    more = {"resample": resample, "shuffle_shards": resample}
    order, _ = open_lane(graph_of(fake, [4, 4], 1, "shards", **more))
    shard = 0
    for _ in range(6):
        shard = order.next().ref.shard
    state = order.state()
    sizes = [4, 4]
    sizes[shard] = 5
    changed, _ = open_lane(graph_of(fake, sizes, 1, "shards", **more))
    changed.load(state)
    with pytest.raises(ValueError, match=f"0000{shard}.tar has changed"):
        changed.next()
    sizes = [5, 5]
    sizes[shard] = 4  # another shard's change is no matter here
    unchanged, _ = open_lane(graph_of(fake, sizes, 1, "shards", **more))
    unchanged.load(state)
    assert unchanged.next().ref == order.next().ref


def test_laps_count_the_passes_begun(fake, open_lane, take):
    order, _ = open_lane(graph_of(fake, [2, 3], 1))
    assert order.laps == 0
    take(order, 6)
    assert order.laps == 1
    take(order, 5)
    assert order.laps == 2
    fresh, _ = open_lane(graph_of(fake, [2, 3], 1))
    fresh.load(order.state())
    assert fresh.laps == 2

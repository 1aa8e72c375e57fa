"""A mix has its proportions in every stretch, and each source its own passes."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipes import Mixer

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=2, max_size=5)


def sources(fake, count, size=30):
    return [fake([size, size // 2], seed=i) for i in range(count)]


def whose(refs, shards=2):
    return [ref.shard // shards for ref in refs]


@settings(max_examples=40, deadline=None)
@given(weights=WEIGHTS)
def test_every_stretch_has_the_proportions(weights, fake, open_lane, take):
    pipe = Mixer(sources(fake, len(weights)), weights)
    came = whose(take(open_lane(pipe)[0], 400))
    for begin in (0, 17, 200):
        for length in (1, 7, 50, 200):
            counts = Counter(came[begin : begin + length])
            for i, weight in enumerate(weights):
                fair = length * weight / sum(weights)
                assert abs(counts[i] - fair) < len(weights)


def test_smooth_weighted_round_robin(fake, open_lane, take):
    # By hand: owed (3, 2) takes 0, then (1, 4) takes 1, (4, 1) takes 0, (2, 3) takes 1, (5, 0).
    pipe = fake([9]).mix(fake([9]), weights=[3, 2])
    assert whose(take(open_lane(pipe)[0], 10), 1) == [0, 1, 0, 1, 0] * 2
    equal = Mixer(sources(fake, 3))
    assert whose(take(open_lane(equal)[0], 6)) == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("lanes", [1, 3])
def test_each_source_has_whole_passes_of_its_own(lanes, fake, open_lane, take):
    pipe = fake([4, 5]).mix(fake([7]), fake([2]), weights=[5, 1, 0.5]).lanes(lanes)
    refs = [r for lane in range(lanes) for r in take(open_lane(pipe, lane)[0], 600)]
    sizes = [4, 5, 7, 2]
    for first, shards in ((0, (0, 1)), (2, (2,)), (3, (3,))):
        own = [r for r in refs if r.shard in shards]
        assert max(Counter(own).values()) == 1, f"source of shard {first}"
        for number in range(3):
            came = {r for r in own if r.epoch == number}
            assert len(came) == sum(sizes[s] for s in shards)


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("lanes", [1, 2])
def test_every_state_gives_the_same_tail(repeat, lanes, fake, open_lane, check_tails):
    inner = fake([3, 4]).mix(fake([5]), weights=[0.1, 0.7])
    pipe = inner.mix(fake([6, 1]), weights=[1, 0.3]).lanes(lanes, "samples", repeat)
    check_tails(lambda: open_lane(pipe, lanes - 1)[0], 40, tail=20)


def test_without_repeat_a_mix_ends_when_all_have_ended(fake, open_lane, take):
    pipe = fake([2]).mix(fake([9]), fake([4]), weights=[3, 1, 1]).lanes(1, repeat=False)
    order, _ = open_lane(pipe)
    refs = take(order, 100)
    assert Counter(r.shard for r in refs) == {0: 2, 1: 9, 2: 4}
    # The two that are left share what is left alike.
    assert abs(Counter(r.shard for r in refs[5:11])[1] - 3) <= 1
    for _ in range(2):
        with pytest.raises(StopIteration):
            order.next()


def test_a_ref_is_resolved_by_its_own_source(make_tar, open_lane):
    from penstock.pipes import ShardLister

    def source(name, key):
        return ShardLister(make_tar([(key, {"txt": key.encode()})], name)).read_tar()

    one = source("a.tar", "a").rename(caption="txt")
    inner = source("b.tar", "b").mix(source("c.tar", "c").rename(text="txt"))
    pipe = one.mix(inner, source("d.tar", "d"))
    order, lane = open_lane(pipe)
    seen = {}
    while len(seen) < 4:
        ref = order.next().ref
        sample = order.resolve(ref)
        assert lane.sources.name(ref) == (sample["__url__"], sample["__key__"])
        assert sample["__ref__"] == ref
        field = next(f for f in sample if not f.startswith("__"))
        seen[sample["__key__"]] = ref.shard, field, sample[field].read()
    assert seen == {
        "a": (0, "caption", b"a"),
        "b": (1, "txt", b"b"),
        "c": (2, "text", b"c"),
        "d": (3, "txt", b"d"),
    }


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], "2 graphs are mixed, and 1 weights given"),
        ([1, 0], "positive numbers, got"),
        ([1, float("nan")], "positive numbers"),
        ([1, float("inf")], "positive numbers"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights, message, fake):
    with pytest.raises(ValueError, match=message):
        Mixer(sources(fake, 2), weights)
    with pytest.raises(ValueError, match="at least two graphs"):
        Mixer(sources(fake, 1))

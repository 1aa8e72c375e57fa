"""Lanes say how the order half is dealt out, and nothing else."""

import pytest

from penstock.pipes import Lanes
from penstock.pipes.graph import Graph


def test_lanes_hold_for_the_whole_order_half_wherever_they_stand(fake, take, open_lane):
    before = fake([9, 8]).lanes(3).shuffle(4).batch(2)
    behind = fake([9, 8]).shuffle(4).batch(2).lanes(3)
    for lane in range(3):
        one, other = open_lane(before, lane)[0], open_lane(behind, lane)[0]
        assert take(one, 20) == take(other, 20)
    assert Graph.of(before).describe_order() == Graph.of(behind).describe_order()


def test_a_graph_without_lanes_has_one(fake):
    lanes = Graph.of(fake([3]).batch(1)).lanes
    assert (lanes.n, lanes.by, lanes.repeat) == (1, "samples", True)


def test_batches_are_batches_behind_lanes(fake):
    assert fake([3]).batch(1).lanes(2).makes_batches
    assert not fake([3]).lanes(2).makes_batches


def test_a_lane_that_there_is_not_is_refused(fake):
    pipe = fake([3]).lanes(2)
    for lane in (2, -1):
        with pytest.raises(ValueError, match=f"no lane {lane}: the graph has 2, from 0"):
            pipe.order(lane)


def test_arguments_that_make_no_sense_are_refused(fake):
    with pytest.raises(ValueError, match="at least 1 lane, got 0"):
        Lanes(fake([1]), 0)
    with pytest.raises(ValueError, match="'samples' or 'shards', got 'shard'"):
        Lanes(fake([1]), 2, "shard")


def test_lanes_print_and_list_their_arguments(fake):
    pipe = fake([1]).lanes(4, "shards", repeat=False)
    assert pipe.arguments() == {"n": 4, "by": "shards", "repeat": False}
    assert repr(pipe).endswith("-> Lanes(n=4, by='shards', repeat=False)")
    assert "\n" not in repr(pipe)


def test_resampling_without_repeat_is_refused(fake):
    # Draws with replacement have no end, and visit no sample just once.
    pipe = fake([3], resample=True).batch(1).lanes(1, repeat=False)
    with pytest.raises(ValueError, match="resample"):
        pipe.order()

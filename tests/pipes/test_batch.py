"""Batches hold what came, in its order."""

import pytest

from penstock.pipes import Batcher


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("lanes", [1, 3])
def test_batches_run_on_over_the_ends_of_passes(drop_last, lanes, fake, open_lane, take):
    for lane in range(lanes):
        refs = take(open_lane(fake([5, 6]).lanes(lanes), lane)[0], 40)
        order, _ = open_lane(fake([5, 6]).batch(4, drop_last=drop_last).lanes(lanes), lane)
        batches = take(order, 10)
        assert [list(b.refs) for b in batches] == [refs[k : k + 4] for k in range(0, 40, 4)]
        assert all(b.size is None for b in batches)


@pytest.mark.parametrize(
    ("samples", "drop_last", "lengths"),
    [
        (11, False, [4, 4, 3]),
        (11, True, [4, 4]),
        (8, False, [4, 4]),
        (8, True, [4, 4]),
        (3, False, [3]),
        (3, True, []),
    ],
)
def test_without_repeat_the_last_batch_is_short_or_dropped(
    samples, drop_last, lengths, fake, open_lane, take
):
    pipe = fake([samples]).shuffle(3).batch(4, drop_last=drop_last).lanes(1, repeat=False)
    order, _ = open_lane(pipe)
    batches = take(order, 9)
    assert [len(b.refs) for b in batches] == lengths
    assert len({ref for b in batches for ref in b.refs}) == sum(lengths)
    for _ in range(2):
        with pytest.raises(StopIteration):
            order.next()


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_every_state_gives_the_same_tail(repeat, drop_last, fake, open_lane, check_tails):
    pipe = fake([7, 8, 6]).shuffle(6).batch(4, drop_last=drop_last).lanes(2, "samples", repeat)
    check_tails(lambda: open_lane(pipe, 1)[0], 9, tail=6)


def test_more_samples_than_there_are_fill_a_batch_in_several_passes(fake, open_lane):
    batch = open_lane(fake([3]).batch(8))[0].next()
    assert [ref.epoch for ref in batch.refs] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_batch_has_at_least_one_sample(fake):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Batcher(fake([1]), 0)

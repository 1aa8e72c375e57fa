"""A join is the same whether a sample passes through or is made again; what lacks is counted."""

import pytest

from penstock.pipes import DataError, Pipe
from penstock.pipes.companion import Companion
from penstock.pipes.errors import MissingData
from penstock.pipes.join_order import JoinOrder, PresentOrder, tar_listers
from penstock.pipes.sample import KEY


class Numbers(Companion):
    """Joins the number that the key is; 3 is not there, 4 is empty, 5 is bad."""

    holds = True

    def __init__(self):
        self.log = []

    def join(self, sample):
        number = int(sample[KEY])
        if number == 3:
            raise MissingData("there is no 3")
        if number == 5:
            raise DataError("5 is bad")
        return {**sample, "number": number}

    def check(self, sample):
        if sample["number"] == 4:
            raise MissingData("4 is empty")

    def hold(self, url):
        self.log.append(("hold", url))

    def release(self, url):
        self.log.append(("release", url))

    def ahead(self, url):
        self.log.append(("ahead", url))


class Joiner(Pipe):
    def __init__(self, source, skip=False):
        self.source = source
        self.skip = skip

    def _order(self, lane):
        companion = lane.sources.companion(self, Numbers)
        source = self.source._order(lane)
        if self.skip:
            return PresentOrder(source, lane, companion, "Joiner()")
        return JoinOrder(source, lane, companion)


def test_a_bare_ref_passes_and_is_joined_when_it_is_made(fake, open_lane):
    order, _ = open_lane(Joiner(fake([9], shuffle_shards=False)))
    items = [order.next() for _ in range(6)]
    assert [item.sample for item in items] == [None] * 6
    assert order.resolve(items[2].ref)["number"] == 2
    for i, words in ((3, "there is no 3"), (5, "5 is bad")):
        with pytest.raises(DataError, match=f"^sample '00000{i}' of 00000.tar: {words}$"):
            order.resolve(items[i].ref)


def test_a_sample_that_passes_is_joined_on_its_way(fake, open_lane, take):
    pipe = Joiner(fake([9], shuffle_shards=False).filter(lambda s: True)).lanes(1, repeat=False)
    order, lane = open_lane(pipe, on_error="skip")
    assert [ref.sample for ref in take(order, 9)] == [0, 1, 2, 4, 6, 7, 8]
    assert [(s.key, s.reason) for s in lane.skipped] == [
        ("000003", "there is no 3"),
        ("000005", "5 is bad"),
    ]
    order, _ = open_lane(pipe)
    take(order, 3)
    with pytest.raises(DataError, match="^sample '000003' of 00000.tar: there is no 3$"):
        order.next()


def test_what_lacks_is_passed_over_and_what_is_bad_is_not(fake, open_lane, take):
    pipe = Joiner(fake([9], shuffle_shards=False), skip=True).lanes(1, repeat=False)
    order, lane = open_lane(pipe, on_error="skip")
    assert [ref.sample for ref in take(order, 9)] == [0, 1, 2, 6, 7, 8]
    assert [s.reason for s in lane.skipped] == ["there is no 3", "4 is empty", "5 is bad"]
    order, lane = open_lane(pipe)
    take(order, 3)
    with pytest.raises(DataError, match="^sample '000005' of 00000.tar: 5 is bad$"):
        order.next()
    assert [s.reason for s in lane.skipped] == ["there is no 3", "4 is empty"]
    assert order.next().sample["number"] == 6  # the walk goes on behind the error


@pytest.mark.parametrize("skip", [False, True])
def test_every_state_gives_the_same_tail(skip, fake, open_lane, check_tails):
    pipe = Joiner(fake([5, 2, 5]), skip).shuffle(3).lanes(2)
    check_tails(lambda: open_lane(pipe, 1, "skip")[0], 20)


def test_files_beside_are_held_with_their_shards(fake, open_lane, take):
    pipe = Joiner(fake([2, 2, 2], shuffle_shards=False)).lanes(1, repeat=False)
    order, lane = open_lane(pipe)
    log = order.companion.log
    take(order, 1)
    assert log == [("hold", "00000.tar"), ("ahead", "00001.tar")]
    take(order, 2)
    assert log[2:] == [("hold", "00001.tar"), ("release", "00000.tar"), ("ahead", "00002.tar")]
    again, _ = open_lane(pipe.source)
    assert again.companion is not order.companion
    assert lane.sources.companion(order and pipe.source, Numbers) is order.companion


def test_a_window_holds_what_it_points_into(fake, open_lane):
    order, _ = open_lane(Joiner(fake([4] * 6)).shuffle(6).lanes(1, repeat=False))
    log = order.source.companion.log
    held = []
    for _ in range(20):
        order.next()
        for what, url in log[:]:
            held.append(url) if what == "hold" else held.remove(url) if what == "release" else None
        log.clear()
        assert {f"{ref.shard:05d}.tar" for _, _, ref in order._heap} <= set(held)


def test_in_a_mix_only_its_own_branch_is_held(fake, open_lane, take):
    one, two = fake([3], shuffle_shards=False), fake([3, 3], shuffle_shards=False, seed=1)
    order, lane = open_lane(Joiner(one).mix(two).lanes(1, repeat=False))
    take(order, 9)
    log = order.sources[0].companion.log
    assert log == [("hold", "00000.tar")]
    assert [len(beside) for beside in lane.sources._beside] == [1, 0]


def test_only_tars_are_joined_to(fake):
    with pytest.raises(
        TypeError, match=r"\.join\(\) joins to samples of tars; .* from a FakeReader"
    ):
        tar_listers(fake([3]), "join")

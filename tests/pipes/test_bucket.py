"""Each sample waits in the bucket of its shape; nothing is lost, nothing is mixed."""

import json
from collections import Counter

import pytest

from penstock.pipes import AspectRatioBucketer, DataError, ShardLister
from penstock.pipes.buckets import Buckets


def bucket(pipe, **more):
    return pipe.bucket_by_aspect_ratio(256, **{"batch_size": 4, "step": 64, **more})


def size_of(order, ref):
    return order.resolve(ref)["__image_size__"]


@pytest.mark.parametrize("upscale", [True, False])
def test_a_batch_has_one_size_the_one_that_its_images_are_assigned(upscale, fake, open_lane, take):
    buckets = Buckets.make(256, step=32, upscale=upscale)
    order, _ = open_lane(bucket(fake([200]).shuffle(50), step=32, upscale=upscale))
    batches = take(order, 150)
    assert len({b.size for b in batches}) > 3
    for batch in batches:
        assert len(batch.refs) == 4
        for ref in batch.refs:
            height, width = size_of(order, ref)
            assert batch.size == buckets.sizes[buckets.assign(height, width)]


@pytest.mark.parametrize("lanes", [1, 3])
def test_nothing_is_lost_and_nothing_comes_twice(lanes, fake, open_lane, take):
    for lane in range(lanes):
        read = take(open_lane(fake([50, 31]).shuffle(9).lanes(lanes), lane)[0], 2000)
        order, _ = open_lane(bucket(fake([50, 31]).shuffle(9)).lanes(lanes), lane)
        came = [ref for batch in take(order, 200) for ref in batch.refs]
        assert len(set(came)) == len(came)
        held = sum(len(b) for b in order.bins) // 3
        assert set(came) <= set(read[: len(came) + held])
        assert held < 4 * len(order.sizes)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("lanes", [1, 2])
def test_without_repeat_leftovers_come_last_or_are_dropped(drop_last, lanes, fake, open_lane, take):
    pipe = bucket(fake([70]), drop_last=drop_last).lanes(lanes, repeat=False)
    came = []
    for lane in range(lanes):
        order, _ = open_lane(pipe, lane)
        batches = take(order, 200)
        lengths = [len(b.refs) for b in batches]
        full = lengths.count(4)
        assert lengths[:full] == [4] * full
        sizes = [b.size for b in batches[full:]]
        assert len(set(sizes)) == len(sizes)
        assert bool(sizes) is not drop_last
        with pytest.raises(StopIteration):
            order.next()
        came += [ref for b in batches for ref in b.refs]
    assert len(set(came)) == len(came)
    assert (len(came) == 70) is not drop_last


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("more", [{}, {"batch_size": None, "pixels": 3 * 256 * 256}])
def test_every_state_gives_the_same_tail(repeat, more, fake, open_lane, check_tails):
    pipe = bucket(fake([40, 33]).shuffle(20), **more).lanes(2, "samples", repeat)
    check_tails(lambda: open_lane(pipe, 1)[0], 25, tail=10)


def test_a_state_without_the_held_refs_would_not_do(fake, open_lane, take):
    # Guards the test above: what waits is in the state, and matters.
    order, _ = open_lane(bucket(fake([40])))
    take(order, 5)
    state = order.state()
    empty, _ = open_lane(bucket(fake([40])))
    assert state[1] != empty.state()[1]
    fresh, _ = open_lane(bucket(fake([40])))
    fresh.load([state[0], empty.state()[1]])
    assert take(fresh, 5) != take(order, 5)


def test_a_pixel_budget_gives_each_bucket_its_own_batch_size(fake, open_lane, take):
    budget = 4 * 256 * 256
    pipe = fake([300]).bucket_by_aspect_ratio([256, 512], pixels=budget, upscale=False)
    lengths = {}
    for batch in take(open_lane(pipe)[0], 150):
        lengths.setdefault(batch.size, set()).add(len(batch.refs))
    assert all(found == {budget // (h * w)} for (h, w), found in lengths.items())
    assert {len(found) for found in lengths.values()} == {1}
    assert len(set.union(*lengths.values())) >= 2
    one = fake([50]).bucket_by_aspect_ratio(256, pixels=10)
    assert {len(b.refs) for b in take(open_lane(one)[0], 20)} == {1}


def test_small_images_are_passed_over_where_they_must_not_be_enlarged(fake, open_lane, take):
    pipe = fake([100]).bucket_by_aspect_ratio(sizes=[(400, 400), (300, 500)], batch_size=4,
                                              upscale=False).lanes(1, repeat=False)  # fmt: skip
    order, _ = open_lane(pipe)
    came = {ref for batch in take(order, 100) for ref in batch.refs}
    assert 10 < len(came) < 90
    everyone = take(open_lane(fake([100]).lanes(1, repeat=False))[0], 200)
    for ref in everyone:
        height, width = size_of(order, ref)
        fits = (height >= 400 and width >= 400) or (height >= 300 and width >= 500)
        assert fits == (ref in came)


def test_a_large_batch_of_few_images_that_fit_is_no_error(fake, open_lane, monkeypatch):
    # Filling it takes many passes, and in each of them some images are refused.
    monkeypatch.setattr("penstock.pipes.bucket.PATIENCE", 10)
    pipe = fake([30]).bucket_by_aspect_ratio(sizes=[(500, 500)], batch_size=64, upscale=False)
    batch = open_lane(pipe)[0].next()
    assert len(batch.refs) == 64
    assert max(ref.epoch for ref in batch.refs) > 5


@pytest.mark.parametrize("lanes", [1, 3])
def test_images_that_all_fit_nowhere_are_an_error(lanes, fake, open_lane, monkeypatch):
    monkeypatch.setattr("penstock.pipes.bucket.PATIENCE", 10)
    pipe = fake([30]).bucket_by_aspect_ratio(4096, 2, upscale=False).lanes(lanes)
    order, _ = open_lane(pipe, lanes - 1)
    message = (
        rf"no image fits a bucket in {2 * lanes + 1} passes of lane {lanes - 1}.*resolution.*4096"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            order.next()


def test_images_without_a_size_are_named_or_noted(make_tar, make_jpeg, open_lane, take):
    samples = [
        ("good", {"jpg": make_jpeg(64, 64, 1)}),
        ("none", {"txt": b"x"}),
        ("bad", {"jpg": b"\xff\xd8\xff\xe0 not much"}),
    ]
    lister = ShardLister(make_tar(samples), shuffle=False)
    for chain in (lister.read_tar(), lister.read_tar().shuffle(1).rename(caption="txt")):
        pipe = chain.bucket_by_aspect_ratio(64, 2)
        order, _ = open_lane(pipe)
        with pytest.raises(DataError, match=r"^sample '(none|good)' of .*00000.tar: has no "):
            order.next()
    order, lane = open_lane(lister.read_tar().bucket_by_aspect_ratio(64, 2), on_error="skip")
    assert [r.sample for r in order.next().refs] == [0, 0]
    assert [s.key for s in lane.skipped] == ["none", "bad"]
    assert lane.skipped[0].reason == "has no image; its fields are: txt"


def test_the_bucket_is_that_of_the_upright_image(make_tar, make_jpeg, open_lane):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    path = make_tar([("a", {"jpg": make_jpeg(64, 128, 1, exif=exif)})])
    pipe = (
        ShardLister(path)
        .read_tar()
        .bucket_by_aspect_ratio(sizes=[(32, 64), (64, 32)], batch_size=1)
    )
    assert open_lane(pipe)[0].next().size == (64, 32)


def test_a_changed_shard_is_refused_when_held_samples_point_into_it(fake, open_lane, take):
    order, _ = open_lane(bucket(fake([40, 40, 1000])))
    take(order, 40)
    held = Counter(order.bins[k][i + 1] for k in range(len(order.bins))
                   for i in range(0, len(order.bins[k]), 3))  # fmt: skip
    state = json.loads(json.dumps(order.state()))
    shard = min(held)
    sizes = [40, 40, 1000]
    sizes[shard] += 1
    changed, _ = open_lane(bucket(fake(sizes)))
    with pytest.raises(ValueError, match=f"0000{shard}.tar has changed.*holds samples of it"):
        changed.load(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give batch_size or pixels"),
        ({"batch_size": 2, "pixels": 9}, "give batch_size or pixels"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"pixels": 0}, "pixels must be at least 1, got 0"),
        ({"batch_size": 2, "resolution": 32}, "at least step 64"),
        ({"batch_size": 2, "max_ratio": 0.5}, "max_ratio"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message, fake):
    with pytest.raises(ValueError, match=message):
        AspectRatioBucketer(fake([1]), **arguments)

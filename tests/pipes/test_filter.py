"""Filters keep what they should, name themselves when they keep nothing, and name bad samples."""

import json

import pytest

from penstock.pipes import CaptionFilter, DataError, Filter, ShardLister, SizeFilter


def third(sample):
    return int(sample["__key__"]) % 3 == 0


def nothing(sample):
    return False


def bad_five(sample):
    if sample["__key__"] == "000005":
        raise DataError("five is bad")
    return True


def test_a_filter_keeps_what_its_predicate_keeps(fake, open_lane, take):
    order, _ = open_lane(fake([10], shuffle_shards=False).filter(third))
    refs = take(order, 8)
    assert [(r.epoch, r.sample) for r in refs] == [(p, i) for p in (0, 1) for i in (0, 3, 6, 9)]


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("repeat", [True, False])
def test_every_state_gives_the_same_tail(lanes, repeat, fake, open_lane, check_tails):
    pipe = fake([7, 8]).filter(third).lanes(lanes, "samples", repeat)
    check_tails(lambda: open_lane(pipe, lanes - 1)[0], 20)


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_filter_that_keeps_nothing_is_an_error_that_names_it(lanes, fake, open_lane, monkeypatch):
    monkeypatch.setattr("penstock.pipes.filter.PATIENCE", 1000)
    order, _ = open_lane(fake([5, 4]).filter(nothing).lanes(lanes), lanes - 1)
    message = rf"Filter\(.*nothing.*\) let no sample through in \d+ passes of lane {lanes - 1}"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            order.next()
    # Of many samples, two passes of each part are enough to say so.
    order, _ = open_lane(fake([3000]).filter(nothing).lanes(2), 1)
    with pytest.raises(ValueError, match="in 5 passes of lane 1"):
        order.next()
    order, _ = open_lane(fake([5]).filter_size(min_side=10_000))
    with pytest.raises(ValueError, match=r"SizeFilter\(min_side=10000, min_pixels=0\) let no"):
        order.next()


def test_without_repeat_a_filter_that_keeps_nothing_ends(fake, open_lane):
    order, _ = open_lane(fake([5]).filter(nothing).lanes(1, repeat=False))
    with pytest.raises(StopIteration):
        order.next()


def test_a_filter_that_keeps_little_is_no_error(fake, open_lane, take):
    # By chance each of 8 lanes misses the one sample in many passes in a row.
    pipe = fake([10] * 10).filter(lambda s: (s["__url__"], s["__key__"]) == ("00003.tar", "000004"))
    for lane in range(3):
        refs = take(open_lane(pipe.lanes(8), lane)[0], 60)
        assert {(r.shard, r.sample) for r in refs} == {(3, 4)}


def test_bad_data_is_raised_with_its_name_or_noted(fake, open_lane, take):
    pipe = fake([8], shuffle_shards=False).filter(bad_five)
    order, _ = open_lane(pipe)
    assert len(take(order, 5)) == 5
    with pytest.raises(DataError, match=r"sample '000005' of 00000.tar: five is bad"):
        order.next()
    order, lane = open_lane(pipe, on_error="skip")
    assert [r.sample for r in take(order, 8)] == [0, 1, 2, 3, 4, 6, 7, 0]
    assert [tuple(s) for s in lane.skipped] == [("00000.tar", "000005", "five is bad")]


def test_other_errors_are_not_skipped(fake, open_lane):
    order, _ = open_lane(fake([8]).filter(lambda sample: sample["txt"]), on_error="skip")
    with pytest.raises(KeyError, match="txt"):
        order.next()


def test_a_filter_behind_a_shuffle_sees_the_same_samples(fake, open_lane, take):
    before = take(open_lane(fake([30]).filter(third).lanes(1, repeat=False))[0], 99)
    behind = take(open_lane(fake([30]).shuffle(9).filter(third).lanes(1, repeat=False))[0], 99)
    assert sorted(before) == sorted(behind)


SIZES = {"a": (40, 60), "b": (100, 100), "c": (30, 120), "d": (64, 64)}


@pytest.fixture
def sized(make_tar, make_jpeg):
    samples = [(k, {"jpg": make_jpeg(h, w, i)}) for i, (k, (h, w)) in enumerate(SIZES.items())]
    return ShardLister(make_tar(samples), shuffle=False).read_tar()


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"min_side": 40}, "abd"),
        ({"min_side": 41}, "bd"),
        ({"max_side": 100}, "abd"),
        ({"max_side": 99}, "ad"),
        ({"min_pixels": 4096}, "bd"),
        ({"max_pixels": 3600}, "ac"),
        ({"max_ratio": 1.5}, "abd"),
        ({"max_ratio": 1}, "bd"),
        ({"min_side": 40, "max_pixels": 4096}, "ad"),
    ],
)
def test_size_filter(limits, kept, sized):
    pipe = sized.filter_size(**limits).lanes(1, repeat=False)
    assert "".join(sample["__key__"] for sample in pipe) == kept


def test_size_filter_counts_orientation_and_refuses_what_has_no_size(
    make_tar, make_jpeg, open_lane
):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    samples = [
        ("turned", {"jpg": make_jpeg(20, 50, 0, exif=exif)}),
        ("text", {"txt": b"hi", "json": b"{}"}),
        ("broken", {"jpg": b"no image"}),
    ]
    pipe = ShardLister(make_tar(samples), shuffle=False).read_tar()
    tall = pipe.filter_size(min_side=1)
    order, lane = open_lane(tall.lanes(1, repeat=False), on_error="skip")
    assert order.next().sample["__image_size__"] == (50, 20)
    with pytest.raises(StopIteration):
        order.next()
    assert [(s.key, s.reason.split(";")[0].split(":")[0]) for s in lane.skipped] == [
        ("text", "has no image"),
        ("broken", "not an image"),
    ]
    assert lane.skipped[0].reason == "has no image; its fields are: txt, json"


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, "abde"),
        ({"min_length": 0}, "abcde"),
        ({"min_length": 3}, "bd"),
        ({"min_length": 0, "max_length": 2}, "ace"),
        ({"min_length": 4, "max_length": 4}, "b"),
        ({"field": "text"}, "e"),
    ],
)
def test_caption_filter_counts_characters(limits, kept, make_tar):
    texts = {"a": "hi", "b": " Fluß\n", "c": "  ", "d": "a longer one"}
    samples = [(k, {"txt": v.encode()}) for k, v in texts.items()] + [("e", {"text": b"x"})]
    pipe = ShardLister(make_tar(samples), shuffle=False).read_tar()
    found = pipe.filter_caption(**limits).lanes(1, repeat=False)
    assert "".join(sample["__key__"] for sample in found) == kept


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"field": "json.alt"}, "ade"),
        ({"field": "json.alt", "min_length": 3}, "de"),
        ({"field": "json.alt", "min_length": 0}, "abcdef"),
        ({"field": "json.alt", "min_length": 0, "max_length": 2}, "abcf"),
        ({"field": "x.json.alt", "min_length": 0, "max_length": 2}, "abcdef"),
        ({"field": "b.json.alt"}, "f"),
    ],
)
def test_caption_filter_looks_into_json(limits, kept, make_tar):
    records = {"a": {"alt": " hi "}, "b": {"alt": None}, "c": {}, "d": {"alt": ["x", "long"]}}
    samples = [(key, {"json": json.dumps(record).encode()}) for key, record in records.items()]
    samples += [("e", {"json": b'{"alt": "short"}'}), ("f", {"b.json": b'{"alt": "f"}'})]
    pipe = ShardLister(make_tar(samples), shuffle=False).read_tar()
    found = pipe.filter_caption(**limits).lanes(1, repeat=False)
    assert "".join(sample["__key__"] for sample in found) == kept


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b'{"alt": 3}', "field 'json': caption must be text, got int 3"),
        (b"[1]", "field 'json': JSON must be an object"),
        (b'{"alt"', "field 'json': JSON cannot be parsed"),
    ],
)
def test_json_without_text_is_bad_data(record, message, make_tar, open_lane):
    path = make_tar([("a", {"json": record})])
    order, _ = open_lane(ShardLister(path).read_tar().filter_caption(field="json.alt"))
    with pytest.raises(DataError, match=f"sample 'a' of .*00000.tar: {message}"):
        order.next()


def test_a_caption_that_is_not_utf8_is_named(make_tar, open_lane):
    path = make_tar([("a", {"txt": b"gr\xfcn"})])
    order, _ = open_lane(ShardLister(path).read_tar().filter_caption())
    message = r"sample 'a' of .*00000.tar: field 'txt': text is not UTF-8: byte 0xfc at offset 2"
    with pytest.raises(DataError, match=message):
        order.next()


def test_arguments_that_make_no_sense_are_refused(fake):
    with pytest.raises(TypeError, match="function, got str"):
        Filter(fake([1]), "width > 3")
    with pytest.raises(ValueError, match=r"at least 1; got 0.5"):
        SizeFilter(fake([1]), max_ratio=0.5)
    with pytest.raises(ValueError, match="min_side=9 is above max_side=8"):
        SizeFilter(fake([1]), min_side=9, max_side=8)
    with pytest.raises(ValueError, match="min_length=9 is above max_length=8"):
        CaptionFilter(fake([1]), min_length=9, max_length=8)

"""Captions are augmented by the sample's draws, each pipe by its own."""

import pytest

from penstock.pipes import CaptionDropper, CaptionShuffler, DataError, ShardLister

TAGS = "one, two, three, four, five"


@pytest.fixture
def loaded(make_tar):
    samples = [(f"{i:03d}", {"txt": TAGS.encode()}) for i in range(200)]
    return ShardLister(make_tar(samples)).read_tar().batch(200).decode()


def captions(make_batch, pipe, g=0):
    return make_batch(pipe, g).batch["caption"]


def test_shuffled_captions_keep_their_parts_and_the_first_ones(loaded, make_batch):
    found = captions(make_batch, loaded.shuffle_caption(keep=2))
    assert all(c.startswith("one, two, ") for c in found)
    assert {tuple(sorted(c.split(", "))) for c in found} == {tuple(sorted(TAGS.split(", ")))}
    assert len(set(found)) == 6
    assert captions(make_batch, loaded.shuffle_caption(keep=2)) == found
    later = captions(make_batch, loaded.shuffle_caption(keep=2), 1)
    assert later != found
    half = captions(make_batch, loaded.shuffle_caption(p=0.5))
    assert 70 < half.count(TAGS) < 130
    assert captions(make_batch, loaded.shuffle_caption(p=0)) == [TAGS] * 200
    slashes = captions(make_batch, loaded.shuffle_caption(separator=" t", keep=1))
    assert slashes != [TAGS] * 200


def test_dropped_captions_are_empty(loaded, make_batch):
    found = captions(make_batch, loaded.drop_caption(0.25))
    assert 30 < found.count("") < 75
    assert set(found) == {"", TAGS}
    assert captions(make_batch, loaded.drop_caption(1)) == [""] * 200
    assert captions(make_batch, loaded.drop_caption(0)) == [TAGS] * 200


def test_parts_are_dropped_singly(loaded, make_batch):
    found = captions(make_batch, loaded.drop_caption(0, parts=0.3, keep=1))
    assert all(c.startswith("one") for c in found)
    for part in ("two", "three", "four", "five"):
        assert 110 < sum(part in c for c in found) < 170


def test_dropping_does_not_follow_shuffling_or_the_flip(loaded, make_batch):
    dropped = [c == "" for c in captions(make_batch, loaded.drop_caption(0.5))]
    shuffled = captions(make_batch, loaded.shuffle_caption(p=0.5).drop_caption(0.5))
    assert [c == "" for c in shuffled] == dropped
    moved = [c != TAGS for c in captions(make_batch, loaded.shuffle_caption(p=0.5))]
    both = sum(a and b for a, b in zip(dropped, moved, strict=True))
    assert 30 < both < 70


def test_two_pipes_of_a_kind_draw_apart(loaded, make_batch):
    once = captions(make_batch, loaded.drop_caption(0.5)).count("")
    twice = captions(make_batch, loaded.drop_caption(0.5).drop_caption(0.5)).count("")
    assert once < 125
    assert 130 < twice < 170


def test_affixes(loaded, make_batch):
    pipe = loaded.affix_caption(prefix="photo of ", suffix=", sharp", trigger="sks")
    assert captions(make_batch, pipe) == [f"sks, photo of {TAGS}, sharp"] * 200
    assert captions(make_batch, loaded.affix_caption(trigger="two")) == [TAGS] * 200
    dropped = captions(make_batch, loaded.drop_caption(1).affix_caption(prefix="x"))
    assert dropped == [""] * 200


def test_a_sample_without_a_caption_is_named(make_tar, make_batch):
    pipe = ShardLister(make_tar([("a", {"cls": b"1"})])).read_tar().batch(1)
    message = r"sample 'a' of .*00000.tar: has no caption: name its field in .decode\(caption=…\)"
    with pytest.raises(DataError, match=message):
        make_batch(pipe.decode().shuffle_caption())
    blank = pipe.decode(caption_default="").shuffle_caption().drop_caption()
    assert captions(make_batch, blank) == [""]


@pytest.mark.parametrize("kind", [CaptionShuffler, CaptionDropper])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.5}, "from 0 to 1, got 1.5"),
        ({"keep": -1}, "at least 0, got -1"),
        ({"separator": ""}, "separator is empty"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(kind, arguments, message, fake):
    with pytest.raises(ValueError, match=message):
        kind(fake([1]), **arguments)
    with pytest.raises(ValueError, match="got 2"):
        CaptionDropper(fake([1]), parts=2)

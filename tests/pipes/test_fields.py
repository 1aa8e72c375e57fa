"""Fields are chosen and renamed alike whether a sample is passed on or made again from its ref."""

import pytest

from penstock.pipes import DataError, Renamer, Selector, ShardLister

SAMPLES = [
    ("a", {"jpg": b"J", "txt": b"T", "json": b"{}"}),
    ("b", {"jpg": b"J", "txt": b"T"}),
]


@pytest.fixture
def reader(make_tar):
    return ShardLister(make_tar(SAMPLES), shuffle=False).read_tar()


def fields(sample):
    return [f for f in sample if not f.startswith("__")]


def test_select_keeps_the_fields_named_in_that_order(reader):
    samples = list(reader.select("txt", "jpg").lanes(1, repeat=False))
    assert [fields(s) for s in samples] == [["txt", "jpg"]] * 2
    assert samples[0]["txt"].read() == b"T"
    assert samples[1]["__key__"] == "b"
    assert samples[1]["__ref__"] == (0, 0, 1)


def test_rename_moves_fields_even_in_a_ring(reader):
    sample = next(iter(reader.rename(caption="txt")))
    assert fields(sample) == ["jpg", "json", "caption"]
    swapped = next(iter(reader.rename(jpg="txt", txt="jpg")))
    assert (swapped["jpg"].read(), swapped["txt"].read()) == (b"T", b"J")
    dotted = next(iter(reader.rename(**{"a.b": "json"})))
    assert dotted["a.b"].read() == b"{}"


def test_made_again_from_its_ref_a_sample_is_the_same(reader, open_lane):
    chosen = reader.filter(lambda s: True).rename(text="txt").select("text")
    order, _ = open_lane(chosen)
    item = order.next()
    assert item.sample is not None
    assert order.resolve(item.ref) == item.sample
    behind, _ = open_lane(chosen.shuffle(1).filter(lambda s: fields(s) == ["text"]))
    assert behind.next().sample == item.sample


def test_bare_refs_pass_without_being_looked_at(reader, open_lane):
    order, _ = open_lane(reader.select("txt"))
    assert order.next().sample is None


def lacking(reader):
    return {"select": reader.select("json"), "rename": reader.rename(x="json")}


@pytest.mark.parametrize("which", ["select", "rename"])
def test_a_sample_without_the_field_is_bad_data(which, reader, open_lane, take):
    looked_at = lacking(reader.filter(lambda s: True))[which].lanes(1, repeat=False)
    message = r"^sample 'b' of .*00000.tar: has no field 'json'; its fields are: jpg, txt$"
    order, _ = open_lane(looked_at)
    order.next()
    with pytest.raises(DataError, match=message):
        order.next()
    order, lane = open_lane(looked_at, on_error="skip")
    assert len(take(order, 9)) == 1
    assert [(s.key, s.reason) for s in lane.skipped] == [
        ("b", "has no field 'json'; its fields are: jpg, txt")
    ]


@pytest.mark.parametrize("which", ["select", "rename"])
def test_one_made_again_names_itself_once(which, reader, open_lane):
    message = r"^sample 'b' of [^ ]*00000.tar: has no field 'json'; its fields are: jpg, txt$"
    order, _ = open_lane(lacking(reader)[which])
    order.next()
    ref = order.next().ref
    with pytest.raises(DataError, match=message):
        order.resolve(ref)
    order, _ = open_lane(lacking(reader)[which].filter(lambda s: True))
    order.next()
    with pytest.raises(DataError, match=message):
        order.next()


def test_every_state_gives_the_same_tail(fake, open_lane, check_tails):
    pipe = fake([4, 5]).filter(lambda s: True).select("__key__").shuffle(3).lanes(2)
    check_tails(lambda: open_lane(pipe, 1)[0], 20)


def test_arguments_that_make_no_sense_are_refused(reader):
    with pytest.raises(ValueError, match="got 'jpg'"):
        Selector(reader, "jpg")
    with pytest.raises(ValueError, match="names of fields"):
        reader.select()
    with pytest.raises(ValueError, match="caption='txt'"):
        Renamer(reader, {})
    assert Renamer(reader, {"a": "b"}).arguments() == {"new_to_old": {"a": "b"}}
    assert Selector(reader, ["a", "b"]).arguments() == {"fields": ("a", "b")}

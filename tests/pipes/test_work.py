"""Bad samples are replaced whole, by name, and only where that was asked for."""

import re
from typing import ClassVar

import numpy as np
import pytest
import torch

from penstock.pipes import DataError, Draws, Ref, ShardLister
from penstock.pipes.graph import Graph
from penstock.pipes.sample import Typed
from penstock.pipes.tar_source import TarSource
from penstock.pipes.work import Workshop

KEYS = "abcde"


@pytest.fixture
def reader(make_tar, make_jpeg):
    """Return a function from the keys of corrupt samples to a reader of five samples."""

    def make(bad=""):
        samples = []
        for i, key in enumerate(KEYS):
            image = make_jpeg(40 + i, 50, 30 * i)
            fields = {"jpg": image[:200] if key in bad else image, "txt": key.encode() * 3}
            samples.append((key, {**fields, "cls": str(i).encode()}))
        return ShardLister(make_tar(samples), shuffle=False).read_tar()

    return make


def graph(reader, flip=0.5):
    return reader.batch(5).decode(32, crop="random", flip=flip)


def fields_of_slot(batch, i):
    """Return what must come from one sample alone, without what is drawn for the place."""
    return (
        batch["__key__"][i],
        batch["caption"][i],
        int(batch["cls"][i]),
        batch["original_size"][i].tolist(),
        batch["__ref__"][i].tolist(),
        int(batch["image"][i][2].float().mean().round()) // 4,
    )


@pytest.mark.parametrize("bad", ["a", "c", "e", "ab", "de", "ae", "bcde", "abce"])
def test_a_bad_sample_is_replaced_by_a_whole_copy_of_the_next_good_one(bad, reader, make_batch):
    good = make_batch(graph(reader())).batch
    made = make_batch(graph(reader(bad)), on_error="skip")
    assert made.batch["__filled__"] == [KEYS.index(k) for k in bad]
    assert made.batch["image"].shape == (5, 3, 32, 32)
    for i in range(5):
        ring = [*range(i, 5), *range(i)]
        source = next(j for j in ring if KEYS[j] not in bad)
        assert fields_of_slot(made.batch, i) == fields_of_slot(good, source)
        if source == i:
            assert torch.equal(made.batch["image"][i], good["image"][i])
    assert [(s.key, s.url) for s in made.skipped] == [(k, good["__url__"][0]) for k in bad]
    for skipped in made.skipped:
        assert skipped.reason.startswith(f"sample '{skipped.key}' of {skipped.url}: field 'jpg': ")


def test_the_copy_has_draws_of_its_own_place(reader, make_batch):
    for g in range(4):  # some places flip and some do not
        batch = make_batch(graph(reader("abce")), g, on_error="skip").batch
        for i in range(5):
            draws = Draws(0, Ref(g, 0, i))
            assert bool(batch["flipped"][i]) == (draws.uniform("decode.flip") < 0.5)
        assert len({tuple(t) for t in batch["crop_top_left"].tolist()}) > 1
        assert batch["__key__"] == ["d"] * 5


def test_where_nothing_is_bad_nothing_is_filled(reader, make_batch):
    made = make_batch(graph(reader()), on_error="skip")
    assert made.batch["__filled__"] == []
    assert made.skipped == []
    assert "__filled__" not in make_batch(graph(reader())).batch


def test_a_batch_without_a_good_sample_raises(reader, make_batch):
    message = r"batch 0 has no good sample: sample 'a' of .*; sample 'd' of .*; and 1 more$"
    with pytest.raises(DataError, match=message):
        make_batch(graph(reader(KEYS)), on_error="skip")


def test_by_default_the_first_bad_sample_raises(reader, make_batch):
    with pytest.raises(DataError, match=r"^sample 'b' of .*00000.tar: field 'jpg': cannot be"):
        make_batch(graph(reader("bd")))


def names(ref):
    return "a.tar", str(ref)


def test_a_batch_is_the_same_whatever_was_made_before(reader):
    pipe = graph(reader("b"))
    graph_ = Graph.of(pipe)
    workshop = Workshop(graph_.work, graph_.seed, "skip", shared=False)
    order = graph_.order()
    batches = [order.next() for _ in range(3)]
    first = [workshop.run(g, b, order.resolve, names)[0] for g, b in enumerate(batches)]
    again = [
        workshop.run(g, b, order.resolve, names)[0] for g, b in reversed(list(enumerate(batches)))
    ]
    for one, other in zip(first, again[::-1], strict=True):
        assert torch.equal(one["image"], other["image"])
        assert one["image"].data_ptr() != other["image"].data_ptr()
        assert one["caption"] == other["caption"]
        assert one["__batch__"] == other["__batch__"]


def test_shared_tensors_are_the_same(reader):
    graph_ = Graph.of(graph(reader()))
    order = graph_.order()
    batch = order.next()
    plain, shared = (
        Workshop(graph_.work, 0, "raise", shared=s).run(0, batch, order.resolve, names)[0]["image"]
        for s in (False, True)
    )
    assert shared.is_shared()
    assert not plain.is_shared()
    assert torch.equal(plain, shared)


def raises_data_error(sample):
    if sample["__key__"] in "bc":
        raise DataError("not wanted")
    return sample


def raises_key_error(sample):
    return {"x": sample["no_such_field"]}


def test_a_mapped_function_may_have_samples_skipped(reader, make_batch):
    pipe = graph(reader()).map(raises_data_error)
    made = make_batch(pipe, on_error="skip")
    assert made.batch["__key__"] == ["a", "d", "d", "d", "e"]
    assert [(s.key, s.reason.split(": ")[-1]) for s in made.skipped] == [
        ("b", "not wanted"),
        ("c", "not wanted"),
    ]
    with pytest.raises(DataError, match=r"^sample 'b' of .*00000.tar: not wanted$"):
        make_batch(pipe)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_other_errors_are_raised_as_they_are_with_the_samples_name(on_error, reader, make_batch):
    with pytest.raises(KeyError, match="no_such_field") as info:
        make_batch(graph(reader()).map(raises_key_error), on_error=on_error)
    assert len(info.value.__notes__) == 1
    assert "in Mapper, on sample 'a' of " in info.value.__notes__[0]
    assert "00000.tar" in info.value.__notes__[0]


def test_io_errors_are_never_skipped(reader, make_batch, monkeypatch):
    def broken(*args):
        raise OSError("the disk is gone")

    pipe = graph(reader())
    Graph.of(pipe).sample_counts()
    monkeypatch.setattr("penstock.pipes.read.OpenFiles.descriptor", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        make_batch(pipe, on_error="skip")


def test_a_field_that_is_missing_in_the_order_half_is_named_in_the_work_half(make_tar, make_batch):
    samples = [("a", {"txt": b"A", "cls": b"1"}), ("b", {"txt": b"B"}), ("c", {"txt": b"C"})]
    pipe = ShardLister(make_tar(samples), shuffle=False).read_tar().select("cls").batch(3).load()
    message = r"^sample 'b' of [^ ]*00000.tar: has no field 'cls'; its fields are: txt$"
    with pytest.raises(DataError, match=message):
        make_batch(pipe)
    graph_ = Graph.of(pipe)
    order, sources = graph_.order(), graph_.open()
    workshop = Workshop(graph_.work, 0, "skip", shared=False)
    made, skipped = workshop.run(0, order.next(), order.resolve, sources.name)
    assert made["__key__"] == ["a"] * 3
    assert made["__filled__"] == [1, 2]
    assert [(s.key, s.url) for s in skipped] == [(k, made["__url__"][0]) for k in "bc"]


def test_names_are_put_back_where_a_function_left_them_out(reader, make_batch):
    batch = make_batch(graph(reader()).map(lambda s: {"n": len(s["caption"])})).batch
    assert batch["__key__"] == list(KEYS)
    assert batch["n"].tolist() == [3] * 5
    assert batch["__ref__"].shape == (5, 3)
    assert set(batch) == {"n", "__key__", "__url__", "__ref__", "__batch__"}


def test_a_field_of_some_samples_only_is_refused(make_tar, make_batch, make_jpeg):
    samples = [("a", {"jpg": make_jpeg(9, 9, 0), "txt": b"x"}), ("b", {"jpg": make_jpeg(9, 9, 0)})]
    pipe = ShardLister(make_tar(samples), shuffle=False).read_tar().batch(2)
    with pytest.raises(DataError, match=r"sample 'b' .* has no field 'caption', and sample 'a'"):
        make_batch(pipe.decode(8))
    batch = make_batch(pipe.decode(8, caption_default="")).batch
    assert batch["caption"] == ["x", ""]


def test_images_of_one_batch_are_of_their_own_samples(shards, make_batch, fields_of):
    # Blue tells the sample in the shared shards: its number times 7.
    reader = ShardLister(shards, shuffle=False).read_tar()
    for g in (0, 3, 8):
        batch = make_batch(reader.batch(10).decode(32), g).batch
        numbers = [10 * g + i for i in range(10)]
        blue = batch["image"][:, 2].double().mean((1, 2)).numpy()
        assert abs(blue - np.array(numbers) * 7 % 256).max() < 8
        assert batch["caption"] == [fields_of(n)["txt"].decode() for n in numbers]


class Value(Typed):
    """A field that gives a new tensor each time, and notes that it was asked."""

    log: ClassVar[list[str]] = []

    def __init__(self, key, fault=None):
        self.key = key
        self.fault = fault

    def read(self):
        raise AssertionError

    def value(self):
        self.log.append(self.key)
        if self.fault is not None:
            raise self.fault
        return torch.zeros(2)


def valued(monkeypatch, faults):
    """Have every sample of a tar get a `Value`, with a fault for some keys."""
    real = TarSource.sample

    def sample(self, shard, index):
        found = real(self, shard, index)
        return {**found, "value": Value(found["__key__"], faults.get(found["__key__"]))}

    monkeypatch.setattr(TarSource, "sample", sample)
    Value.log.clear()


def test_small_fields_are_loaded_before_any_image(reader, make_batch, monkeypatch):
    valued(monkeypatch, {})
    seen = []

    def note(sample):
        seen.append(len(Value.log))
        return sample

    made = make_batch(graph(reader()).map(note)).batch
    assert made["value"].shape == (5, 2)
    assert seen == [5] * 5


def test_a_copy_shares_no_tensor_with_its_original(reader, make_batch, monkeypatch):
    valued(monkeypatch, {"b": DataError("none")})

    def add(sample):
        sample["value"] += 1
        return sample

    made = make_batch(graph(reader()).map(add), on_error="skip").batch
    assert made["__key__"] == ["a", "c", "c", "d", "e"]
    assert made["value"].tolist() == [[1, 1]] * 5


def test_what_is_wrong_with_small_fields_is_named(reader, make_batch, monkeypatch):
    valued(monkeypatch, {"c": DataError("none")})
    name = r"sample 'c' of .*00000.tar"
    with pytest.raises(DataError, match=f"^{name}: field 'value': none$"):
        make_batch(graph(reader()))
    valued(monkeypatch, {"c": OSError("unplugged")})
    with pytest.raises(OSError, match="unplugged") as caught:
        make_batch(graph(reader()))
    (note,) = caught.value.__notes__
    assert re.search(f"^in Decoder, on {name}", note)

"""Fields come as bytes."""

import os

import pytest

from penstock.pipes import DataError, ShardLister
from penstock.pipes.graph import Graph
from penstock.pipes.stream import LaneWalker


def test_fields_are_bytes_and_names_stay(make_tar, make_batch):
    samples = [(k, {"jpg": b"J" + k.encode(), "txt": b"T"}) for k in "abc"]
    reader = ShardLister(make_tar(samples), shuffle=False).read_tar()
    batch = make_batch(reader.batch(3).load()).batch
    assert batch["jpg"] == [b"Ja", b"Jb", b"Jc"]
    assert batch["txt"] == [b"T"] * 3
    assert batch["__key__"] == ["a", "b", "c"]
    assert batch["__ref__"].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert batch["__batch__"] == 0


def test_a_bucketers_image_sizes_are_left_out(make_tar, make_jpeg, make_batch):
    reader = ShardLister(make_tar([("a", {"jpg": make_jpeg(64, 64, 0)})])).read_tar()
    batch = make_batch(reader.bucket_by_aspect_ratio(64, 1).load()).batch
    assert set(batch) == {"jpg", "__key__", "__url__", "__ref__", "__batch__"}


def test_what_is_not_selected_is_not_read(make_tar):
    path = make_tar([("a", {"txt": b"T", "bin": b"x" * 2000})])
    reader = ShardLister(path).read_tar()
    walker = LaneWalker(Graph.of(reader.select("txt").batch(1).load()), "raise")
    all_fields = LaneWalker(Graph.of(reader.batch(1).load()), "raise")
    assert all_fields.make(0).batch["bin"] == [b"x" * 2000]
    walker.make(0)
    os.truncate(path, 2 * 512 + 600)
    assert walker.make(1).batch["txt"] == [b"T"]
    with pytest.raises(
        DataError, match=r"sample 'a' of .*00000.tar: field 'bin': .* ends at byte 1624"
    ):
        all_fields.make(1)

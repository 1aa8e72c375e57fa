"""The list of shards, and what a checkpoint says of it."""

import json

import numpy as np
import pytest

from penstock.pipes import ShardLister
from penstock.pipes.graph import Graph


@pytest.fixture
def folder(make_tar, tmp_path):
    for i in range(8):
        make_tar([("a", {"txt": b"x"})], f"part-{i:03d}.tar")
    return tmp_path


def names(lister):
    return [url.rpartition("/")[2] for url in lister.urls]


def test_patterns_ranges_and_splits_make_the_list(folder):
    pattern = str(folder / "part-{000..007}.tar")
    assert names(ShardLister(pattern)) == [f"part-{i:03d}.tar" for i in range(8)]
    assert ShardLister(pattern).urls == ShardLister(str(folder / "*.tar")).urls
    assert names(ShardLister(pattern, start=2, end=4)) == [f"part-{i:03d}.tar" for i in (2, 3, 4)]
    splits = {"train": 0.75, "val": 0.25}
    parts = [ShardLister(pattern, split=s, splits=splits) for s in splits]
    assert [len(p.urls) for p in parts] == [6, 2]
    assert sorted(parts[0].urls + parts[1].urls) == ShardLister(pattern).urls
    whole = ShardLister(pattern, split="val", splits=splits, split_by="sample")
    assert len(whole.urls) == 8
    assert whole.read_tar().splits_samples()
    assert not parts[0].read_tar().splits_samples()


def test_where_the_shards_lie_is_no_difference_and_their_names_are(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere")
    for path in sorted(folder.glob("*.tar")):
        (other / path.name).write_bytes(path.read_bytes())
    one, moved = (ShardLister(str(f / "*.tar")).arguments() for f in (folder, other))
    listed = ShardLister([str(other / f"part-{i:03d}.tar") for i in range(8)]).arguments()
    assert one == moved == listed
    assert one["shards"]["count"] == 8
    assert one["shards"]["first"] == "part-000.tar"
    assert one["shards"]["last"] == "part-007.tar"
    (other / "part-003.tar").rename(other / "part-003b.tar")
    assert ShardLister(str(other / "*.tar")).arguments()["shards"] != one["shards"]
    order = [str(other / f"part-{i:03d}.tar") for i in (0, 2, 1, 4, 5, 6, 7)]
    reordered = ShardLister(order).arguments()["shards"]
    assert reordered != ShardLister(sorted(order)).arguments()["shards"]


def test_arguments_are_json_and_every_one_shows(folder):
    pattern = str(folder / "*.tar")
    plain = ShardLister(pattern).arguments()
    assert json.loads(json.dumps(plain)) == plain
    splits = {"a": 0.5, "b": 0.5}
    for more in (
        {"seed": 1},
        {"shuffle": False},
        {"start": 1},
        {"end": 6},
        {"resample": True},
        {"split": "a", "splits": splits},
        {"split": "a", "splits": splits, "split_by": "sample"},
        {"split": "b", "splits": splits, "split_by": "sample"},
        {"split": "a", "splits": {"a": 0.4, "b": 0.6}, "split_by": "sample"},
    ):
        assert ShardLister(pattern, **more).arguments() != plain, more
    by_sample = [
        ShardLister(pattern, split=s, splits=splits, split_by="sample").arguments() for s in splits
    ]
    assert by_sample[0] != by_sample[1]


def test_a_cache_is_no_difference(folder, tmp_path):
    pattern = str(folder / "*.tar")
    elsewhere = ShardLister(pattern, cache=str(tmp_path / "cache"))
    assert elsewhere.arguments() == ShardLister(pattern).arguments()


def test_a_seed_of_numpys_is_a_seed(folder):
    pattern = str(folder / "*.tar")
    one = ShardLister(pattern, seed=np.int64(3))
    assert one.arguments() == ShardLister(pattern, seed=3).arguments()
    shards = [s["__url__"] for s in one.read_tar().lanes(1, repeat=False)]
    assert shards == [
        s["__url__"] for s in ShardLister(pattern, seed=3).read_tar().lanes(1, repeat=False)
    ]
    with pytest.raises(TypeError, match=r"seed is a whole number, got 1.5"):
        ShardLister(pattern, seed=1.5)


def test_names_that_are_not_utf8_are_listed_and_hashed(make_tar, tmp_path):
    make_tar([("a", {"txt": b"x"})], "gr\udcfcn.tar")
    lister = ShardLister(str(tmp_path / "*.tar"))
    assert lister.arguments()["shards"]["first"] == "gr\udcfcn.tar"
    described = Graph.of(lister.read_tar().batch(1)).describe_order()
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train"}, "split='train' and splits=None: give both or neither"),
        ({"splits": {"a": 1.0}}, "give both or neither"),
        ({"split": "a", "splits": {"a": 1.0}, "split_by": "key"}, "'shard' or 'sample', got 'key'"),
        ({"resample": True, "shuffle": False}, "needs shuffle=True"),
        ({"split": "x", "splits": {"a": 1.0}}, "no split 'x'"),
        ({"split": "b", "splits": {"a": 0.99, "b": 0.01}}, "gets none of the 8 shards"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message, folder):
    with pytest.raises(ValueError, match=message):
        ShardLister(str(folder / "*.tar"), **arguments)


def test_nothing_found_is_an_error(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="nothing"):
        ShardLister(str(tmp_path / "nothing-*.tar"))

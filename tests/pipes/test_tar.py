"""Tar shards as samples: damaged ones, compressed ones, split ones, keys that recur."""

import gzip
import os
import pickle
import shutil
import tarfile
import warnings

import pytest
import zstandard

from penstock.pipes import DataError, Extent, ShardLister, TarReader

SAMPLES = [(f"{i:02d}", {"txt": f"text {i}".encode(), "cls": str(i).encode()}) for i in range(8)]


def once(pipe):
    """Return (shard's name, key) of each sample of one pass."""
    found = pipe.lanes(1, repeat=False)
    return [(os.path.basename(s["__url__"]), s["__key__"]) for s in found]


@pytest.fixture
def folder(make_tar, tmp_path):
    """Two good shards and, between them, one that is cut in the middle of a member."""
    for name in ("0.tar", "1.tar", "2.tar"):
        make_tar(SAMPLES, name)
    os.truncate(tmp_path / "1.tar", 5000)
    return tmp_path


def test_a_sample_has_its_key_its_url_and_extents(make_tar):
    path = make_tar([("a/b", {"c.jpg": b"J", "txt": b"T"})])
    (sample,) = ShardLister(path).read_tar().lanes(1, repeat=False)
    assert sample == {
        "__key__": "a/b",
        "__url__": path,
        "__ref__": (0, 0, 0),
        "c.jpg": Extent(path, 512, 1),
        "txt": Extent(path, 1536, 1),
    }


def test_keys_recur_in_other_shards(make_tar, make_batch, tmp_path):
    for name in ("0.tar", "1.tar"):
        make_tar([("a", {"txt": name.encode()}), ("b", {"txt": name.encode()})], name)
    reader = ShardLister(str(tmp_path / "*.tar"), shuffle=False).read_tar()
    assert once(reader) == [(s, k) for s in ("0.tar", "1.tar") for k in "ab"]
    batch = make_batch(reader.batch(4).load()).batch
    assert batch["txt"] == [b"0.tar", b"0.tar", b"1.tar", b"1.tar"]
    assert len({tuple(ref) for ref in batch["__ref__"].tolist()}) == 4


def test_a_truncated_shard_is_an_error_that_names_it(folder):
    reader = ShardLister(str(folder / "*.tar")).read_tar()
    for by in ("samples", "shards"):
        with pytest.raises(DataError, match=r"1.tar: byte \d+ of 5000"):
            list(reader.lanes(1, by, repeat=False))
    with pytest.raises(DataError, match=r"1.tar"):
        reader.batch(2).load().loader()


@pytest.mark.parametrize("lanes", [1, 3])
def test_with_skip_a_damaged_shard_counts_no_samples(lanes, folder, open_lane, take):
    pipe = ShardLister(str(folder / "*.tar")).read_tar().lanes(lanes, repeat=False)
    refs = []
    with pytest.warns(UserWarning, match=r"passing over a shard: .*1.tar: byte"):
        open_lane(pipe, 0, on_error="skip")
    for lane in range(lanes):
        order, _ = open_lane(pipe, lane, on_error="skip")  # counted once: no second warning
        refs += take(order, 99)
    assert sorted((r.shard, r.sample) for r in refs) == [(s, i) for s in (0, 2) for i in range(8)]


def test_a_loader_that_skips_passes_a_damaged_shard_over(folder):
    pipe = ShardLister(str(folder / "*.tar")).read_tar().batch(4).lanes(2).load()
    with pytest.warns(UserWarning, match=r"passing over a shard: .*1.tar: byte"):
        loader = pipe.loader(on_error="skip", quarantine=folder / "quarantine.jsonl")
    assert len(loader) == 4
    keys = [
        (u, k) for batch in loader for u, k in zip(batch["__url__"], batch["__key__"], strict=True)
    ]
    assert len(set(keys)) == 16
    assert {os.path.basename(url) for url, _ in keys} == {"0.tar", "2.tar"}


def test_image_sizes_are_counted_without_a_damaged_shard(make_tar, make_jpeg, tmp_path):
    for name in ("0.tar", "1.tar"):
        make_tar([(k, {"jpg": make_jpeg(64, 64, 0)}) for k in "abcd"], name)
    os.truncate(tmp_path / "1.tar", 600)
    reader = ShardLister(str(tmp_path / "*.tar")).read_tar()
    pipe = reader.bucket_by_aspect_ratio(64, pixels=2 * 64 * 64).decode()
    with pytest.warns(UserWarning, match="passing over a shard"):
        assert len(pipe.loader(on_error="skip")) == 2


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("repeat", [True, False])
def test_by_shards_a_damaged_shard_is_noted_where_it_is_met(
    lanes, repeat, folder, open_lane, take, check_tails
):
    lister = ShardLister(str(folder / "*.tar"), shuffle=False)
    pipe = lister.read_tar().lanes(lanes, "shards", repeat)
    found, noted = [], []
    for number in range(lanes):
        order, lane = open_lane(pipe, number, on_error="skip")
        found += take(order, 16 if repeat else 99)
        order.state()
        noted += lane.skipped
        check_tails(lambda n=number: open_lane(pipe, n, on_error="skip")[0], 12)
    if not repeat:
        assert sorted(found) == [(0, s, i) for s in (0, 2) for i in range(8)]
        assert len(noted) == 1
    assert {ref.shard for ref in found} == {0, 2}
    assert {os.path.basename(s.url) for s in noted} == {"1.tar"}
    assert {s.key for s in noted} == {"(the whole shard)"}
    assert "byte" in noted[0].reason


def test_a_state_at_the_end_of_a_lane_whose_last_shard_is_damaged(folder, open_lane, take):
    os.rename(folder / "1.tar", folder / "3.tar")
    lister = ShardLister(str(folder / "*.tar"), shuffle=False)
    order, _ = open_lane(lister.read_tar().batch(5).lanes(1, "shards", False), on_error="skip")
    assert [len(b.refs) for b in take(order, 9)] == [5, 5, 5, 1]
    fresh, _ = open_lane(lister.read_tar().batch(5).lanes(1, "shards", False), on_error="skip")
    fresh.load(order.state())
    assert take(fresh, 1) == []


@pytest.mark.parametrize("by", ["samples", "shards"])
def test_all_shards_damaged_is_an_error(by, folder, open_lane):
    for name in ("0.tar", "2.tar"):
        os.truncate(folder / name, 3000)
    pipe = ShardLister(str(folder / "*.tar")).read_tar().lanes(2, by)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        order, _ = open_lane(pipe, 1, on_error="skip")
    with pytest.raises(ValueError, match=r"found no sample in 3 shard\(s\)"):
        order.next()


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst", "named_wrongly.tar"])
def test_compressed_shards_read_the_same(name, make_tar, make_batch, tmp_path):
    plain = make_tar(SAMPLES)
    with open(plain, "rb") as file:
        data = file.read()
    packed = zstandard.compress(data) if name.endswith("zst") else gzip.compress(data)
    (tmp_path / name).write_bytes(packed)
    one, other = (
        make_batch(ShardLister(str(path), shuffle=False).read_tar().batch(8).load()).batch
        for path in (plain, tmp_path / name)
    )
    assert other["__url__"] == [str(tmp_path / name)] * 8
    for field in ("__key__", "txt", "cls"):
        assert one[field] == other[field]


@pytest.mark.parametrize("by", ["shard", "sample"])
def test_splits_cover_all_and_are_disjoint(by, make_tar, tmp_path):
    for i in range(8):
        make_tar([(f"{i}_{k}", fields) for k, fields in SAMPLES], f"{i}.tar")
    splits = {"train": 0.5, "val": 0.25, "test": 0.25}
    found = {}
    for split in splits:
        lister = ShardLister(str(tmp_path / "*.tar"), split=split, splits=splits, split_by=by)
        found[split] = once(lister.read_tar())
        assert once(lister.read_tar()) == found[split]
        assert sorted(found[split]) == sorted(once(lister.read_tar().shuffle(7)))
    together = [sample for part in found.values() for sample in part]
    assert len(together) == len(set(together)) == 64
    assert 20 <= len(found["train"]) <= 44
    if by == "sample":
        # What the others have does not matter: adding data moves nothing.
        (tmp_path / "3.tar").unlink()
        left = ShardLister(str(tmp_path / "*.tar"), split="val", splits=splits, split_by=by)
        expected = [(s, k) for s, k in found["val"] if s != "3.tar"]
        assert sorted(once(left.read_tar())) == sorted(expected)


@pytest.mark.parametrize("by", ["shard", "sample"])
def test_a_split_resumes_anywhere(by, make_tar, tmp_path, open_lane, check_tails):
    for i in range(4):
        make_tar([(f"{i}_{k}", fields) for k, fields in SAMPLES], f"{i}.tar")
    splits = {"a": 0.5, "b": 0.5}
    lister = ShardLister(str(tmp_path / "*.tar"), split="a", splits=splits, split_by=by)
    pipe = lister.read_tar().shuffle(5).lanes(2)
    check_tails(lambda: open_lane(pipe, 1)[0], 20)


def test_image_sizes_come_with_the_sample_only_where_asked(make_tar, make_jpeg, open_lane):
    path = make_tar([("a", {"jpg": make_jpeg(20, 30, 0)}), ("b", {"txt": b"x"})])
    reader = ShardLister(path, shuffle=False).read_tar()
    order, _ = open_lane(reader)
    assert "__image_size__" not in order.resolve(order.next().ref)
    order, _ = open_lane(reader.filter_size())
    assert order.next().sample["__image_size__"] == (20, 30)
    assert [sizes.tolist() for sizes in reader.image_sizes()] == [[[20, 30], [0, 0]]]


def test_a_shard_replaced_under_the_run_by_a_smaller_one_is_an_error(make_tar, open_lane):
    path = make_tar(SAMPLES)
    order, lane = open_lane(ShardLister(path, shuffle=False).read_tar())
    refs = [order.next().ref for _ in range(8)]
    order.resolve(refs[0])  # opens the index
    shutil.copy(make_tar(SAMPLES[:3], "small.tar"), path)
    anew, _ = open_lane(ShardLister(path, shuffle=False).read_tar())
    assert anew.resolve(refs[2])["__key__"] == "02"
    with pytest.raises(RuntimeError, match="has 3 samples and had more when this run began"):
        anew.resolve(refs[7])
    assert order.resolve(refs[7])["__key__"] == "07"  # the index that was read stays
    assert lane.sources.name(refs[7]) == (path, "07")


def test_few_indexes_are_kept_in_memory(make_tar, tmp_path, monkeypatch, open_lane, take):
    for i in range(5):
        make_tar(SAMPLES, f"{i}.tar")
    monkeypatch.setattr("penstock.pipes.tar.TarSource.MOST_SAMPLES", 20)
    order, lane = open_lane(ShardLister(str(tmp_path / "*.tar")).read_tar())
    refs = take(order, 40)
    source = lane.sources._open[0]
    assert [order.resolve(r)["__key__"] for r in refs] == [SAMPLES[r.sample][0] for r in refs]
    assert len(source._open) == 2
    assert source._held == 16
    assert [source.fingerprint(i) == source.fingerprint(0) for i in range(5)] == [True] * 5


def test_readers_pickle_with_their_counts(make_tar, open_lane, take):
    reader = ShardLister(make_tar(SAMPLES)).read_tar()
    expected = take(open_lane(reader)[0], 20)
    again = pickle.loads(pickle.dumps(reader))
    assert again._sizes
    assert take(open_lane(again)[0], 20) == expected


def test_other_sources_are_refused(fake):
    with pytest.raises(TypeError, match="reads from a ShardLister, got FakeReader"):
        TarReader(fake([1]))


def test_members_of_other_kinds_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.txt", "__MACOSX/a.txt", ".hidden", "no_dot", "a.cls"):
            tar.addfile(tarfile.TarInfo(name))
    assert once(ShardLister(str(tmp_path / "a.tar")).read_tar()) == [("a.tar", "a")]

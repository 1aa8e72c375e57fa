"""Fields of other shards are joined by shard and key, in whatever order they stand there."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipes import DataError, KeyJoiner, ManifestReader, ShardLister, verify_resume
from penstock.pipes.verify import fingerprints


def write(folder, name, samples):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / name, "w") as tar:
        for key, fields in samples:
            for field, data in fields.items():
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def sets(folder, keys, others=None, fields=("lat",)):
    """Write shards of texts to ``main``, and shards of what belongs to them to ``other``."""
    for shard, own in keys.items():
        write(folder / "main", f"{shard:05d}.tar", [(k, {"txt": b"m" + k.encode()}) for k in own])
    for shard, own in (keys if others is None else others).items():
        samples = [(k, {f: f"{f} {shard} {k}".encode() for f in fields}) for k in own]
        write(folder / "other", f"{shard:05d}.tar", samples)


def reader(folder, which="main", **how):
    return ShardLister(str(folder / which), **how).read_tar()


def load(pipe, folder, batch=4, **how):
    pipe = pipe.batch(batch).lanes(1, by="shards", repeat=False).load()
    return pipe.loader(quarantine=folder / "q.jsonl", **how)


def check(batch, field="lat"):
    """Check that each joined field is its own sample's; return the (shard, key) of the batch."""
    found = []
    for url, key, value, text in zip(
        batch["__url__"], batch["__key__"], batch[field], batch["txt"], strict=True
    ):
        shard = int(url[-9:-4])
        assert value == f"lat {shard} {key}".encode()
        assert text == b"m" + key.encode()
        found.append((shard, key))
    return found


@settings(max_examples=40, deadline=None)
@given(
    keys=st.dictionaries(
        st.integers(0, 99),
        st.lists(st.text("abc", min_size=1, max_size=3), unique=True, min_size=1, max_size=9),
        min_size=1,
        max_size=3,
    ),
    more=st.lists(st.text("xy", min_size=1, max_size=2), unique=True, max_size=3),
    data=st.data(),
)
def test_any_order_within_the_shard(keys, more, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    others = {s: data.draw(st.permutations([*own, *more])) for s, own in keys.items()}
    sets(folder, keys, {**others, 100: ["a"]})
    pipe = reader(folder, seed=3).join(reader(folder, "other", seed=8))
    found = [pair for batch in load(pipe, folder) for pair in check(batch)]
    assert sorted(found) == sorted((s, k) for s, own in keys.items() for k in own)


@settings(max_examples=40, deadline=None)
@given(
    keys=st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=12),
    lacking=st.sets(st.integers(0, 30)),
    whole=st.booleans(),
)
def test_what_has_no_partner_is_passed_over_and_counted(keys, lacking, whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    main = {0: ["a"], 1: [f"{k}" for k in keys]}
    others = {0: ["a"], 1: [f"{k}" for k in keys[::-1] if k not in lacking]}
    if whole:
        del others[1]
    sets(folder, main, others)
    pipe = reader(folder).join(reader(folder, "other"), on_missing="skip")
    loader = load(pipe, folder)
    found = [key for batch in loader for _, key in check(batch)]
    kept = [] if whole else others[1]
    assert sorted(found) == sorted(["a", *kept])
    assert loader.skipped == len(keys) - len(kept)
    if loader.skipped:
        lines = (folder / "q.jsonl").read_text().splitlines()
        assert {json.loads(line)["key"] for line in lines} == set(main[1]) - set(kept)
        assert ("joined to have no 00001.tar" if whole else "no sample there has") in lines[0]


def test_a_sample_without_a_partner_is_bad_data_when_it_is_loaded(tmp_path, open_lane, take):
    sets(tmp_path, {0: ["a", "b", "c"]}, {0: ["c", "a"]})
    pipe = reader(tmp_path).join(reader(tmp_path, "other"))
    order, _ = open_lane(pipe.lanes(1, repeat=False))
    assert len(take(order, 9)) == 3
    name = r"^sample 'b' of .*main/00000.tar: has no partner in .*other/00000.tar: no sample"
    with pytest.raises(DataError, match=name):
        list(load(pipe, tmp_path))
    (batch,) = load(pipe, tmp_path, on_error="skip")
    assert batch["__filled__"] == [1]
    assert batch["lat"] == [b"lat 0 a", b"lat 0 c", b"lat 0 c"]
    looked_at = pipe.filter(lambda sample: True).lanes(1, repeat=False)
    order, lane = open_lane(looked_at, on_error="skip")
    assert [ref.sample for ref in take(order, 9)] == [0, 2]
    assert [s.key for s in lane.skipped] == ["b"]


def test_fields_stay_unread_and_unloaded(tmp_path):
    sets(tmp_path, {0: ["a"]}, fields=("lat", "big"))
    other = reader(tmp_path, "other").select("lat").rename(latent="lat")
    sample = next(iter(reader(tmp_path).join(other)))
    assert list(sample) == ["__key__", "__url__", "txt", "__ref__", "latent"]
    assert sample["latent"].read() == b"lat 0 a"
    assert sample["__url__"].endswith("main/00000.tar")


def test_fields_of_one_name(tmp_path):
    sets(tmp_path, {0: ["a"]}, fields=("lat", "txt"))
    main, other = reader(tmp_path), reader(tmp_path, "other")
    with pytest.raises(
        DataError, match=r"has a field 'txt', and so has its partner in .*other/00000.tar: .*rename"
    ):
        list(load(main.join(other), tmp_path))
    (batch,) = load(main.join(other, rename={"text": "txt"}), tmp_path)
    assert (batch["text"], batch["txt"], batch["lat"]) == ([b"txt 0 a"], [b"ma"], [b"lat 0 a"])
    (batch,) = load(main.join(other, prefix="o."), tmp_path)
    assert (batch["o.txt"], batch["o.lat"]) == ([b"txt 0 a"], [b"lat 0 a"])
    (batch,) = load(main.join(other, rename={"text": "txt"}, prefix="o."), tmp_path)
    assert (batch["text"], batch["o.lat"]) == ([b"txt 0 a"], [b"lat 0 a"])
    assert main.join(other).rename(a="lat")  # the method is not hidden by the argument


def test_a_key_that_comes_twice_there_is_named(tmp_path):
    sets(tmp_path, {0: ["a", "b", "c"]}, {0: ["b", "a", "c", "b"]})
    for missing in ("raise", "skip"):
        pipe = reader(tmp_path).join(reader(tmp_path, "other"), on_missing=missing)
        with pytest.raises(
            DataError, match=r"other/00000.tar: sample 'b' has the field 'lat' twice, at bytes"
        ):
            list(load(pipe, tmp_path))


def test_shards_that_do_not_pair_are_named(tmp_path):
    sets(tmp_path, {0: ["a"], 1: ["b"], 2: ["c"]}, {1: ["b"]})
    main, other = reader(tmp_path), reader(tmp_path, "other")
    with pytest.raises(
        ValueError, match="^2 of 3 shards have no shard of their name .*: 00000, 00002; there are 0"
    ):
        main.join(other)
    (batch,) = load(main.join(other, on_missing="skip"), tmp_path)
    assert check(batch) == [(1, "b")]
    write(tmp_path / "third", "latents.tar", [("a", {"lat": b""})])
    with pytest.raises(ValueError, match="^3 of 3 shards have no shard of their name"):
        main.join(reader(tmp_path, "third"), on_missing="skip")
    write(tmp_path / "more", "00001.tar", [("a", {"lat": b""})])
    both = ShardLister([str(tmp_path / "other"), str(tmp_path / "more")]).read_tar()
    with pytest.raises(ValueError, match=r"other/00001.tar and .*more/00001.tar have one name"):
        main.join(both)
    with pytest.raises(ValueError, match=r"other/00001.tar and .*more/00001.tar have one name"):
        both.join(main)


def test_other_pipes_must_give_each_sample(tmp_path):
    sets(tmp_path, {0: ["a"]})
    main, other = reader(tmp_path), reader(tmp_path, "other")
    for wrong, name in (
        (other.filter(lambda s: True), "Filter"),
        (other.shuffle(3), "Shuffler"),
        (other.batch(3), "Batcher"),
        (other.lanes(2), "Lanes"),
        (other.batch(3).load(), "Batcher"),
        (other.mix(reader(tmp_path)), "Mixer"),
        (other.join_embeddings(on_missing="skip"), "EmbeddingJoiner"),
    ):
        with pytest.raises(ValueError, match=f"whatever their order: {name} may stand behind"):
            main.join(wrong)
    split = {"split": "train", "splits": {"train": 0.5, "val": 0.5}, "split_by": "sample"}
    with pytest.raises(ValueError, match="are not to be split by samples"):
        main.join(reader(tmp_path, "other", **split))
    with pytest.raises(TypeError, match=".join\\(\\) takes a pipe, got str"):
        main.join("latents/")
    with pytest.raises(ValueError, match="on='json.id'"):
        main.join(other, on="json.id")
    with pytest.raises(ValueError, match="on_missing must be"):
        main.join(other, on_missing="drop")
    (tmp_path / "m.csv").write_text("image,text\na.jpg,b\n")
    for one, two in (
        (ManifestReader(tmp_path / "m.csv"), other),
        (main, ManifestReader(tmp_path / "m.csv")),
    ):
        with pytest.raises((TypeError, ValueError), match="ManifestReader"):
            one.join(two)


def test_joins_of_joins(tmp_path, embed, check_own):
    data = embed(tmp_path, {0: [0, 2], 1: [1]})
    for shard, own in data.indices.items():
        keys = [f"{shard:05d}{i:04d}" for i in own]
        for name in ("lat", "mask"):
            samples = [(k, {name: f"{name} {k}".encode()}) for k in keys[::-1]]
            write(tmp_path / name, f"{shard:05d}.tar", samples)
    lat = reader(tmp_path, "lat").join(reader(tmp_path, "mask")).join_embeddings(data.rows)
    pipe = reader(tmp_path, "tars").join(lat).batch(3).lanes(1, repeat=False).decode()
    (batch,) = pipe.loader()
    assert check_own(batch) == 3
    assert batch["lat"] == [f"lat {k}".encode() for k in batch["__key__"]]
    assert batch["mask"] == [f"mask {k}".encode() for k in batch["__key__"]]


def graph(folder, missing, lanes=2):
    return (
        reader(folder, seed=4)
        .join(reader(folder, "other"), on_missing=missing)
        .shuffle(7)
        .batch(3)
        .lanes(lanes)
        .load()
    )


KEYS = {i: [f"{i}{k}" for k in range(5 + i)] for i in range(4)}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("missing", ["raise", "skip"])
def test_resuming_is_exact(missing, tmp_path):
    kept = {s: own[:: -2 if missing == "skip" else -1] for s, own in KEYS.items()}
    sets(tmp_path, KEYS, kept)
    pipe = graph(tmp_path, missing)
    report = verify_resume(
        lambda workers, rank, ranks: pipe.loader(
            workers, rank=rank, world_size=ranks, epoch_batches=5
        ),
        legs=((0, 1), (2, 1), (0, 3), (1, 2)),
    )
    assert report.batches > 5


def test_spawned_workers_give_the_same(tmp_path):
    sets(tmp_path, KEYS, {s: own[::-2] for s, own in KEYS.items()})
    expected = [fingerprints(b) for b in graph(tmp_path, "skip").loader(epoch_batches=4)]
    loader = graph(tmp_path, "skip").loader(1, epoch_batches=4, multiprocessing_context="spawn")
    assert [fingerprints(b) for b in loader] == expected
    loader.close()


def test_a_state_knows_the_other_shards(tmp_path):
    sets(tmp_path, KEYS)
    loader = graph(tmp_path, "raise").loader(epoch_batches=4)
    next(iter(loader))
    state = loader.state_dict()
    assert str(tmp_path) not in json.dumps(state)
    (tmp_path / "other").rename(tmp_path / "moved")
    (tmp_path / "other").symlink_to(tmp_path / "moved")
    graph(tmp_path, "raise").loader(epoch_batches=4).load_state_dict(state)
    write(tmp_path / "other", "00009.tar", [("a", {"lat": b""})])
    with pytest.raises(ValueError, match="KeyJoiner had other="):
        graph(tmp_path, "raise").loader(epoch_batches=4).load_state_dict(state)
    (tmp_path / "other" / "00009.tar").unlink()
    with pytest.raises(ValueError, match='KeyJoiner had on_missing="raise"'):
        graph(tmp_path, "skip").loader(epoch_batches=4).load_state_dict(state)


def test_lengths_are_known_where_no_sample_is_passed_over(tmp_path):
    sets(tmp_path, KEYS)
    assert len(graph(tmp_path, "raise").loader()) == 8
    with pytest.raises(TypeError, match="KeyJoiner lets an unknown number of samples through"):
        len(graph(tmp_path, "skip").loader())


def test_other_shards_may_be_compressed_or_remote(s3, tmp_path, open_lane):
    sets(tmp_path, KEYS)
    for path in sorted((tmp_path / "other").iterdir()):
        s3.put(f"lat/{path.name}.gz", gzip.compress(path.read_bytes()))
    for path in sorted((tmp_path / "main").iterdir()):
        s3.put(f"main/{path.name}", path.read_bytes())
    how = {"storage_options": s3.options, "cache": str(tmp_path / "c"), "shuffle": False}
    main = ShardLister(s3.url("main/{00000..00003}.tar"), **how).read_tar()
    other = ShardLister(s3.url("lat/{00000..00003}.tar.gz"), **how).read_tar()
    pipe = main.join(other).shuffle(6)
    found = [pair for batch in load(pipe, tmp_path) for pair in check(batch)]
    assert sorted(found) == sorted((s, k) for s, own in KEYS.items() for k in own)
    for shard in KEYS:
        assert s3.gets(f"lat/{shard:05d}.tar.gz") == [0]
        assert s3.gets(f"main/{shard:05d}.tar") == [0]
    order, _ = open_lane(pipe.lanes(1, by="shards"))
    for _ in range(40):
        order.next()
        pointed = {ref.shard for _, _, ref in order._heap}
        files = order.source.companion._sources._open[0]._files
        held = {s for s, f in files.items() if f is not None and f._hold is not None}
        assert pointed <= held
        assert len(held) <= len(pointed) + 2
    assert "endpoint" not in json.dumps(load(pipe, tmp_path)._says)
    assert isinstance(pipe.source, KeyJoiner)


def test_arrays_are_decoded(tmp_path):
    file = io.BytesIO()
    np.save(file, np.arange(4, dtype=np.float16))
    sets(tmp_path, {0: ["a"]})
    write(tmp_path / "other", "00000.tar", [("a", {"npy": file.getvalue()})])
    pipe = reader(tmp_path).join(reader(tmp_path, "other")).batch(1).decode()
    (batch,) = pipe.loader(epoch_batches=1)
    assert batch["npy"].tolist() == [[0, 1, 2, 3]]
    assert batch["caption"] == ["ma"]

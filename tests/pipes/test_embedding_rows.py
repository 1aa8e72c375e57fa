"""Remote files are held with their tars, read singly once they have gone, and never stale."""

import json
import logging
import os

import numpy as np
import pytest

from penstock.pipes import DataError, ShardLister
from penstock.pipes.remote import ShardReplaced
from penstock.pipes.verify import fingerprints

INDICES = {i: list(range(8)) for i in range(5)}


@pytest.fixture
def remote(s3, embed, tmp_path):
    """Tars and embeddings on S3; returns where they also lie on disk."""
    data = embed(tmp_path / "data", INDICES)
    for folder in (data.tars, data.rows):
        for path in sorted(folder.iterdir()):
            s3.put(f"{folder.name}/{path.name}", path.read_bytes())
    return data


def graph(s3, tmp_path, window=4, **how):
    tars = s3.url("tars/{00000..00004}.tar")
    reader = ShardLister(
        tars, shuffle=False, storage_options=s3.options, cache=str(tmp_path / "c"), **how
    ).read_tar()
    return reader.join_embeddings(s3.url("rows/")).shuffle(window)


def load(pipe, count=12, workers=0):
    return pipe.batch(4).lanes(1, by="shards").decode().loader(workers, epoch_batches=count)


def companion(order):
    """Return the joiner's open files behind a shuffle."""
    return order.source.companion


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_remote_rows_are_what_local_ones_are(workers, s3, remote, tmp_path, check_own):
    loader = load(graph(s3, tmp_path), 12, workers)
    found = list(loader)
    loader.close()
    assert sum(map(check_own, found)) == 48
    local = ShardLister(str(remote.tars), shuffle=False).read_tar().join_embeddings(remote.rows)
    for one, other in zip(found, load(local.shuffle(4)), strict=True):
        one, other = ({k: v for k, v in b.items() if k != "__url__"} for b in (one, other))
        assert fingerprints(one) == fingerprints(other)
    for i in range(5):  # once in all; the first one's header also when the graph was made
        assert s3.gets(f"rows/img_emb_{i:03d}.npy") == [0] * (1 + (i == 0))


def test_a_file_is_held_while_its_tar_is_in_use(s3, remote, tmp_path, open_lane):
    order, lane = open_lane(graph(s3, tmp_path, window=12).lanes(1, by="shards"))
    for _ in range(60):
        order.next()
        pointed = {ref.shard for _, _, ref in order._heap}
        tars = {s for s, f in lane.sources._open[0]._files.items() if f._hold is not None}
        rows = {n for n, f in companion(order)._cached.items() if f._hold is not None}
        assert pointed <= tars == rows
        assert len(rows) <= max(3, len(pointed) + 2)


def test_a_bounded_cache_keeps_what_is_held(s3, remote, tmp_path, check_own):
    sizes = [p.stat().st_size for f in (remote.tars, remote.rows) for p in f.iterdir()]
    bound = 3 * max(sizes) + 3 * min(sizes)
    pipe = graph(s3, tmp_path, window=1, cache_size=bound)
    assert sum(map(check_own, load(pipe))) == 48
    kept = sum(p.stat().st_size for p in (tmp_path / "c" / "shards").iterdir())
    assert kept <= bound


def test_a_row_whose_file_has_gone_is_read_singly(s3, remote, tmp_path, open_lane):
    order, _ = open_lane(graph(s3, tmp_path, window=1).lanes(1, by="shards", repeat=False))
    refs = [order.next().ref for _ in range(40)]
    for path in (tmp_path / "c" / "shards").iterdir():
        os.unlink(path)
    before = len(s3.gets("rows/img_emb_000.npy"))
    value = order.resolve(refs[3])["image_embedding"].value()
    assert value.tolist() == [1, 4, 1, 1]
    # Its header, and 16 bytes of it.
    assert s3.gets("rows/img_emb_000.npy")[before:] == [0, 128 + 3 * 16]
    assert not any((tmp_path / "c" / "shards").iterdir())


def test_a_remote_file_that_goes_or_changes(s3, remote, tmp_path):
    pipe = graph(s3, tmp_path)
    s3.delete("rows/img_emb_002.npy")
    with pytest.raises(DataError, match=r"'00002\d+' of .*00002.tar: wants row \d: s3://.*is gone"):
        list(load(pipe))
    s3.put("rows/img_emb_002.npy", (remote.rows / "img_emb_002.npy").read_bytes())
    loader = load(graph(s3, tmp_path), 40)
    batches = iter(loader)
    next(batches)
    s3.put("rows/img_emb_000.npy", b"x" * 1000)
    for path in (tmp_path / "c" / "shards").iterdir():
        os.unlink(path)
    with pytest.raises(ShardReplaced, match=r"rows/img_emb_000.npy was replaced during the run"):
        list(batches)


def test_faults_of_the_network_are_retried_and_then_raised(s3, remote, tmp_path, check_own):
    pipe = graph(s3, tmp_path)
    s3.fail_gets("rows/img_emb_001.npy", 2, "status", 503)
    assert sum(map(check_own, load(pipe))) == 48
    pipe = graph(s3, tmp_path / "other")
    s3.fail_gets("rows/img_emb_001.npy", 99, "status", 500)
    with pytest.raises(OSError, match=r"rows/img_emb_001.npy"):
        list(load(pipe))


def test_secrets_are_in_no_checkpoint_and_no_repr(s3, remote, tmp_path):
    options = {**s3.options, "secret": "hush"}
    reader = ShardLister(str(remote.tars)).read_tar()
    pipe = reader.join_embeddings(s3.url("rows/"), storage_options=options)
    assert "hush" not in json.dumps(load(pipe).state_dict())
    assert "hush" not in repr(pipe.batch(4))


def test_local_tars_hold_remote_rows(s3, remote, tmp_path, open_lane, check_own):
    reader = ShardLister(str(remote.tars), shuffle=False, cache=str(tmp_path / "c")).read_tar()
    pipe = reader.join_embeddings(s3.url("rows/"), storage_options=s3.options).shuffle(3)
    order, lane = open_lane(pipe)
    order.next()
    assert lane.sources.holds
    assert [n for n, f in companion(order)._cached.items() if f._hold is not None] == [0]
    assert sum(map(check_own, load(pipe, 10))) == 40


def test_fortran_order_is_told_once(embed, tmp_path, caplog, check_own):
    data = embed(tmp_path, INDICES)
    for i in INDICES:
        data.write_rows(i, np.asfortranarray(data.array(i)))
    pipe = ShardLister(str(data.tars)).read_tar().join_embeddings(data.rows)
    with caplog.at_level(logging.WARNING):
        assert sum(map(check_own, load(pipe, 10))) == 40
    assert [r.getMessage() for r in caplog.records if "Fortran" in r.getMessage()] == [
        r.getMessage() for r in caplog.records
    ]
    assert len(caplog.records) == 1


def test_few_shards_are_kept_open(embed, tmp_path, open_lane, take, monkeypatch):
    monkeypatch.setattr("penstock.pipes.embedding_rows.EmbeddingRows.MOST_SAMPLES", 16)
    data = embed(tmp_path, INDICES)
    order, _ = open_lane(ShardLister(str(data.tars)).read_tar().join_embeddings(data.rows))
    for ref in take(order, 100):
        sample = order.resolve(ref)
        assert sample["image_embedding"].value()[1] == int(sample["__key__"][5:]) + 1
    rows = order.companion
    assert len(rows._open) == 2
    assert rows._samples == 16

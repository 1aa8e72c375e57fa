"""Graphs over shards on a real S3 server give what they give over local ones, bit for bit."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest

from penstock.pipes import ShardLister
from penstock.pipes.cache_room import CacheTooSmall
from penstock.pipes.graph import Graph
from penstock.pipes.index_store import IndexStore
from penstock.pipes.remote import ShardReplaced
from penstock.pipes.verify import fingerprints

fork = multiprocessing.get_context("fork")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*half-filled buckets"),
]
COUNT = 40
"""Batches that runs are compared over: more than a pass."""


@pytest.fixture
def remote(s3, shards):
    """The shards of the local fixture, on S3."""
    folder = os.path.dirname(shards)
    for name in sorted(os.listdir(folder)):
        if name.endswith(".tar"):
            with open(os.path.join(folder, name), "rb") as file:
                s3.put(name, file.read())
    return s3.url("{00000..00005}.tar")


def graph(urls, by="shards", lanes=4, window=20, batch=3, **how):
    return (
        ShardLister(urls, seed=3, **how)
        .read_tar()
        .filter_size(min_side=42)
        .shuffle(window)
        .bucket_by_aspect_ratio(64, batch, step=16)
        .lanes(lanes, by=by)
        .decode(crop="random", flip=0.5)
        .shuffle_caption(keep=1)
    )


def load(pipe, workers=0, **how):
    context = "fork" if workers else None
    return pipe.loader(workers, epoch_batches=23, multiprocessing_context=context, **how)


def prints(batch):
    return fingerprints({k: v for k, v in batch.items() if k != "__url__"})


def take(loader, count):
    found = []
    while len(found) < count:
        for batch in loader:
            found.append(prints(batch))
            if len(found) == count:
                break
    return found


@pytest.fixture(scope="session")
def expected(shards):
    """The prints of the batches that local shards give, of a graph dealt out by shards."""
    return take(load(graph(shards)), COUNT)


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_shards_give_what_local_ones_give(s3, remote, expected, workers):
    loader = load(graph(remote, storage_options=s3.options), workers)
    assert take(loader, COUNT) == expected
    loader.close()
    for i in range(6):  # once in all, for all passes, lanes and workers
        assert s3.gets(f"{i:05d}.tar") == [0]


@pytest.mark.filterwarnings("ignore:.*fork")
def test_spawned_workers(s3, remote, expected):
    pipe = graph(remote, storage_options=s3.options)
    loader = pipe.loader(1, epoch_batches=23, multiprocessing_context="spawn")
    assert take(loader, 3) == expected[:3]
    loader.close()


def test_a_small_cache_gives_the_same(s3, remote, shards, expected, tmp_path):
    """Shards come and go under bins that still point into them."""
    sizes = [os.path.getsize(shards.replace("{00000..00005}", f"{i:05d}")) for i in range(6)]
    how = {"storage_options": s3.options, "cache": str(tmp_path / "cache")}
    # One process, one lane, and a window of one sample: at most two shards are in use at once.
    whole = take(load(graph(shards, lanes=1, window=1, batch=8)), COUNT)
    bound = sum(sorted(sizes)[-2:])
    loader = load(graph(remote, lanes=1, window=1, batch=8, cache_size=bound, **how))
    assert take(loader, COUNT) == whole
    loader.close()
    kept = tmp_path / "cache" / "shards"
    assert sum(path.stat().st_size for path in kept.iterdir()) <= bound
    assert any(start for i in range(6) for start in s3.gets(f"{i:05d}.tar"))  # single reads
    tight = graph(remote, lanes=4, cache_size=max(sizes) + 1, storage_options=s3.options)
    with pytest.raises(CacheTooSmall, match="must be at least"):
        take(load(tight), COUNT)


def test_each_shard_is_fetched_once_a_pass_where_the_cache_holds_what_is_in_use(
    s3, remote, shards, tmp_path
):
    sizes = [os.path.getsize(shards.replace("{00000..00005}", f"{i:05d}")) for i in range(6)]
    how = {"storage_options": s3.options, "cache_size": sum(sorted(sizes)[-3:])}
    pipe = ShardLister(remote, seed=3, **how).read_tar().shuffle(5).batch(5, drop_last=False)
    loader = pipe.lanes(1, by="shards", repeat=False).load().loader()
    assert len(list(loader)) == 19
    for i in range(6):
        assert s3.gets(f"{i:05d}.tar") == [0]
    heads = [path for method, path, _ in s3.log if method == "HEAD" and path.endswith(".tar")]
    # Which version is there is asked once: where the read-ahead is slow, by both of its threads.
    assert 6 <= len(heads) <= 12


def test_runs_that_are_killed_and_resumed_elsewhere(s3, remote, expected, tmp_path, monkeypatch):
    """Each leg on a new machine: with an empty cache, and another number of workers."""
    state, position = None, 0
    for leg, (workers, steps) in enumerate(((2, 7), (0, 6), (1, 9), (3, 8))):
        monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / f"cache{leg}"))
        loader = load(graph(remote, storage_options=s3.options), workers)
        if state is not None:
            loader.load_state_dict(state)
        assert take(loader, steps) == expected[position : position + steps]
        position += steps
        state = json.loads(json.dumps(loader.state_dict()))
        loader.close()


def train(pipe, folder, workers, stop):
    os.setpgrp()
    loader = load(pipe, workers)
    checkpoint = folder / "state"
    if checkpoint.exists():
        loader.load_state_dict(json.loads(checkpoint.read_text()))
    with open(folder / "log", "a") as log:
        while loader.position < stop:
            for batch in loader:
                log.write(json.dumps([batch["__batch__"], prints(batch)]) + "\n")
                log.flush()
                (folder / "new").write_text(json.dumps(loader.state_dict()))
                (folder / "new").rename(checkpoint)
                if loader.position >= stop:
                    break
    loader.close()


def test_runs_that_are_killed_at_any_moment(s3, remote, expected, tmp_path):
    """kill -9 of all processes: while fetching, while waiting, while working."""
    chance = random.Random(5)
    s3.fail(lambda method, path, start: ("slow", 0.1) if method == "GET" else None)
    pipe = graph(remote, storage_options=s3.options, cache_size=800_000)
    for life in range(5):
        args = (pipe, tmp_path, life % 3, COUNT)
        process = fork.Process(target=train, args=args)
        process.start()
        if life < 4:
            time.sleep(0.2 + chance.random() * 0.5)
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
        process.join(60)
    assert process.exitcode == 0
    lines = [x for x in (tmp_path / "log").read_text().split("\n") if x.endswith("]")]
    seen = dict(json.loads(line) for line in lines)
    assert [seen[g] for g in range(COUNT)] == expected


def test_a_shard_that_is_replaced_during_a_run(s3, remote, tmp_path):
    how = {"storage_options": s3.options, "cache": str(tmp_path)}
    pipe = ShardLister(remote, shuffle=False, **how).read_tar().batch(17)
    for i in range(6):
        s3.put(f"{i:05d}_stats.json", json.dumps({"successes": (17, 5, 23, 11, 30, 9)[i]}).encode())
    loader = pipe.load().loader()
    batches = iter(loader)
    next(batches)
    s3.put("00003.tar", bytes(10240))
    with pytest.raises(ShardReplaced, match=r"00003.tar was replaced during the run"):
        list(batches)


def test_samples_are_counted_without_fetching(s3, remote, shards, tmp_path):
    how = {"storage_options": s3.options, "cache": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match=r'00000.tar is not known .*by="shards".*recipes.index'):
        load(graph(remote, by="samples", **how))
    expected = take(load(graph(shards, by="samples")), COUNT)
    for i in range(6):
        url = shards.replace("{00000..00005}", f"{i:05d}")
        if i % 2:
            count = IndexStore().count(url)
            s3.put(f"{i:05d}_stats.json", json.dumps({"successes": count}).encode())
        else:
            # Beside a local shard first, then copied with it: with the local file's time in it.
            copy = tmp_path / f"{i:05d}.tar"
            with open(url, "rb") as file:
                copy.write_bytes(file.read())
            with open(IndexStore().write_sidecar(str(copy)), "rb") as file:
                s3.put(f"{i:05d}.tar.index.npz", file.read())
    loader = load(graph(remote, by="samples", **how))
    assert [s3.gets(f"{i:05d}.tar") for i in range(6)] == [[]] * 6
    assert take(loader, COUNT) == expected


def test_a_sidecar_older_than_its_shard_does_not_count(s3, tmp_path, shards):
    url = shards.replace("{00000..00005}", "00000")
    copy = tmp_path / "0.tar"
    with open(url, "rb") as file:
        copy.write_bytes(file.read())
    with open(IndexStore().write_sidecar(str(copy)), "rb") as file:
        s3.put("0.tar.index.npz", file.read())
    time.sleep(1.1)  # S3 tells whole seconds
    remote = s3.put("0.tar", copy.read_bytes())
    store = ShardLister(remote, storage_options=s3.options).store()
    with pytest.raises(LookupError, match="is not known before it is fetched"):
        store.count(remote, fetch=False)
    assert store.count(remote) == 17


def test_the_next_shard_is_fetched_ahead(s3, remote, tmp_path):
    how = {"storage_options": s3.options, "cache": str(tmp_path)}
    pipe = ShardLister(remote, shuffle=False, **how).read_tar().lanes(1, by="shards")
    order = Graph.of(pipe).order(0)
    order.next()
    deadline = time.monotonic() + 10
    while not s3.gets("00001.tar") and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert [len(s3.gets(f"{i:05d}.tar")) for i in range(6)] == [1, 1, 0, 0, 0, 0]


def test_the_files_of_a_window_are_in_use_and_no_others(s3, remote, tmp_path):
    how = {"storage_options": s3.options, "cache": str(tmp_path)}
    pipe = ShardLister(remote, shuffle=False, **how).read_tar().shuffle(30).lanes(1, by="shards")
    order = Graph.of(pipe).order(0)
    source = order.lane.sources._open[0]
    for _ in range(300):
        order.next()
        pointed = {ref.shard for _, _, ref in order._heap}
        used = {s for s, file in source._files.items() if file._hold is not None}
        assert pointed <= used
        assert len(used) <= max(3, len(pointed) + 2)
    order.load(json.loads(json.dumps(order.state())))
    order.next()
    pointed = {ref.shard for _, _, ref in order._heap}
    assert pointed <= {s for s, file in source._files.items() if file._hold is not None}


def test_folders_globs_and_lists_take_the_storage_options(s3, remote):
    names = [s3.url(f"{i:05d}.tar") for i in range(6)]
    s3.put("list.txt", "\n".join(names).encode())
    for urls in (s3.url("*.tar"), s3.url(""), s3.url("list.txt")):
        assert ShardLister(urls, storage_options=s3.options).urls == names


def test_secrets_are_in_no_checkpoint_and_no_repr(s3, remote):
    pipe = graph(remote, storage_options={**s3.options, "secret": "hush"})
    assert "hush" not in json.dumps(load(pipe).state_dict())
    assert "hush" not in repr(pipe)


def test_commands_are_run_where_they_are_allowed(shards, expected):
    url = f"pipe:cat {shards}"
    with pytest.raises(ValueError, match="allow_pipe=True"):
        ShardLister(url)
    assert take(load(graph(url, allow_pipe=True)), COUNT) == expected


def test_damaged_compressed_shards_are_skipped_where_asked(s3, make_tar, tmp_path):
    with open(make_tar([(str(i), {"txt": b"x"}) for i in range(4)]), "rb") as file:
        good = s3.put("0.tar", file.read())
    bad = s3.put("1.tar", b"\x1f\x8b" + bytes(100))
    pipe = ShardLister([good, bad], shuffle=False, storage_options=s3.options).read_tar().batch(4)
    pipe = pipe.lanes(1, by="shards").load()
    loader = pipe.loader(on_error="skip", epoch_batches=3, quarantine=tmp_path / "q.jsonl")
    assert [batch["__key__"] for batch in loader] == [["0", "1", "2", "3"]] * 3
    assert "compressed data is damaged" in (tmp_path / "q.jsonl").read_text()

"""Manifests of images at URLs give the same batches whatever happens to servers and caches."""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter

import fsspec
import pytest

from penstock.pipes import DataError, ManifestReader, text_to_image_dataset
from penstock.pipes.file_cache import FileCache, RemoteFile
from penstock.pipes.verify import fingerprints

fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def bytes_held(cache):
    """Return the bytes of all files in the cache, finished or not."""
    found = [os.path.join(f, name) for f, _, names in os.walk(cache.folder) for name in names]
    return sum(map(os.path.getsize, found))


@pytest.fixture
def rows(web, tmp_path, make_jpeg):
    """Return a function that writes a manifest of so many images at URLs, each of its own size."""

    def write(count, more=()):
        for i in range(count):
            data = make_jpeg(40 + i * 37 % 80, 40 + i * 53 % 80, i)
            web.put(f"{i}.jpg", data)
        names = [*(f"{i}.jpg" for i in range(count)), *more]
        text = "".join(f"{web.url(name)}\tcaption {name}, red, round\n" for name in names)
        (tmp_path / "rows.tsv").write_text(text)
        return str(tmp_path / "rows.tsv")

    return write


def test_a_manifest_of_urls(web, rows, tmp_path):
    reader = ManifestReader(rows(4, ["none.jpg"]), shuffle=False)
    pipes = {
        "buckets": reader.bucket_by_aspect_ratio(64, 2, step=32).decode(),
        "batches": reader.batch(5).decode(32),
    }
    for name, pipe in pipes.items():
        quarantine = tmp_path / f"{name}.jsonl"
        loader = pipe.loader(2, on_error="skip", quarantine=quarantine, epoch_batches=6)
        keys = Counter(key for batch in loader for key in batch["__key__"])
        loader.close()
        assert set(keys) == {web.url(f"{i}.jpg") for i in range(4)}
        assert "rows.tsv, line 5: there is no file at" in quarantine.read_text()
        with pytest.raises(DataError, match=r"rows.tsv, line 5: there is no file at .*/none.jpg"):
            list(pipe.loader(epoch_batches=6))
    assert [web.gets(f"{i}.jpg") for i in range(4)] == [1] * 4
    assert {method for method, _ in web.log} == {"GET"}


def test_what_is_missing_is_asked_for_once_a_batch(web, rows):
    pipe = ManifestReader(rows(3, ["none.jpg"]), shuffle=False).batch(4).load()
    (batch,) = pipe.loader(on_error="skip", epoch_batches=1)
    assert batch["__filled__"] == [3]
    assert web.gets("none.jpg") == 1


def test_faults_of_the_network_are_never_skipped(web, rows):
    for pipe in (
        ManifestReader(rows(4), shuffle=False).batch(4).decode(32),
        ManifestReader(rows(4), shuffle=False).bucket_by_aspect_ratio(64, 2, step=32).decode(),
    ):
        web.fail("2.jpg", 999, "status", 503)
        with pytest.raises(OSError, match="/2.jpg cannot be fetched: status 503") as info:
            list(pipe.loader(on_error="skip", epoch_batches=8))
        assert "wanted by" in " ".join(info.value.__notes__)
        assert "rows.tsv, line 3" in " ".join(info.value.__notes__)


def test_five_images_with_batches_of_four_and_four_workers(web, rows):
    reader = ManifestReader(rows(5))
    loader = reader.batch(4).decode(16).loader(4, epoch_batches=12)
    seen = Counter(key for batch in loader for key in batch["__key__"])
    loader.close()
    assert sorted(seen.values()) in ([9, 9, 10, 10, 10], [9, 9, 9, 10, 11])
    assert [web.gets(f"{i}.jpg") for i in range(5)] == [1] * 5


@pytest.mark.parametrize("where", ["batches", "buckets"])
def test_several_files_are_fetched_at_once(web, rows, where):
    reader = ManifestReader(rows(8), shuffle=False)
    web.together = threading.Barrier(4)  # so many requests must be under way before one is answered
    if where == "batches":
        (batch,) = reader.batch(8).decode(16).loader(epoch_batches=1)
        assert batch["caption"] == [f"caption {i}.jpg, red, round" for i in range(8)]
    else:
        pipe = reader.bucket_by_aspect_ratio(64, 2, step=32).decode()
        assert len(list(pipe.loader(epoch_batches=3))) == 3
    assert len(web.log) == 8


def test_sizes_of_a_whole_manifest(web, rows, make_jpeg):
    path = rows(12, ["none.jpg"])
    web.together = threading.Barrier(13)
    (sizes,) = ManifestReader(path).image_sizes()
    assert sizes.tolist() == [[40 + i * 37 % 80, 40 + i * 53 % 80] for i in range(12)] + [[-1, -1]]
    assert len(web.log) == 13


def graph(path, where="buckets", **how):
    reader = ManifestReader(path, seed=3, **how)
    if where == "buckets":
        pipe = reader.bucket_by_aspect_ratio(64, 3, step=16).lanes(2)
        return pipe.decode(crop="random", flip=0.5).shuffle_caption()
    return reader.batch(4).lanes(2).decode((32, 48), crop="random", flip=0.5).shuffle_caption()


def batches(loader, count):
    found = []
    while len(found) < count:
        for batch in loader:
            found.append(fingerprints(batch))
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("where", ["batches", "buckets"])
@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
def test_runs_that_are_resumed_elsewhere_or_in_a_small_cache(where, web, rows, tmp_path):
    path = rows(15)
    how = {"epoch_batches": 7}
    expected = batches(graph(path, where).loader(**how), 24)
    total = sum(map(len, web.files.values()))
    state, position = None, 0
    for leg, (workers, steps, size) in enumerate(((2, 7, None), (0, 8, total // 3), (1, 9, "1GB"))):
        pipe = graph(path, where, cache=str(tmp_path / f"cache{leg}"), cache_size=size)
        loader = pipe.loader(workers, **how)
        if state is not None:
            loader.load_state_dict(state)
        assert batches(loader, steps) == expected[position : position + steps]
        position += steps
        state = json.loads(json.dumps(loader.state_dict()))
        loader.close()
    small = FileCache(str(tmp_path / "cache1"))
    assert total // 5 < bytes_held(small) <= total // 3


def train(path, folder, cache, workers, stop):
    os.setpgrp()
    pipe = graph(path, cache=str(folder / cache))
    loader = pipe.loader(workers, epoch_batches=7, multiprocessing_context="fork")
    checkpoint = folder / "state"
    if checkpoint.exists():
        loader.load_state_dict(json.loads(checkpoint.read_text()))
    with open(folder / "log", "a") as log:
        while loader.position < stop:
            for batch in loader:
                log.write(json.dumps([batch["__batch__"], fingerprints(batch)]) + "\n")
                log.flush()
                (folder / "new").write_text(json.dumps(loader.state_dict()))
                (folder / "new").rename(checkpoint)
                if loader.position >= stop:
                    break
    loader.close()


@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
def test_runs_that_are_killed_at_any_moment(web, rows, tmp_path):
    """kill -9 of all processes, and then on with the same cache or with an empty one."""
    path = rows(15)
    expected = batches(graph(path).loader(epoch_batches=7), 24)
    chance = random.Random(7)
    for i in range(15):
        web.fail(f"{i}.jpg", 99, "slow", 0.1)
    for life in range(5):
        args = (path, tmp_path, f"cache{life // 2}", life % 3, 24)
        process = fork.Process(target=train, args=args)
        process.start()
        if life < 4:
            time.sleep(0.2 + chance.random() * 0.4)
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
        process.join(60)
    assert process.exitcode == 0
    lines = [x for x in (tmp_path / "log").read_text().split("\n") if x.endswith("]")]
    seen = dict(json.loads(line) for line in lines)
    assert [seen[g] for g in range(24)] == json.loads(json.dumps(expected))


def test_a_manifest_and_its_images_on_s3(s3, web, make_jpeg):
    for i in range(4):
        s3.put(f"img/{i}.jpg", make_jpeg(40, 50, i))
    lines = [*(f"img/{i}.jpg,text {i}" for i in range(4)), f"{web.put('4.jpg', b'')},text 4"]
    web.put("4.jpg", make_jpeg(40, 50, 4))
    url = s3.put("rows.csv", "\n".join(["image,caption", *lines]).encode())
    options = {**s3.options, "secret": "hush"}
    pipe = text_to_image_dataset(
        url, batch_size=5, size=32, shuffle=False, storage_options=options, cache_size="1GB"
    )
    s3.log.clear()
    loader = pipe.loader(epoch_batches=2)
    for batch in loader:
        assert batch["caption"] == [f"text {i}" for i in range(5)]
        assert batch["original_size"].tolist() == [[40, 50]] * 5
    paths = [f"/{s3.bucket}/img/{i}.jpg" for i in range(4)]
    assert sorted(s3.log) == [("GET", path, 0) for path in paths]
    assert web.log == [("GET", "4.jpg")]
    assert "hush" not in json.dumps(loader.state_dict())
    assert "hush" not in repr(pipe)


def test_filesystems_that_are_not_asynchronous(make_jpeg, tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe("/files-test/0.jpg", make_jpeg(40, 50, 0))
    (tmp_path / "rows.csv").write_text("image,caption\nmemory://files-test/0.jpg,one\n")
    try:
        assert not RemoteFile("memory://files-test/0.jpg").far
        (batch,) = ManifestReader(tmp_path / "rows.csv").batch(1).decode().loader()
        assert batch["image"].shape == (1, 3, 40, 50)
    finally:
        fs.rm("/files-test", recursive=True)

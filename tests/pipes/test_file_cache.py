"""Images at URLs: fetched once, whole or not at all, by whichever process comes first."""

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
from penstock.pipes.cache_room import CacheTooSmall
from penstock.pipes.file_cache import FileCache, RemoteFile, takes_options
from penstock.pipes.remote import Remote
from penstock.pipes.verify import fingerprints

fork = multiprocessing.get_context("fork")
SEAL = 8
"""Bytes behind each file's own."""

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def cache(tmp_path):
    return FileCache(str(tmp_path / "cache"))


def held(cache):
    """Return the sizes of all files in the cache, finished or not, by name."""
    found = {}
    for folder, _, names in os.walk(cache.folder):
        for name in names:
            found[name] = os.path.getsize(os.path.join(folder, name))
    return found


def test_a_file_is_fetched_once(web, cache):
    url = web.put("1.jpg", b"one") + "?size=9"
    for _ in range(2):
        assert RemoteFile(url, cache).read() == b"one"
        RemoteFile(url, cache).fetch()
    assert web.log == [("GET", "1.jpg")]
    assert held(cache) == {os.path.basename(cache.path(url)): 3 + SEAL}
    assert FileCache(cache.root).has(url)
    assert not FileCache(cache.root).has(url + "0")


def test_a_fetched_file_is_near(web, cache):
    field = RemoteFile(web.put("1.jpg", b"one"), cache)
    assert field.far
    field.fetch()
    assert not field.far
    assert web.log == [("GET", "1.jpg")]


@pytest.mark.parametrize(("kind", "number"), [("truncate", 10), ("reset", 10), ("status", 503)])
def test_a_lasting_fault_is_an_error_of_input_and_leaves_nothing(web, cache, kind, number):
    url = web.put("1.jpg", bytes(1000))
    web.fail("1.jpg", 99, kind, number)
    with pytest.raises(OSError, match=r"/1.jpg cannot be fetched: ") as info:
        RemoteFile(url, cache, "rows.csv, line 7").read()
    assert info.value.__notes__ == ["wanted by rows.csv, line 7"]
    assert held(cache) == {}


def test_what_is_not_there_or_refused_is_bad_data_with_its_row(web, cache):
    row = "rows.csv, line 7"
    with pytest.raises(DataError, match=rf"^{row}: there is no file at {web.url('none.jpg')}$"):
        RemoteFile(web.url("none.jpg"), cache, row).read()
    url = web.put("1.jpg", b"one")
    web.fail("1.jpg", 1, "status", 403)
    with pytest.raises(DataError, match=rf"^{row}: {url} is refused \(status 403"):
        RemoteFile(url, cache, row).fetch()
    web.fail("1.jpg", 1, "status", 403)
    with pytest.raises(DataError, match=rf"^{url} is refused"):
        RemoteFile(url, cache).read()
    assert held(cache) == {}


def take(cache, url, go, out):
    go.wait()
    out.put(len(cache.read(url)))


def test_of_processes_that_want_one_file_one_fetches_it(web, cache):
    url = web.put("1.jpg", bytes(5000))
    web.fail("1.jpg", 1, "slow", 0.3)
    cache.read(web.put("2.jpg", b"x"))  # the parent's connections must not be the children's
    go, out = fork.Event(), fork.Queue()
    crew = [fork.Process(target=take, args=(cache, url, go, out)) for _ in range(4)]
    for process in crew:
        process.start()
    go.set()
    assert [out.get(timeout=30) for _ in crew] == [5000] * 4
    for process in crew:
        process.join(30)
        assert process.exitcode == 0
    assert web.gets("1.jpg") == 1


def test_of_threads_that_want_one_file_one_fetches_it(web, cache):
    url = web.put("1.jpg", bytes(5000))
    web.fail("1.jpg", 1, "slow", 0.2)
    found = []
    crew = [threading.Thread(target=lambda: found.append(len(cache.read(url)))) for _ in range(4)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert found == [5000] * 4
    assert web.gets("1.jpg") == 1


def test_a_process_killed_while_fetching_leaves_nothing_in_the_way(web, tmp_path):
    cache = FileCache(str(tmp_path / "cache"), 1000)
    urls = [web.put(f"{i}.jpg", bytes([i]) * 900) for i in range(2)]
    for again in urls:  # the same file, and one that needs its room
        web.fail("0.jpg", 1, "stall", 500)
        before = web.gets("0.jpg")
        process = fork.Process(target=cache.read, args=(urls[0],))
        process.start()
        while web.gets("0.jpg") == before:
            time.sleep(0.01)
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert [name.endswith(".part") for name in held(cache)] == [True]
        assert cache.read(again) == bytes([urls.index(again)]) * 900
        assert sum(held(cache).values()) <= 1000
        os.unlink(cache.path(again))


def test_the_least_recently_read_go_first(web, tmp_path):
    cache = FileCache(str(tmp_path), 1000)
    urls = [web.put(f"{i}.jpg", bytes([i]) * (200 - SEAL)) for i in range(6)]
    for i in (0, 1, 2, 3, 4, 0, 2):
        cache.read(urls[i])
        time.sleep(0.02)  # a file's time moves in steps of some milliseconds
    cache.read(urls[5])
    assert [cache.has(url) for url in urls] == [True, False, True, False, True, True]
    assert cache.read(urls[1]) == bytes([1]) * (200 - SEAL)  # fetched anew
    assert sum(held(cache).values()) <= 1000
    with pytest.raises(CacheTooSmall, match=r"/big.jpg \(1,001 bytes\) .*at least 1,001"):
        cache.read(web.put("big.jpg", bytes(1001 - SEAL)))


@pytest.mark.parametrize("damage", ["empty", "short", "zeros", "one bit", "longer"])
def test_a_file_that_a_loss_of_power_has_damaged_is_fetched_anew(web, cache, damage):
    data = bytes(range(1, 256)) * 40
    url = web.put("1.jpg", data)
    cache.fetch(url)
    path = cache.path(url)
    with open(path, "rb") as file:
        whole = file.read()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    broken = {
        "empty": b"",
        "short": whole[:4096],
        "zeros": bytes(len(whole)),
        "one bit": flipped,
        "longer": whole + b"x",
    }
    with open(path, "wb") as file:
        file.write(broken[damage])
    for _ in range(2):
        assert cache.read(url) == data
    assert web.gets("1.jpg") == 2


def test_an_empty_file(web, cache):
    url = web.put("1.jpg", b"")
    for _ in range(2):
        assert cache.read(url) == b""
    assert web.gets("1.jpg") == 1


def test_what_is_being_read_may_be_removed(web, cache, monkeypatch):
    url = web.put("1.jpg", bytes(range(256)) * 100)
    cache.fetch(url)
    real = os.utime

    def removed(fd):
        real(fd)
        os.unlink(cache.path(url))

    monkeypatch.setattr("penstock.pipes.file_cache.os.utime", removed)
    assert cache.read(url) == bytes(range(256)) * 100
    assert not cache.has(url)


def read_all(cache, urls, seed):
    chance = random.Random(seed)
    for _ in range(2):
        for url in chance.sample(urls, len(urls)):
            name = url.rpartition("/")[2]
            assert cache.read(url) == name.encode() * 50


def test_two_processes_keep_one_bound(web, tmp_path):
    urls = [web.put(f"{i:02d}.jpg", f"{i:02d}.jpg".encode() * 50) for i in range(30)]
    cache = FileCache(str(tmp_path), 4000)  # of 9,000 bytes
    crew = [fork.Process(target=read_all, args=(cache, urls, i)) for i in range(2)]
    for process in crew:
        process.start()
    for process in crew:
        process.join(60)
        assert process.exitcode == 0
    assert 3000 <= sum(held(cache).values()) <= 4000


def test_buckets_of_one_name_on_two_servers_are_two(tmp_path):
    names = {
        FileCache("c", remote=Remote(options)).path("s3://bucket/0.jpg")
        for options in (
            None,
            {"key": "a"},
            {"client_kwargs": {"endpoint_url": "http://a"}},
            {"endpoint_url": "http://b"},
        )
    }
    assert len(names) == 3


@pytest.mark.parametrize(
    ("manifest", "url", "taken"),
    [
        ("/rows.csv", "s3://b/0.jpg", True),
        ("/rows.csv", "http://b/0.jpg", True),
        ("s3://b/rows.csv", "s3://c/0.jpg", True),
        ("s3://b/rows.csv", "https://c/0.jpg", False),
        ("http://b/rows.csv", "https://c/0.jpg", True),
    ],
)
def test_storage_options_are_for_one_protocol(manifest, url, taken):
    assert takes_options(manifest, url) is taken


# -- manifests --------------------------------------------------------------------------------


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
    assert total // 5 < sum(held(small).values()) <= total // 3


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

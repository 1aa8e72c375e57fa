"""Images at URLs: fetched once, whole or not at all, by whichever process comes first."""

import multiprocessing
import os
import random
import signal
import threading
import time

import pytest

from penstock.pipes import DataError
from penstock.pipes.cache_room import CacheTooSmall
from penstock.pipes.file_cache import FileCache, RemoteFile, takes_options
from penstock.pipes.remote import Remote

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

"""The cache with real processes and a real S3 server."""

import gc
import gzip
import multiprocessing
import os
import signal
import subprocess
import time

import fsspec
import pytest

from penstock.pipes import fetch as fetch_module
from penstock.pipes.cache_room import CacheTooSmall
from penstock.pipes.remote import Remote, ShardReplaced
from penstock.pipes.shard_cache import ShardCache

fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def cache(s3, tmp_path):
    return ShardCache(str(tmp_path / "cache"), None, Remote(s3.options))


@pytest.fixture
def bounded(s3, tmp_path):
    """Return a function that gives the cache with a bound."""
    return lambda limit: ShardCache(str(tmp_path / "cache"), limit, Remote(s3.options))


def held(cache):
    """Return the names in the cache."""
    return sorted(os.listdir(cache.folder)) if os.path.isdir(cache.folder) else []


def read(path):
    with open(path, "rb") as file:
        return file.read()


def test_a_shard_is_fetched_once_for_each_version(s3, cache):
    url = s3.put("0.tar", b"one")
    for _ in range(2):
        with cache.hold(url) as hold:
            assert read(hold.path) == b"one"
            assert hold.version == cache.version(url)
    assert len(s3.gets("0.tar")) == 1
    old = hold.version
    s3.put("0.tar", b"two")
    with cache.hold(url) as hold:
        assert read(hold.path) == b"two"
    with cache.hold(url, old) as hold:  # still there
        assert read(hold.path) == b"one"
    os.unlink(cache.path(url, old))
    with pytest.raises(ShardReplaced, match=f"{url} was replaced during the run"):
        cache.hold(url, old)
    assert len(s3.gets("0.tar")) == 2
    assert len(held(cache)) == 1


def test_least_recently_used_goes_first_and_none_in_use(s3, bounded):
    cache = bounded(30)
    urls = [s3.put(f"{i}.tar", bytes([i]) * 10) for i in range(5)]
    holds = [cache.hold(url) for url in urls[:3]]
    with pytest.raises(CacheTooSmall, match=rf"{urls[3]} \(10 bytes\).*at least 40 bytes"):
        cache.hold(urls[3])
    assert len(held(cache)) == 3
    for i in (1, 0):  # let go in this order: 1 was used before 0
        holds[i].close()
        time.sleep(0.02)
    with cache.hold(urls[3]):
        assert not cache.has(urls[1], holds[1].version)
        assert cache.has(urls[0], holds[0].version)
    time.sleep(0.02)  # a file's time moves in steps of some milliseconds
    cache.hold(urls[0]).close()  # used again: now 3 is the oldest
    time.sleep(0.02)
    with cache.hold(urls[4]) as hold:
        assert cache.has(urls[0], holds[0].version)
        assert read(hold.path) == bytes([4]) * 10
    assert [len(s3.gets(f"{i}.tar")) for i in range(5)] == [1, 1, 1, 1, 1]
    holds[2].close()


def test_a_hold_ends_with_its_process_or_its_object(s3, bounded):
    cache = bounded(10)
    urls = [s3.put(f"{i}.tar", bytes([i]) * 10) for i in range(3)]

    def child(ready):
        hold = cache.hold(urls[0])
        ready.send(hold.path)
        time.sleep(60)

    ours, theirs = fork.Pipe()
    process = fork.Process(target=child, args=(theirs,))
    process.start()
    assert ours.poll(30)
    with pytest.raises(CacheTooSmall):
        cache.hold(urls[1])
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    hold = cache.hold(urls[1])
    del hold
    gc.collect()
    cache.hold(urls[2]).close()


def begin_and_sleep(begun):
    begun.set()
    time.sleep(60)


def test_a_child_does_not_keep_what_its_parent_held(s3, bounded):
    cache = bounded(10)
    urls = [s3.put(f"{i}.tar", bytes([i]) * 10) for i in range(2)]
    hold = cache.hold(urls[0])
    begun = fork.Event()
    process = fork.Process(target=begin_and_sleep, args=(begun,))
    process.start()
    assert begun.wait(30)
    hold.close()
    cache.hold(urls[1]).close()  # the child's lock would be in the way
    process.kill()
    process.join()


def test_what_is_fetched_ahead_goes_after_the_idle(s3, bounded):
    cache = bounded(30)
    urls = [s3.put(f"{i}.tar", bytes([i]) * 10) for i in range(4)]
    versions = [cache.version(url) for url in urls]
    cache.fetch_ahead(urls[0], versions[0])
    for i in (1, 2, 3):
        cache.hold(urls[i]).close()
    assert cache.has(urls[0], versions[0])
    assert not cache.has(urls[1], versions[1])
    with cache.hold(urls[0]), cache.hold(urls[2]), cache.hold(urls[3]):
        with pytest.raises(CacheTooSmall):
            cache.fetch_ahead(urls[1], versions[1])
        cache.fetch_ahead(urls[2], versions[2])


def take(cache, url, go, out):
    go.wait()
    with cache.hold(url) as hold:
        out.put(len(read(hold.path)))


def test_of_processes_that_want_one_shard_one_fetches_it(s3, cache, monkeypatch):
    monkeypatch.setattr(fetch_module, "RANGE", 1 << 18)
    url = s3.put("0.tar", bytes(1 << 20))
    s3.fail_gets("0.tar", 1, "slow", 0.3)
    go, out = fork.Event(), fork.Queue()
    # The parent's connections and threads are there, and must not be the children's.
    cache.version(url)
    crew = [fork.Process(target=take, args=(cache, url, go, out)) for _ in range(4)]
    for process in crew:
        process.start()
    go.set()
    assert [out.get(timeout=30) for _ in crew] == [1 << 20] * 4
    for process in crew:
        process.join(30)
        assert process.exitcode == 0
    assert sorted(s3.gets("0.tar")) == [0, 1 << 18, 2 << 18, 3 << 18]


def test_a_process_killed_while_fetching_leaves_nothing_in_the_way(s3, bounded, monkeypatch):
    monkeypatch.setattr(fetch_module, "RANGE", 1 << 18)
    cache = bounded(1 << 20)
    url = s3.put("0.tar", bytes(1 << 20))
    other = s3.put("1.tar", bytes(1 << 20))
    for again in (url, other):  # the same shard, and one that needs the room of the other
        for leftover in held(cache):
            os.unlink(os.path.join(cache.folder, leftover))
        s3.fail_gets("0.tar", 1, "stall", 1000)
        process = fork.Process(target=cache.hold, args=(url,))
        process.start()
        while len(s3.gets("0.tar")) < 4:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert [name.endswith(".part") for name in held(cache)] == [True]
        with cache.hold(again) as hold:
            assert os.path.getsize(hold.path) == 1 << 20
        assert [name.endswith(".tar") for name in held(cache)] == [True]
        s3.log.clear()


def test_a_failed_fetch_leaves_nothing(s3, cache):
    url = s3.put("0.tar", bytes(1000))
    s3.fail_gets("0.tar", 99, "status", 403)
    with pytest.raises(PermissionError):
        cache.hold(url)
    assert held(cache) == []
    s3.fail(lambda *_: None)
    cache.hold(url).close()


def test_a_compressed_shard_is_unpacked_within_the_bound(s3, bounded):
    url = s3.put("0.tar", gzip.compress(bytes(100_000)))
    with bounded(200_000).hold(url) as hold:
        assert read(hold.path) == bytes(100_000)
    os.unlink(hold.path)
    cache = bounded(50_000)
    with pytest.raises(CacheTooSmall, match=r"0.tar, unpacked, \(100,000 bytes\)"):
        cache.hold(url)
    assert held(cache) == []


def test_files_without_size_and_etag_are_known_by_their_hash(tmp_path):
    source = tmp_path / "in"
    cache = ShardCache(str(tmp_path / "cache"), None, Remote(allow_pipe=True))
    log = tmp_path / "log"
    url = f"pipe:echo x >> {log}; cat {source}"
    source.write_bytes(b"one")
    assert not cache.version(url).known
    with cache.hold(url) as hold:
        first = hold.version
        assert read(hold.path) == b"one"
    assert cache.version(url) == first
    cache.hold(url).close()
    assert len(log.read_text().split()) == 1
    os.unlink(hold.path)
    cache.hold(url, first).close()
    os.unlink(hold.path)
    source.write_bytes(b"two")
    with pytest.raises(ShardReplaced):
        cache.hold(url, first)
    assert held(cache) == []
    with cache.hold(url) as hold:  # a new run
        assert read(hold.path) == b"two"
        assert hold.version != first
    assert len(log.read_text().split()) == 4


def test_filesystems_that_are_not_asynchronous(tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe("/cache-test/0.tar", b"x" * 1000)
    cache = ShardCache(str(tmp_path))
    with cache.hold("memory://cache-test/0.tar") as hold:
        assert read(hold.path) == b"x" * 1000
    fs.rm("/cache-test", recursive=True)
    with pytest.raises(FileNotFoundError, match=r"no such shard: memory://cache-test/0.tar"):
        cache.hold("memory://cache-test/0.tar")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip("mounting needs rights that are not given here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk(s3, small_disk):
    cache = ShardCache(str(small_disk), None, Remote(s3.options))
    urls = [s3.put(f"{i}.tar", bytes(600_000)) for i in range(2)]
    cache.hold(urls[0]).close()
    with cache.hold(urls[1]):  # what was idle made way
        assert len(held(cache)) == 1
        with pytest.raises(OSError, match=r"the disk of .*disk/shards is full.* no room for s3://"):
            cache.hold(urls[0])
        assert len(held(cache)) == 1
    packed = s3.put("2.tar", gzip.compress(bytes(3_000_000)))  # found to be too large on the way
    with pytest.raises(OSError, match="is full"):
        cache.hold(packed)
    assert held(cache) == []

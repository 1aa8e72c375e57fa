import errno
import fcntl
import os

import pytest

from penstock.pipes import cache_room
from penstock.pipes.cache_room import CacheRoom, CacheTooSmall, parse_size, remove_idle


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "shards"
    path.mkdir()
    return path


@pytest.fixture
def put(folder):
    """Return a function that makes a file of so many bytes, used at so many seconds."""

    def make(name, size, used):
        (folder / name).write_bytes(bytes(size))
        os.utime(folder / name, (used, used))

    return make


@pytest.fixture
def lock(folder):
    """Return a function that locks a file as another process would."""
    opened = []

    def take(name, kind=fcntl.LOCK_SH):
        fd = os.open(folder / name, os.O_RDWR | os.O_CREAT)
        opened.append(fd)
        fcntl.flock(fd, kind)
        return fd

    yield take
    for fd in opened:
        os.close(fd)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("100GB", 10**11),
        ("1GiB", 1 << 30),
        ("1.5 kb", 1500),
        ("7", 7),
        ("2T", 2 * 10**12),
        (5, 5),
        (None, None),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("size", ["", "GB", "-1", "1XB", 0, -5, 1.5, True, "0.1"])
def test_sizes_refused(size):
    with pytest.raises(ValueError, match="cache_size is bytes, or such as '100GB'"):
        parse_size(size)


def test_the_least_recently_used_goes_first_and_never_one_in_use(folder, put, lock):
    for name, used in (("a.tar", 4), ("b.tar", 1), ("c.tar", 3), ("d.tar", 2)):
        put(name, 100, used)
    lock("b.tar")
    part = lock("new.part", fcntl.LOCK_EX)
    CacheRoom(str(folder), 400).reserve(part, 100, "new")
    assert names(folder) == ["a.tar", "b.tar", "c.tar", "new.part"]
    assert os.fstat(part).st_size == 100
    CacheRoom(str(folder), 350).reserve(part, 150, "new")  # its own bytes do not count twice
    assert names(folder) == ["a.tar", "b.tar", "new.part"]


def test_what_is_unfinished_counts_and_what_was_left_is_removed(folder, put, lock):
    put("left.part", 1000, 1)
    put("old.tar", 100, 2)
    fetching = lock("other.part", fcntl.LOCK_EX)
    os.ftruncate(fetching, 300)
    part = lock("new.part", fcntl.LOCK_EX)
    CacheRoom(str(folder), 499).reserve(part, 100, "new")
    assert names(folder) == ["new.part", "other.part"]


def test_too_small_says_how_large_it_must_be(folder, put, lock):
    for name in "ab":
        put(f"{name}.tar", 100, 1)
        lock(f"{name}.tar")
    part = lock("new.part", fcntl.LOCK_EX)
    with pytest.raises(CacheTooSmall, match=r"s3://b/7.tar \(90 bytes\).* must be at least 290 "):
        CacheRoom(str(folder), 200).reserve(part, 90, "s3://b/7.tar")
    CacheRoom(str(folder), 290).reserve(part, 90, "s3://b/7.tar")


def test_what_others_are_fetching_is_waited_for(folder, put, lock, monkeypatch):
    other = lock("other.part", fcntl.LOCK_EX)
    os.ftruncate(other, 100)
    part = lock("new.part", fcntl.LOCK_EX)
    waits = []

    def finish(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            os.rename(folder / "other.part", folder / "other.tar")
            fcntl.flock(other, fcntl.LOCK_UN)

    monkeypatch.setattr(cache_room.time, "sleep", finish)
    CacheRoom(str(folder), 150).reserve(part, 100, "new")
    assert len(waits) == 3
    assert names(folder) == ["new.part"]


def test_a_full_disk_makes_way_for_what_is_new(folder, put, lock, monkeypatch):
    put("a.tar", 100, 2)
    put("b.tar", 100, 1)
    used = lock("a.tar")
    part = lock("new.part", fcntl.LOCK_EX)

    def full(fd, size):
        if (folder / "b.tar").exists():
            raise OSError(errno.ENOSPC, "full")
        os.ftruncate(fd, size)

    monkeypatch.setattr(cache_room, "_extend", full)
    CacheRoom(str(folder), None).reserve(part, 100, "new")
    assert names(folder) == ["a.tar", "new.part"]

    def always(fd, size):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(cache_room, "_extend", always)
    with pytest.raises(OSError, match=r"the disk of .*shards is full.* no room for new; free"):
        CacheRoom(str(folder), None).reserve(part, 200, "new")
    assert names(folder) == ["a.tar", "new.part"]
    os.close(os.dup(used))


def test_a_file_in_use_is_not_removed(folder, put, lock):
    put("a.tar", 1, 1)
    fd = lock("a.tar")
    assert not remove_idle(str(folder / "a.tar"))
    fcntl.flock(fd, fcntl.LOCK_UN)
    assert remove_idle(str(folder / "a.tar"))
    assert not remove_idle(str(folder / "a.tar"))

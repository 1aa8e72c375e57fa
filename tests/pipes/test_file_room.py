"""The bound of the folder of small files, with real processes."""

import errno
import multiprocessing
import os
import random
import signal
import threading
import time

import pytest

from penstock.pipes import file_room
from penstock.pipes.cache_room import CacheTooSmall
from penstock.pipes.file_room import FileRoom
from penstock.pipes.make_once import make_once
from penstock.pipes.remote import hash_name

fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def room(tmp_path):
    """Return a function that gives a room with a bound."""
    return lambda limit, **how: FileRoom(str(tmp_path / "files"), limit, **how)


def path_of(room, number):
    name = hash_name(str(number))
    return os.path.join(room.folder, name[:2], name)


def add(room, number, size, used=None):
    """Write a file, last used at a time."""
    path = path_of(room, number)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    make_once(path, lambda fd: room.write(fd, bytes(size), f"file {number}"))
    if used is not None and os.path.exists(path):
        os.utime(path, (used, used))


def held(room):
    """Return the bytes of all files, finished or not."""
    sizes = {}  # by inode: one that is renamed meanwhile may be listed under both names
    for folder, _, names in os.walk(room.folder):
        for name in names:
            try:
                found = os.stat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


def numbers(room, most=1000):
    return [i for i in range(most) if os.path.exists(path_of(room, i))]


@pytest.fixture
def scans(monkeypatch):
    """The scans that were made."""
    found = []
    real = FileRoom.scan
    monkeypatch.setattr(FileRoom, "scan", lambda self, but=-1: found.append(1) or real(self, but))
    return found


def test_the_least_recently_used_go_first_down_to_nine_tenths(room):
    files = room(1000)
    for i in range(10):
        add(files, i, 100, used=1000 + (i * 7) % 10)  # 0, 3, 6, 9, 2, 5, 8, 1, 4, 7
    assert numbers(files) == list(range(10))
    add(files, 10, 100)
    assert numbers(files) == [1, 2, 4, 5, 6, 7, 8, 9, 10]  # 0 and 3 went: 900 with the new one
    add(files, 11, 100)
    assert held(files) == 1000


def test_scans_are_few(room, scans):
    files = room(10_000)
    for i in range(1000):
        add(files, i, 100)
    # 5 while it fills, and one for each tenth of the bound from then on.
    assert 80 <= len(scans) <= 100
    assert held(files) <= 10_000
    assert numbers(files)[-80:] == list(range(920, 1000))


def test_without_a_bound_nothing_is_scanned_or_removed(room, scans):
    files = room(None)
    for i in range(50):
        add(files, i, 100)
    assert len(numbers(files)) == 50
    assert not scans
    add(room(1000), 50, 100)
    assert held(files) <= 1000
    for i in range(60, 65):
        add(files, i, 100)  # those count too
    add(room(1000), 65, 100)
    assert held(files) <= 1000


def test_files_that_others_put_there_or_took_away_are_found_out(room):
    files = room(1000)
    for i in range(5):
        add(files, i, 100)
    os.makedirs(os.path.dirname(path_of(files, 50)), exist_ok=True)
    with open(path_of(files, 50), "wb") as file:
        file.write(bytes(600))
    os.utime(path_of(files, 50), (1, 1))
    for i in range(5, 8):  # a fifth of the bound later, at the latest
        add(files, i, 100)
    assert held(files) <= 1000
    assert numbers(files) == list(range(8))
    for i in numbers(files):
        os.unlink(path_of(files, i))
    for i in range(10, 20):
        add(files, i, 100)
    assert numbers(files) == list(range(10, 20))


@pytest.mark.parametrize("ledger", [b"", b"x", None])
def test_a_sum_that_is_lost_is_made_anew(room, ledger):
    files = room(1000)
    for i in range(10):
        add(files, i, 100)
    if ledger is None:
        os.unlink(f"{files.folder}.used")
    else:
        with open(f"{files.folder}.used", "wb") as file:
            file.write(ledger)
    add(files, 10, 100)
    assert held(files) == 900


def test_a_file_larger_than_the_bound_says_how_large_it_must_be(room):
    files = room(1000)
    add(files, 0, 10)
    with pytest.raises(CacheTooSmall, match=r"file 1 \(1,001 bytes\) .*at least 1,001,"):
        add(files, 1, 1001)
    assert held(files) == 0
    add(files, 2, 1000)
    assert held(files) == 1000


def test_what_others_write_is_waited_for(room):
    files = room(100, patience=5.0)
    go = threading.Event()

    def slowly(fd):
        files.write(fd, bytes(60), "file 0")
        go.set()
        time.sleep(0.3)

    os.makedirs(os.path.dirname(path_of(files, 0)), exist_ok=True)
    thread = threading.Thread(target=make_once, args=(path_of(files, 0), slowly))
    thread.start()
    go.wait(10)
    with pytest.raises(CacheTooSmall, match="at least 120"):
        add(room(100, patience=0.0), 1, 60)
    add(files, 1, 60)
    thread.join()
    assert numbers(files) == [1]


def fill(room, first, seed):
    chance = random.Random(seed)
    for i in range(first, first + 300):
        add(room, i, chance.randrange(1, 200))


def test_two_processes_keep_one_bound(room):
    files = room(3000)
    crew = [fork.Process(target=fill, args=(files, 1000 * i, i)) for i in range(2)]
    for process in crew:
        process.start()
    most = 0
    while any(process.is_alive() for process in crew):
        with files._ledger():  # so that nothing comes or goes while it is looked at
            most = max(most, held(files))
    for process in crew:
        process.join()
        assert process.exitcode == 0
    assert 2700 < most <= 3000
    assert 2000 < held(files) <= 3000


def test_processes_that_are_killed_leave_nothing_in_the_way(room):
    files, chance = room(3000), random.Random(1)
    for life in range(12):
        process = fork.Process(target=fill, args=(files, 1000 * life, life))
        process.start()
        time.sleep(0.02 + chance.random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert held(files) <= 3000
    for i in range(100):
        add(files, i, 100)
    assert 2600 <= held(files) <= 3000
    left = [n for _, _, names in os.walk(files.folder) for n in names if n.endswith(".part")]
    assert not left


def test_a_child_that_is_forked_meanwhile_keeps_no_lock(room):
    files = room(1000)
    add(files, 0, 1)
    inside, go = threading.Event(), threading.Event()

    def hold():
        with files._ledger():
            inside.set()
            go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(30)
    done = fork.Event()

    def child():
        add(files, 1, 1)  # waits for the parent's lock, and not for its own copy of it
        done.set()
        time.sleep(60)

    process = fork.Process(target=child)
    process.start()
    time.sleep(0.2)
    assert not done.is_set()
    go.set()
    thread.join()
    assert done.wait(30)
    add(files, 2, 1)  # the child, alive, has what it inherited open
    process.kill()
    process.join()


def test_a_full_disk_makes_way(room, monkeypatch):
    files = room(None)
    for i in range(20):
        add(files, i, 100, used=1000 + i)
    real, disk = file_room.write_at, 2050

    def small(fd, data, at):
        if held(files) > disk:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, data, at)

    monkeypatch.setattr(file_room, "write_at", small)
    add(files, 20, 100)
    assert numbers(files) == list(range(2, 21))
    disk = 0
    with pytest.raises(OSError, match=r"the disk of .*/files is full.* no room for file 21; "):
        add(files, 21, 100)
    assert held(files) == 0

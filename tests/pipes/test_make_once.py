"""Files that several processes want made, and one makes."""

import fcntl
import multiprocessing
import os
import signal
import time

import pytest

from penstock.pipes.hold import hold_at
from penstock.pipes.make_once import make_once
from penstock.pipes.own_file import OwnFile
from penstock.pipes.remote import Version

fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
VERSION = Version(4, 1)


@pytest.fixture
def target(tmp_path):
    return str(tmp_path / "made")


def writer(log, seconds=0.0):
    def write(fd):
        with open(log, "a") as file:
            file.write("x")
        time.sleep(seconds)
        os.write(fd, b"data")

    return write


def test_one_of_many_makes_it(tmp_path, target):
    log = tmp_path / "log"
    args = (target, writer(log, 0.2))
    crew = [fork.Process(target=make_once, args=args) for _ in range(5)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
        assert process.exitcode == 0
    assert log.read_text() == "x"
    assert (tmp_path / "made").read_bytes() == b"data"
    assert sorted(os.listdir(tmp_path)) == ["log", "made"]


def test_whoever_waits_is_not_kept_by_its_use(tmp_path, target):
    """The file is in use, for long, from the moment when it is there: who waited goes on."""
    log = tmp_path / "log"
    waiting = fork.Event()

    def write(fd):
        waiting.set()
        time.sleep(0.3)
        os.write(fd, b"data")

    def make():
        make_once(target, write)
        with hold_at(target, VERSION):
            time.sleep(60)

    first = fork.Process(target=make)
    first.start()
    assert waiting.wait(30)
    crew = [fork.Process(target=make_once, args=(target, writer(log))) for _ in range(4)]
    for process in crew:
        process.start()
    for process in crew:
        process.join(20)
        assert process.exitcode == 0
    assert first.is_alive()
    first.kill()
    first.join()
    assert not log.exists()


def test_a_killed_one_is_replaced_by_one_that_waited(tmp_path, target):
    log = tmp_path / "log"
    first = fork.Process(target=make_once, args=(target, writer(log, 60)))
    first.start()
    while not log.exists():
        time.sleep(0.01)
    second = fork.Process(target=make_once, args=(target, writer(log)))
    second.start()
    time.sleep(0.2)
    os.kill(first.pid, signal.SIGKILL)
    second.join(30)
    first.join()
    assert second.exitcode == 0
    assert (tmp_path / "made").read_bytes() == b"data"
    assert sorted(os.listdir(tmp_path)) == ["log", "made"]


def test_an_error_leaves_nothing_and_the_next_one_may_try(tmp_path, target):
    def fail(fd):
        os.write(fd, b"half")
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        make_once(target, fail)
    assert os.listdir(tmp_path) == []
    make_once(target, writer(tmp_path / "log"))
    with hold_at(target, VERSION) as hold:
        assert os.pread(hold.fd, 10, 0) == b"data"
    assert hold_at(str(tmp_path / "none"), VERSION) is None


def test_its_name_may_be_known_only_when_it_is_made(tmp_path, target):
    named = str(tmp_path / "named")

    def write(fd):
        os.write(fd, b"data")
        return named

    for _ in range(2):
        make_once(target, write, lambda: os.path.exists(named))
    assert os.listdir(tmp_path) == ["named"]


def test_a_child_forked_while_it_is_made_keeps_no_lock(tmp_path, target):
    children = []

    def write(fd):
        os.write(fd, b"data")
        child = fork.Process(target=time.sleep, args=(60,))
        child.start()
        children.append(child)

    make_once(target, write)
    with OwnFile(target) as file:
        deadline = time.monotonic() + 20
        while not (free := file.lock(fcntl.LOCK_EX | fcntl.LOCK_NB)):
            assert time.monotonic() < deadline  # the child closes it as it begins
            time.sleep(0.01)
    assert free
    children[0].kill()
    children[0].join()


@pytest.mark.parametrize("sync", [True, False])
def test_it_is_on_the_disk_before_it_has_its_name_unless_told_otherwise(target, monkeypatch, sync):
    named = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: named.append(os.path.exists(target)) or real(fd))
    make_once(target, lambda fd: os.write(fd, b"data"), sync=sync)
    assert named == ([False] if sync else [])
    assert os.path.getsize(target) == 4

"""Open files and their locks are of one process, whatever is forked, and whenever."""

import fcntl
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest

from penstock.pipes import own_file
from penstock.pipes.own_file import OwnFile

fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB


def forked(work):
    """Return what ``work`` returns in a forked child."""
    ours, theirs = fork.Pipe()
    child = fork.Process(target=lambda: theirs.send(work()))
    child.start()
    theirs.close()
    found = ours.recv()
    child.join()
    return found


def test_a_child_has_neither_the_file_nor_its_lock(tmp_path):
    path = str(tmp_path / "a")
    file = OwnFile(path, os.O_RDWR | os.O_CREAT)
    assert file.lock(EXCLUSIVE)
    assert forked(lambda: file.fd) == -1
    go, done = fork.Event(), fork.Event()
    child = fork.Process(target=lambda: (go.set(), done.wait(30)))
    child.start()
    go.wait()  # the child has begun, and closed it
    with OwnFile(path) as other:
        assert not other.lock(EXCLUSIVE)
        file.close()
        assert other.lock(EXCLUSIVE)  # the child lives, and does not hold it
    done.set()
    child.join()


def test_a_child_may_lock_files_of_its_own(tmp_path):
    path = str(tmp_path / "a")
    first = OwnFile(path, os.O_RDWR | os.O_CREAT)
    first.lock(EXCLUSIVE)

    def work():
        with OwnFile(path) as own:
            before = own.lock(EXCLUSIVE)
        first.close()  # closed already: must close no other file that has its number now
        with OwnFile(path) as again:
            first.close()
            return before, os.fstat(again.fd).st_size

    assert forked(work) == (False, 0)
    assert first.is_at(path)
    os.unlink(path)
    assert not first.is_at(path)


CHURN = """
import fcntl, importlib.util, os, sys, threading

spec = importlib.util.spec_from_file_location("own_file", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
folder = sys.argv[2]
other = open(f"{folder}/other", "w")
stop = threading.Event()


def churn(path):
    while not stop.is_set():
        with module.OwnFile(path, os.O_RDWR | os.O_CREAT) as file:
            file.lock(fcntl.LOCK_SH)


def open_paths():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass  # it was that of the listing
    return found


for i in range(3):
    threading.Thread(target=churn, args=(f"{folder}/own{i}",), daemon=True).start()
for _ in range(150):
    pid = os.fork()
    if pid == 0:
        found = open_paths()
        good = not any("/own" in path for path in found) and other.name in found
        if not good:
            print(found, flush=True)
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
print("done")
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no list of open files here")
def test_children_forked_while_threads_open_and_close(tmp_path):
    """No child has any of these files, or lacks a file that is not one of them.

    In a process of its own: one that measures coverage holds locks that a child would wait for.
    """
    command = [sys.executable, "-W", "ignore", "-c", CHURN, own_file.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.splitlines() == ["done"], done.stdout + done.stderr


def test_it_is_closed_with_its_object_and_only_once(tmp_path):
    file = OwnFile(str(tmp_path / "a"), os.O_RDWR | os.O_CREAT)
    number = file.fd
    file.close()
    assert file.fd == -1
    with open(tmp_path / "b", "w") as other:
        assert other.fileno() == number
        file.close()
        del file
        os.fstat(number)
    file = OwnFile(str(tmp_path / "a"))
    number = file.fd
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_what_cannot_be_opened_or_pickled(tmp_path):
    with pytest.raises(FileNotFoundError):
        OwnFile(str(tmp_path / "none"))
    with (
        OwnFile(str(tmp_path / "a"), os.O_RDWR | os.O_CREAT) as file,
        pytest.raises(TypeError, match="of one process"),
    ):
        pickle.dumps(file)

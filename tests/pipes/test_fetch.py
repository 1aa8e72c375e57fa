"""Fetching from S3 through a proxy that breaks what the order says."""

import os

import pytest

from penstock.pipes import fetch as fetch_module
from penstock.pipes import remote as remote_module
from penstock.pipes.fetch import fetch, in_parallel, write_at
from penstock.pipes.remote import Remote, ShardReplaced
from penstock.pipes.retry import ATTEMPTS

DATA = bytes(range(256)) * 4096  # 1 MiB
STEP = 1 << 18


@pytest.fixture(autouse=True)
def _small_ranges(monkeypatch):
    monkeypatch.setattr(fetch_module, "RANGE", STEP)


@pytest.fixture
def fetched(s3, tmp_path):
    """Return a function that fetches an object and returns its bytes."""

    def run(url, info=None):
        remote = Remote(s3.options)
        with open(tmp_path / "out", "wb") as out:
            fetch(remote, url, info or remote.info(url), out.fileno())
        return (tmp_path / "out").read_bytes()

    return run


def test_a_file_comes_in_ranges(s3, fetched):
    url = s3.put("0.tar", DATA + b"end")
    assert fetched(url) == DATA + b"end"
    assert sorted(s3.gets("0.tar")) == [0, STEP, 2 * STEP, 3 * STEP, 4 * STEP]
    assert fetched(s3.put("empty.tar", b"")) == b""


@pytest.mark.parametrize(
    ("kind", "number"),
    [("status", 503), ("status", 500), ("status", 429), ("reset", 1000), ("truncate", 1000)],
)
def test_what_passes_is_tried_again(s3, fetched, kind, number):
    url = s3.put("0.tar", DATA)
    s3.fail_gets("0.tar", 6, kind, number)
    assert fetched(url) == DATA
    assert len(s3.gets("0.tar")) == 10


def test_what_has_come_is_not_asked_for_again(s3, fetched):
    url = s3.put("0.tar", DATA[:STEP])
    s3.fail_gets("0.tar", ATTEMPTS + 5, "short", 1000)  # more than one range may fail in vain
    assert fetched(url) == DATA[:STEP]
    assert s3.gets("0.tar") == [1000 * i for i in range(ATTEMPTS + 6)]


def test_a_slow_start_is_waited_for(s3, fetched):
    url = s3.put("0.tar", DATA)
    s3.fail_gets("0.tar", 4, "slow", 0.3)
    assert fetched(url) == DATA
    assert len(s3.gets("0.tar")) == 4


@pytest.mark.parametrize(("kind", "number"), [("slow", 60), ("stall", 1000)])
def test_a_stalled_request_is_made_again(s3, fetched, monkeypatch, kind, number):
    monkeypatch.setattr(remote_module, "STALL", 0.3)
    url = s3.put("0.tar", DATA)
    s3.fail_gets("0.tar", 1, kind, number)
    assert fetched(url) == DATA
    assert len(s3.gets("0.tar")) == 5


def test_what_does_not_pass_is_said_at_once(s3, fetched):
    url = s3.put("0.tar", DATA)
    info = Remote(s3.options).info(url)
    s3.fail_gets("0.tar", 99, "status", 403)
    with pytest.raises(PermissionError, match=rf"{url}: access is refused \(403.*storage_options"):
        fetched(url, info)
    assert len(s3.gets("0.tar")) <= 4
    s3.fail(lambda *_: None)
    s3.delete("0.tar")
    with pytest.raises(FileNotFoundError, match=f"^no such shard: {url}$"):
        fetched(url)
    with pytest.raises(FileNotFoundError, match=f"^no such shard: {url}$"):
        fetched(url, info)


def test_what_never_passes_is_given_up(s3, fetched):
    url = s3.put("0.tar", DATA[:10])
    s3.fail_gets("0.tar", 99, "status", 503)
    with pytest.raises(OSError, match=rf"^{url}: .*HTTP status 503.*after {ATTEMPTS} attempts"):
        fetched(url)
    assert len(s3.gets("0.tar")) == ATTEMPTS


def test_another_version_is_refused(s3, fetched):
    url = s3.put("0.tar", DATA)
    info = Remote(s3.options).info(url)
    for other in (DATA[::-1], DATA[:1000]):
        s3.put("0.tar", other)
        with pytest.raises(ShardReplaced, match=rf"^{url} was replaced during the run"):
            fetched(url, info)


def test_the_first_error_ends_all(monkeypatch):
    import threading

    done = []

    def work(start, end):
        done.append(start)
        raise ValueError(start)

    with pytest.raises(ValueError, match="0"):
        in_parallel(work, [(i, i) for i in range(100)], 1, threading.Event())
    assert done == [0]


def test_a_command_writes_a_file(tmp_path):
    path = tmp_path / "in"
    path.write_bytes(DATA)
    remote = Remote(allow_pipe=True)
    url = f"pipe:cat {path}"
    with open(tmp_path / "out", "w+b") as out:
        write_at(out.fileno(), b"x" * (len(DATA) + 9), 0)
        fetch(remote, url, remote.info(url), out.fileno())
    assert (tmp_path / "out").read_bytes() == DATA


def test_commands_that_fail_are_named(tmp_path, monkeypatch):
    remote = Remote(allow_pipe=True)
    with open(tmp_path / "out", "wb") as out:
        url = "pipe:echo so it is >&2; exit 3"
        with pytest.raises(OSError, match=r"so it is >&2; exit 3: .* status 3: so it is"):
            fetch(remote, url, remote.info(url), out.fileno())
        monkeypatch.setattr(remote_module, "STALL", 0.1)
        url = f"pipe:echo $$ > {tmp_path}/pid; sleep 60"
        with pytest.raises(TimeoutError, match=r"the command put nothing out for 0.1 s"):
            fetch(remote, url, remote.info(url), out.fileno())
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)
        with pytest.raises(ValueError, match="allow_pipe=True"):
            Remote().info(url)

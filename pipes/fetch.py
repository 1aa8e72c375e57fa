"""Fetch whole files: in parallel ranges where they can be had, else in one stream."""

import os
import select
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable

from . import remote as remote_module
from .remote import Info, Remote, ShardReplaced
from .retry import Truncated, explained, retry

RANGE = 16 << 20
"""Bytes of one request. Eight at once of 16 MiB took a client 0.6 ms of CPU per MB, of 8 MiB 0.8,
of 4 MiB 1.3 (s3fs 2026.9 and moto on one machine)."""

STREAMS = 8
"""Number of requests at once."""

CHUNK = 1 << 20


def fetch(remote: Remote, url: str, info: Info, fd: int) -> None:
    """Write the file at ``url`` to ``fd``, from its byte 0.

    Args:
        remote: How it is reached.
        url: The file.
        info: What `Remote.info` said of it: any other version is refused.
        fd: A file open for writing.

    Raises:
        ShardReplaced: It is not that version, or became another in the meantime.
        OSError: It cannot be had whole, or not be written.
    """
    if url.startswith("pipe:"):
        remote.check_pipe(url)
        _run(url, fd)
        return
    try:
        if info.ranges and info.version.size >= 0:
            _fetch_ranges(remote, url, info, fd)
        else:
            retry(lambda: _fetch_stream(remote, url, info, fd))
    except Exception as error:
        raise explained(url, error) from error
    if info.etag is None and remote.info(url).version != info.version:
        raise ShardReplaced.of(url)


def _fetch_ranges(remote: Remote, url: str, info: Info, fd: int) -> None:
    size = info.version.size
    ranges = [(start, min(size, start + RANGE)) for start in range(0, size, RANGE)]
    fs, _ = remote.filesystem(url)
    stop = threading.Event()

    def one(start: int, end: int) -> None:
        at = start

        def take(data: bytes) -> None:
            nonlocal at
            if stop.is_set():
                raise RuntimeError("another range has failed")
            write_at(fd, data, at)
            at += len(data)

        def attempt() -> None:
            if at < end:  # what has come is kept: an attempt goes on where the last one stopped
                remote.stream(url, at, end, info.etag, take)

        retry(attempt, lambda: at)

    # A filesystem that is not asynchronous may not be made for threads.
    in_parallel(one, ranges, STREAMS if fs.async_impl else 1, stop)


def in_parallel(
    work: Callable[[int, int], None],
    jobs: list[tuple[int, int]],
    threads: int,
    stop: threading.Event,
) -> None:
    """Call ``work`` with each job, in so many threads; after the first error no job is begun.

    The threads are daemons, unlike an executor's: an interpreter that ends does not wait for them.

    Raises:
        Exception: The first error of any job.
    """
    left, errors = deque(jobs), list[BaseException]()

    def run() -> None:
        while not stop.is_set():
            try:
                job = left.popleft()
            except IndexError:
                return
            try:
                work(*job)
            except BaseException as error:
                errors.append(error)
                stop.set()

    if min(threads, len(jobs)) <= 1:
        run()
    else:
        crew = [
            threading.Thread(target=run, daemon=True, name="penstock-fetch")
            for _ in range(min(threads, len(jobs)))
        ]
        try:
            for thread in crew:
                thread.start()
            for thread in crew:
                thread.join()
        except BaseException:
            stop.set()
            raise
    if errors:
        raise errors[0]


def _fetch_stream(remote: Remote, url: str, info: Info, fd: int) -> None:
    """Write a file in one stream, from its beginning."""
    fs, inside = remote.filesystem(url)
    # http: a block size of 0 asks for one stream whatever the size.
    whole = {"block_size": 0} if url.startswith(("http://", "https://")) else {}
    at = 0
    with fs.open(inside, "rb", **whole) as file:
        while data := file.read(CHUNK):
            write_at(fd, data, at)
            at += len(data)
    if info.version.size not in (-1, at):
        raise Truncated(f"got {at:,} bytes of {info.version.size:,}")
    os.ftruncate(fd, at)


def write_at(fd: int, data: bytes, at: int) -> None:
    """Write all of ``data`` at byte ``at``."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def _run(url: str, fd: int) -> None:
    """Write what a command puts out."""
    command = url.removeprefix("pipe:").strip()
    at = 0
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            start_new_session=True,  # so that all that the shell starts can be ended
        )
        assert process.stdout is not None
        try:
            while data := _next_output(process.stdout.fileno(), url):
                write_at(fd, data, at)
                at += len(data)
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            process.stdout.close()
        if code:
            words.seek(max(0, words.tell() - 500))
            said = words.read().decode(errors="replace").strip()
            raise OSError(f"{url}: the command ended with status {code}: {said or 'no message'}")
    os.ftruncate(fd, at)


def _next_output(pipe: int, url: str) -> bytes:
    seconds = remote_module.STALL
    if not select.select([pipe], [], [], seconds)[0]:
        raise TimeoutError(f"{url}: the command put nothing out for {seconds:g} s")
    return os.read(pipe, CHUNK)

"""Remote files: which version is there, and its bytes, each process with connections of its own."""

import functools
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import fsspec.asyn
from fsspec.core import url_to_fs

from .retry import Truncated, explained, retry, status_of

STALL = 30.0
"""Seconds without a byte after which a request has stalled, and is made anew."""

CONNECT = 10.0
"""Seconds that a connection may take to be made."""

SLOWEST = 64 << 10
"""Bytes per second below which a request counts as stalled where single bytes are not seen."""

# What tells versions of a remote file apart, as the filesystems of fsspec call it, the best first.
_VERSIONS = (
    *("ETag", "etag", "generation", "md5Hash", "Content-MD5", "Digest", "blob_id", "sha256"),
    *("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified", "created"),
)


class Version(NamedTuple):
    """What tells versions of a file apart.

    Attributes:
        size: Size in bytes, packed as it is; -1 where a server does not tell.
        mark: A number made from the ETag, or else from the time, or from the content's hash; of a
            local file its time in nanoseconds; 0 where there is nothing.
    """

    size: int
    mark: int

    @property
    def known(self) -> bool:
        """Whether it tells anything: files without size and ETag are known by their hash."""
        return self.size >= 0 and self.mark != 0


class Info(NamedTuple):
    """What a server says about a file.

    Attributes:
        version: Its version.
        etag: Its ETag where requests can be made conditional on it.
        ranges: Whether parts of it can be asked for.
        modified: Its time, comparable to that of other files there, or None.
    """

    version: Version
    etag: str | None = None
    ranges: bool = True
    modified: Any = None


class ShardReplaced(RuntimeError):
    """A shard is not the one that the run began with."""

    @classmethod
    def of(cls, url: str) -> "ShardReplaced":
        """Return the error for ``url``."""
        return cls(
            f"{url} was replaced during the run: its size or ETag is not its index's; begin a new "
            "run, and write changed shards under new names"
        )


@dataclass(frozen=True)
class Remote:
    """Reads remote files, through fsspec or from a command's output.

    Holds nothing but its arguments, so it may be pickled and forked. Failures that may pass are
    retried; the others name the URL.

    Args:
        options: fsspec's storage options.
        allow_pipe: Whether ``pipe:`` URLs may run their shell command.
    """

    options: Mapping[str, Any] | None = None
    allow_pipe: bool = False

    def info(self, url: str) -> Info:
        """Return what the server says about a file; nothing is fetched.

        Raises:
            FileNotFoundError: There is none.
            OSError: It cannot be asked.
        """
        if url.startswith("pipe:"):
            self.check_pipe(url)
            return Info(Version(-1, 0), ranges=False)
        found: dict[str, Any] = self._ask(url, lambda fs, inside: fs.info(inside))
        names = [name for name in _VERSIONS if found.get(name)]
        size = found.get("size")
        mark = f"{names[0]}={found[names[0]]}" if names else None
        return Info(
            Version(-1 if size is None else int(size), 0 if mark is None else number_of(mark)),
            found.get("ETag") if url.startswith(("s3://", "s3a://")) else None,
            size is not None
            and (not url.startswith(("http://", "https://")) or bool(found.get("partial"))),
            next((found[n] for n in ("LastModified", "updated", "modified") if n in found), None),
        )

    def stream(
        self, url: str, start: int, end: int, etag: str | None, take: Callable[[bytes], object]
    ) -> None:
        """Give bytes ``start`` to ``end`` of a file to ``take``, as they come; one attempt.

        Args:
            url: The file.
            start: First byte.
            end: The byte after the last.
            etag: The ETag that the file must have, where the server takes conditions.
            take: Called with each part, in order; where the connection is S3's, in its thread.

        Raises:
            ShardReplaced: The file has another ETag.
            Exception: The filesystem's own, or `Truncated`.
        """
        fs, inside = self.filesystem(url)
        if etag is not None and _is_s3(fs):
            _stream_s3(fs, inside, url, (start, end), etag, take)
            return
        waits = {"timeout": STALL + (end - start) / SLOWEST} if fs.async_impl else {}
        data = fs.cat_file(inside, start=start, end=end, **waits)
        if len(data) != end - start:
            raise Truncated(f"got {len(data):,} bytes of {end - start:,} from byte {start:,}")
        take(data)

    def read(self, url: str, start: int, end: int, etag: str | None = None) -> bytes:
        """Return bytes ``start`` to ``end`` of a file.

        Raises:
            ShardReplaced: The file has another ETag.
            OSError: They cannot be had.
        """

        def attempt() -> bytes:
            parts: list[bytes] = []
            self.stream(url, start, end, etag, parts.append)
            return b"".join(parts)

        try:
            return retry(attempt) if end > start else b""
        except Exception as error:
            raise explained(url, error) from error

    def read_small(self, url: str) -> bytes | None:
        """Return a whole small file, or None where it is missing or refused.

        Raises:
            OSError: It cannot be had.
        """
        try:
            # On S3, start=0 saves asking for the size first.
            data: bytes = self._ask(
                url, lambda fs, at: fs.cat_file(at, **({"start": 0} if _is_s3(fs) else {}))
            )
        except (FileNotFoundError, PermissionError):
            return None  # S3 refuses, rather than misses, what may not be listed
        return data

    def check_pipe(self, url: str) -> None:
        """Refuse a command where the caller has not allowed them.

        Raises:
            ValueError: It is not allowed.
        """
        if not self.allow_pipe:
            raise ValueError(
                f"{url!r} is refused: a shell command is run only with "
                "ShardLister(…, allow_pipe=True)"
            )

    def _ask(self, url: str, request: Callable[[Any, str], Any]) -> Any:
        try:
            return retry(lambda: request(*self.filesystem(url)))
        except Exception as error:
            raise explained(url, error) from error

    def filesystem(self, url: str) -> tuple[Any, str]:
        """Return this process's filesystem for ``url``, and the path in it.

        None crosses a fork: their connections and event loops do not survive it. One that is not
        made for threads is this thread's own.
        """
        place = url.partition("://")
        # One for all http servers: images at URLs may lie at a hundred thousand of them.
        host = "" if place[0] in ("http", "https") else place[2].partition("/")[0]
        base = (place[0], host, repr(self.options))
        with _LOCKS[0]:  # one that loses a race would leave its connections open
            for key in (base, (*base, threading.get_ident())):
                if key in _FILESYSTEMS:
                    fs = _FILESYSTEMS[key]
                    return fs, fs._strip_protocol(url)
            settings = _settings(place[0], dict(self.options or {}))
            fs, inside = url_to_fs(url, **settings, skip_instance_cache=True)
            if _is_s3(fs):
                fs.retries = 1  # ours are counted, and go on where the last one stopped
            _FILESYSTEMS[base if fs.async_impl else (*base, threading.get_ident())] = fs
            return fs, inside


_FILESYSTEMS: dict[tuple[object, ...], Any] = {}
_LOCKS = [threading.Lock()]
_PARENTS: list[Any] = []


def _leave_to_parent() -> None:
    # Kept, never used: their finalizers would wait for the parent's event loop.
    _PARENTS.append(dict(_FILESYSTEMS))
    _FILESYSTEMS.clear()
    _LOCKS[0] = threading.Lock()  # another thread of the parent may have had it


os.register_at_fork(after_in_child=_leave_to_parent)


def number_of(text: str) -> int:
    """Return a hash of ``text`` in 60 bits, never 0."""
    return int(hash_name(text)[:15], 16) or 1


def hash_name(text: str) -> str:
    """Return a hash of ``text`` in 32 letters, for the name of a file."""
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _settings(protocol: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the storage options with timeouts where the caller has given none."""
    if protocol in ("s3", "s3a"):
        own = {
            "read_timeout": STALL,
            "connect_timeout": CONNECT,
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": 32,
        }
        options["config_kwargs"] = own | dict(options.get("config_kwargs") or {})
        options.setdefault("use_listings_cache", False)  # a listing's ETags grow old
    elif protocol in ("http", "https"):
        from fsspec.implementations import http  # brings aiohttp

        patience = http.aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=STALL)
        options["client_kwargs"] = {"timeout": patience} | dict(options.get("client_kwargs") or {})
    return options


def _is_s3(fs: Any) -> bool:
    protocol = fs.protocol
    return "s3" in ((protocol,) if isinstance(protocol, str) else protocol)


def _stream_s3(
    fs: Any,
    inside: str,
    url: str,
    span: tuple[int, int],
    etag: str,
    take: Callable[[bytes], object],
) -> None:
    """Stream a range, on condition that the object is still the same.

    Parts go on as they come: gathering a range's 8 MiB first, as ``cat_file`` does, takes up to
    twice the CPU time a byte.
    """
    start, end = span
    bucket, key, _ = fs.split_path(inside)
    try:
        answer = fs.call_s3(
            "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=etag
        )
    except Exception as error:
        # 416: the object has become shorter than this range's first byte.
        if status_of(error) in (412, 416):
            raise ShardReplaced.of(url) from error
        raise
    got = fsspec.asyn.sync(fs.loop, functools.partial(_drain, answer["Body"], take))
    if got != end - start:
        raise Truncated(f"got {got:,} bytes of {end - start:,} from byte {start:,}")


async def _drain(body: Any, take: Callable[[bytes], object]) -> int:
    got = 0
    async with body as stream:
        while data := await stream.read(1 << 20):
            take(data)
            got += len(data)
    return got

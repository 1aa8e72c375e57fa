"""Try a request again where the failure may pass, and say clearly what it was where it does not."""

import errno
import http.client
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

ATTEMPTS = 8
"""How often a request that brings nothing is made before it is given up: about half a minute."""

FIRST_WAIT = 0.25
"""Seconds to the second attempt; they double each time, and each wait is shortened by up to a half
at random, so that many processes do not come back at once."""

LONGEST_WAIT = 15.0

_PASSING_STATUS = (408, 425, 429)

# By name: these libraries are loaded only where a URL needs them.
_PASSING_TYPES = {
    "aiohttp.ClientError",
    "botocore.ConnectionError",
    "botocore.HTTPClientError",
    "botocore.ResponseParserError",  # S3 sends broken XML when it is overloaded (s3fs issue 484)
    "httpx.TransportError",
    "requests.ConnectionError",
    "requests.Timeout",
    "requests.ChunkedEncodingError",
    "urllib3.HTTPError",
}

# Among aiohttp's ClientErrors and http.client's HTTPExceptions, and yet no fault that passes.
_FINAL_TYPES = {"aiohttp.InvalidURL", "http.InvalidURL"}

# What s3fs makes of S3's SlowDown and InternalError, and the system's own.
_PASSING_ERRNO = {
    getattr(errno, name)
    for name in ("EBUSY", "EREMOTEIO", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN")
    if hasattr(errno, name)
}


class Truncated(ConnectionError):
    """A body that ended before its last byte."""


def retry(attempt: Callable[[], T], progress: Callable[[], object] = lambda: None) -> T:
    """Return what ``attempt()`` returns; failures that may pass are waited out.

    Args:
        attempt: Makes the request.
        progress: Returns how far the attempts have come: as long as that changes, none counts.

    Raises:
        Exception: ``attempt``'s own: the first that will not pass, or that of the last attempt.
    """
    failures, reached = 0, progress()
    while True:
        try:
            return attempt()
        except Exception as error:
            if not is_transient(error):
                raise
            failures, reached = failures + 1 if progress() == reached else 1, progress()
            if failures >= ATTEMPTS:
                error.add_note(f"given up after {failures} attempts")
                raise
        wait = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
        time.sleep(wait * (1 - secrets.randbelow(1 << 20) / (1 << 21)))


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a little later.

    So it is after a 5xx or "too many requests", a reset, a timeout, a truncated body or a name that
    could not be resolved; not after any other status, nor after an error of this machine.
    """
    status = status_of(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS
    causes = list(_causes(error))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return False
    if _names(error) & _FINAL_TYPES:
        return False
    return any(map(_passes, causes))


def _passes(error: BaseException) -> bool:
    passing = (ConnectionError, TimeoutError, http.client.HTTPException, socket.gaierror)
    if isinstance(error, passing):
        return True
    return bool(_names(error) & _PASSING_TYPES) or getattr(error, "errno", None) in _PASSING_ERRNO


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of any of fsspec's filesystems, or None."""
    for cause in _causes(error):
        response: Any = getattr(cause, "response", None)
        found = (
            response.get("ResponseMetadata", {}).get("HTTPStatusCode")  # botocore
            if isinstance(response, dict)
            else getattr(response, "status_code", None)  # requests, httpx
        )
        # aiohttp also numbers what it could not read of a body: 400, whatever the status was.
        if "aiohttp.ClientResponseError" in _names(cause):
            found = getattr(cause, "status", None)
        elif "gcsfs.HttpError" in _names(cause):
            found = getattr(cause, "code", None)
        if isinstance(found, int) and 300 <= found < 600:
            return found
    return None


def _names(error: BaseException) -> set[str]:
    """Return the names of an error's types, each with its library's."""
    return {f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in type(error).__mro__}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explained(url: str, error: Exception) -> Exception:
    """Return the error to raise for a request to ``url`` that has failed for good.

    `FileNotFoundError` for what is not there, `PermissionError` for what is refused, and `OSError`
    for the rest of what servers and networks do; other errors are returned as they are.
    """
    if isinstance(error, RuntimeError | ValueError):
        return error
    status = status_of(error)
    text = f"{type(error).__name__}: {error}"
    if status == 404 or (status is None and _missing(error)):
        return FileNotFoundError(f"no such shard: {url}")
    if status in (401, 403) or isinstance(error, PermissionError):
        return PermissionError(
            f"{url}: access is refused ({status or 'no status'}, {text}): check the credentials, "
            "or pass ShardLister(storage_options={…}); some servers say this of a missing file too"
        )
    if status is None and not is_transient(error):
        return error
    after = f"; {error.__notes__[-1]}" if getattr(error, "__notes__", None) else ""
    return OSError(f"{url}: {text}{'' if status is None else f' (HTTP status {status})'}{after}")


def _missing(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) and not is_transient(error)

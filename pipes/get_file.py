"""Get a whole small remote file, with one request where that can be."""

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import fsspec.asyn

from . import remote as remote_module
from .errors import DataError
from .remote import Remote
from .retry import Truncated, is_transient, retry, status_of

MOST_BYTES = 512 << 20
"""A larger file is refused: as much as the largest image that `Decoder` takes has uncompressed."""

# Not bad data, though servers say "refused": every other file will be refused too.
_CREDENTIALS = (
    *("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken"),
    *("RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired"),
)


def get_file(remote: Remote, url: str, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of the file at ``url``, all of them.

    An http server and S3 are asked once: the answer to GET says how long the body is. The others
    are asked for the size before. A body that is shorter, that stalls, or that comes slower than
    `remote.SLOWEST` is asked for anew.

    Args:
        remote: How it is reached.
        url: The file.
        most: Most bytes that it may have: the limit to bodies without end.

    Raises:
        DataError: There is no such file, the server refuses it, or it is too large.
        PermissionError: S3 does not take the credentials.
        OSError: It cannot be had now, after several attempts.
    """
    try:
        return retry(lambda: _get(remote, url, most))
    except DataError:
        raise
    except Exception as error:
        raise _explained(url, error) from error


def _get(remote: Remote, url: str, most: int) -> bytes:
    fs, inside = remote.filesystem(url)
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if "http" in protocols and hasattr(fs, "set_session"):
        found: bytes = fsspec.asyn.sync(fs.loop, _get_http, fs, url, most)
    elif "s3" in protocols:
        found = fsspec.asyn.sync(fs.loop, _get_s3, fs, inside, url, most)
    else:
        size = fs.info(inside).get("size") or 0
        _check_size(url, size, most)
        waits = remote_module.STALL + size / remote_module.SLOWEST
        found = fs.cat_file(inside, **({"timeout": waits} if fs.async_impl else {}))
        if len(found) < size:
            raise Truncated(f"got {len(found):,} bytes of {size:,}")
    return found


class _Body:
    """What has come of a body, and the time by which more must have come.

    Args:
        url: The file.
        most: Most bytes of it.
        limit: What ends the request; moved on with each part.
    """

    def __init__(self, url: str, most: int, limit: asyncio.Timeout) -> None:
        self.data = bytearray()
        self._url = url
        self._most = most
        self._limit = limit
        self._begun = asyncio.get_running_loop().time()

    def add(self, part: bytes) -> None:
        """Take a part that has come."""
        self.data += part
        _check_size(self._url, len(self.data), self._most)
        allowed = remote_module.STALL + len(self.data) / remote_module.SLOWEST
        self._limit.reschedule(self._begun + allowed)

    def finish(self, size: int | None) -> bytes:
        """Return all that came; it must be ``size`` bytes, where that is known."""
        if size is not None and len(self.data) != size:
            raise Truncated(f"got {len(self.data):,} bytes of {size:,}")
        return bytes(self.data)


async def _get_http(fs: Any, url: str, most: int) -> bytes:
    session = await fs.set_session()
    async with (
        asyncio.timeout(remote_module.STALL) as limit,
        session.get(fs.encode_url(url), **fs.kwargs) as answer,
    ):
        fs._raise_not_found_for_status(answer, url)
        body = _Body(url, most, limit)
        async for part in answer.content.iter_any():
            body.add(part)
        # Of a body that is unpacked on the way, aiohttp checks the size itself.
        plain = answer.headers.get("Content-Encoding", "identity") == "identity"
        data = body.finish(answer.content_length if plain else None)
        if plain:
            _check_digest(answer.headers, data)
        return data


async def _get_s3(fs: Any, inside: str, url: str, most: int) -> bytes:
    bucket, key, version = fs.split_path(inside)
    which = {"VersionId": version} if version else {}
    async with asyncio.timeout(remote_module.STALL) as limit:
        # No range: an empty object has none, and the answer says the size.
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **which)
        body = _Body(url, most, limit)
        async with answer["Body"] as stream:
            while part := await stream.read(1 << 20):
                body.add(part)
        return body.finish(answer["ContentLength"])


def _check_size(url: str, size: int, most: int) -> None:
    if size > most:
        raise DataError(f"{url} has more than {most:,} bytes, the most that a single file may have")


def _check_digest(headers: Mapping[str, str], data: bytes) -> None:
    """Hold a body against the checksum that came with it, where one did (RFC 1864)."""
    told = headers.get("Content-MD5")
    if not told:
        return
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    if told.strip() != base64.b64encode(digest).decode():
        raise Truncated(f"the {len(data):,} bytes that came do not fit their Content-MD5 {told}")


def _explained(url: str, error: Exception) -> Exception:
    """Return the error to raise for a file that cannot be had."""
    status, passing = status_of(error), is_transient(error)
    said = f"{'' if status is None else f'status {status}, '}{type(error).__name__}: {error}"
    missing = FileNotFoundError | IsADirectoryError | NotADirectoryError
    if status == 404 or (isinstance(error, missing) and status is None and not passing):
        return DataError(f"there is no file at {url}")
    if _code(error) in _CREDENTIALS:
        return PermissionError(
            f"{url} is refused ({said}): renew the credentials, or pass storage_options={{…}}"
        )
    if isinstance(error, PermissionError) or (status is not None and not passing):
        return DataError(
            f"{url} is refused ({said}); where that is not so for others, check the credentials, "
            "or pass storage_options={…}; some servers say this of a missing file too"
        )
    if isinstance(error, ValueError) and not passing:
        return DataError(f"{url} cannot be asked for ({said})")
    if isinstance(error, OSError) or passing:
        after = f"; {error.__notes__[-1]}" if getattr(error, "__notes__", None) else ""
        return OSError(f"{url} cannot be fetched: {said}{after}")
    return error


def _code(error: BaseException | None) -> str:
    """Return the code of S3's error behind another; "" where there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__ or error.__context__
    return ""

import errno
import socket
import ssl

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from penstock.pipes import retry as retry_module
from penstock.pipes.retry import ATTEMPTS, Truncated, explained, is_transient, retry, status_of


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds waited, without waiting."""
    log = []
    monkeypatch.setattr(retry_module.time, "sleep", log.append)
    return log


def client_error(status):
    return ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


def caused_by(error, cause):
    error.__cause__ = cause
    return error


PASSING = [
    client_error(500),
    client_error(503),
    client_error(429),
    caused_by(OSError(errno.EINVAL, "?"), client_error(502)),
    caused_by(FileNotFoundError("x"), client_error(503)),  # fsspec's http says so of anything
    ConnectionResetError(),
    TimeoutError(),
    TimeoutError(),
    Truncated("x"),
    EndpointConnectionError(endpoint_url="x"),
    socket.gaierror(socket.EAI_AGAIN, "x"),
    OSError(errno.EBUSY, "Please reduce your request rate"),
    caused_by(FileNotFoundError("x"), ConnectionRefusedError()),
]
LASTING = [
    client_error(403),
    client_error(404),
    client_error(412),
    FileNotFoundError("x"),
    PermissionError("x"),
    OSError(errno.ENOSPC, "full"),
    NoCredentialsError(),
    caused_by(ConnectionError("x"), ssl.SSLCertVerificationError("x")),
    ValueError("x"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_passing(error):
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_lasting(error):
    assert not is_transient(error)


def test_waits_double_and_are_shortened_at_random(waits):
    left = [4]

    def attempt():
        if left[0]:
            left[0] -= 1
            raise ConnectionResetError
        return "done"

    assert retry(attempt) == "done"
    assert len(waits) == 4
    for k, wait in enumerate(waits):
        assert 0.125 * 2**k <= wait <= 0.25 * 2**k
    assert len({wait / 2**k for k, wait in enumerate(waits)}) > 1


def test_attempts_end(waits):
    with pytest.raises(ConnectionResetError) as caught:
        retry(lambda: (_ for _ in ()).throw(ConnectionResetError()))
    assert len(waits) == ATTEMPTS - 1
    assert caught.value.__notes__ == [f"given up after {ATTEMPTS} attempts"]
    with pytest.raises(ValueError, match="x"):
        retry(lambda: int("x"))
    assert len(waits) == ATTEMPTS - 1


def test_progress_begins_the_count_anew(waits):
    at = [0]

    def attempt():
        at[0] += 1
        if at[0] < 50:
            raise ConnectionResetError

    retry(attempt, lambda: at[0])
    assert len(waits) == 49
    assert max(waits) <= 0.25


def test_errors_name_the_url():
    assert isinstance(explained("s3://b/x", FileNotFoundError("b/x")), FileNotFoundError)
    assert str(explained("s3://b/x", client_error(404))) == "no such shard: s3://b/x"
    refused = explained("s3://b/x", client_error(403))
    assert isinstance(refused, PermissionError)
    assert "s3://b/x: access is refused (403" in str(refused)
    assert "HTTP status 501" in str(explained("s3://b/x", client_error(501)))
    bug = TypeError("x")
    assert explained("s3://b/x", bug) is bug


def test_a_body_that_could_not_be_read_has_no_status():
    from aiohttp import ClientPayloadError
    from aiohttp.http_exceptions import ContentLengthError

    error = caused_by(ClientPayloadError("x"), ContentLengthError("x"))
    assert status_of(error) is None
    assert is_transient(error)

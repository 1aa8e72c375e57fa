"""Single files from real servers that misbehave."""

import base64
import gzip
import hashlib

import fsspec
import pytest

from penstock.pipes import DataError
from penstock.pipes import remote as remote_module
from penstock.pipes.get_file import get_file
from penstock.pipes.remote import Remote
from penstock.pipes.retry import ATTEMPTS

DATA = bytes(range(256)) * 400


@pytest.fixture(params=["http", "s3"])
def place(request, s3, web):
    """A server of each kind: its `put`, its `fail` for GETs, and the count of all requests."""
    if request.param == "http":
        return web, Remote(), web.fail, lambda name: [n for _, n in web.log].count(name)
    path = f"/{s3.bucket}/"
    return (
        s3,
        Remote(s3.options),
        s3.fail_gets,
        lambda name: [p for _, p, _ in s3.log].count(path + name),
    )


@pytest.mark.parametrize("data", [DATA, b""])
def test_one_request_brings_a_file(place, data):
    server, remote, _, asked = place
    assert get_file(remote, server.put("0.jpg", data)) == data
    assert asked("0.jpg") == 1


@pytest.mark.parametrize(
    ("kind", "number"), [("status", 503), ("status", 429), ("truncate", 1000), ("reset", 1000)]
)
def test_what_passes_is_tried_again(place, kind, number):
    server, remote, fail, asked = place
    url = server.put("0.jpg", DATA)
    fail("0.jpg", 3, kind, number)
    assert get_file(remote, url) == DATA
    assert asked("0.jpg") == 4


@pytest.mark.parametrize(("kind", "number"), [("stall", 1000), ("stall", 0), ("slow", 2)])
def test_a_stalled_download_times_out_and_is_made_again(place, monkeypatch, kind, number):
    monkeypatch.setattr(remote_module, "STALL", 0.3)
    server, remote, fail, asked = place
    url = server.put("0.jpg", DATA)
    fail("0.jpg", 1, kind, number)
    assert get_file(remote, url) == DATA
    assert asked("0.jpg") == 2


def test_a_trickle_counts_as_stalled(web, monkeypatch):
    monkeypatch.setattr(remote_module, "STALL", 0.3)
    url = web.put("0.jpg", DATA)
    web.fail("0.jpg", 1, "trickle", 0.05)  # never a whole STALL without a byte
    assert get_file(Remote(), url) == DATA
    assert web.gets("0.jpg") == 2


def test_what_never_passes_is_an_error_of_input(place, monkeypatch):
    server, remote, fail, asked = place
    url = server.put("0.jpg", DATA)
    fail("0.jpg", 99, "status", 503)
    with pytest.raises(OSError, match=rf"^{url} cannot be fetched: status 503.*{ATTEMPTS} attem"):
        get_file(remote, url)
    assert asked("0.jpg") == ATTEMPTS
    fail("0.jpg", 99, "truncate", 1000)
    with pytest.raises(OSError, match=rf"^{url} cannot be fetched: .*after {ATTEMPTS} attempts"):
        get_file(remote, url)


def test_what_is_not_there_is_bad_data_at_once(place):
    server, remote, _, asked = place
    with pytest.raises(DataError, match=rf"^there is no file at {server.url('no.jpg')}$"):
        get_file(remote, server.url("no.jpg"))
    assert asked("no.jpg") == 1


@pytest.mark.parametrize("status", [400, 403, 410, 451])
def test_what_is_refused_is_bad_data_at_once(web, status):
    url = web.put("0.jpg", DATA)
    web.fail("0.jpg", 1, "status", status)
    with pytest.raises(DataError, match=rf"^{url} is refused \(status {status}, "):
        get_file(Remote(), url)
    assert web.gets("0.jpg") == 1


def test_s3_refuses_a_file_or_the_credentials(s3, monkeypatch):
    url = s3.put("0.jpg", DATA)
    s3.fail_gets("0.jpg", 1, "status", 403)
    with pytest.raises(DataError, match=rf"^{url} is refused \(status 403.*storage_options"):
        get_file(Remote(s3.options), url)
    body = b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>"
    handler = s3.proxy.RequestHandlerClass
    real = handler.answer

    def expired(self, status, headers, data):
        real(self, status, headers, body if status == 400 else data)

    monkeypatch.setattr(handler, "answer", expired)
    s3.fail_gets("0.jpg", 1, "status", 400)
    with pytest.raises(PermissionError, match="expired.*renew the credentials"):
        get_file(Remote(s3.options), url)


@pytest.mark.parametrize(
    ("url", "message"),
    [("http://", "cannot be asked for"), ("nothing://x/y", "cannot be asked for .*nothing")],
)
def test_what_is_no_url_is_bad_data_at_once(url, message):
    with pytest.raises(DataError, match=message):
        get_file(Remote(), url)


def test_a_body_without_a_told_size(web):
    url = web.put("0.jpg", DATA)
    web.fail("0.jpg", 2, "chunks")  # without their end
    assert get_file(Remote(), url) == DATA
    assert web.gets("0.jpg") == 3


@pytest.mark.parametrize("kind", ["", "endless"])
def test_a_body_that_is_too_large_is_refused_on_the_way(web, kind):
    url = web.put("0.jpg", DATA)
    web.fail("0.jpg", 1, kind)
    with pytest.raises(DataError, match=rf"^{url} has more than 70,000 bytes"):
        get_file(Remote(), url, 70_000)
    assert web.gets("0.jpg") == 1


def test_a_compressed_body(web):
    url = web.put("0.jpg", gzip.compress(DATA))
    web.headers["Content-Encoding"] = "gzip"
    assert get_file(Remote(), url) == DATA
    web.fail("0.jpg", 1, "truncate", 100)
    assert get_file(Remote(), url) == DATA
    assert web.gets("0.jpg") == 3


def test_a_checksum_that_came_along_must_fit(web):
    url = web.put("0.jpg", DATA)
    web.headers["Content-MD5"] = base64.b64encode(hashlib.md5(DATA).digest()).decode()
    assert get_file(Remote(), url) == DATA
    web.files["0.jpg"] = DATA[::-1]
    with pytest.raises(OSError, match="do not fit their Content-MD5"):
        get_file(Remote(), url)
    assert web.gets("0.jpg") == 1 + ATTEMPTS


def test_other_filesystems(monkeypatch):
    fs = fsspec.filesystem("memory")
    fs.pipe("/get-file/0.jpg", DATA)
    try:
        assert get_file(Remote(), "memory://get-file/0.jpg") == DATA
        with pytest.raises(DataError, match="has more than 10 bytes"):
            get_file(Remote(), "memory://get-file/0.jpg", 10)
        for name in ("1.jpg", ""):
            with pytest.raises(DataError, match="there is no file at memory://get-file/"):
                get_file(Remote(), f"memory://get-file/{name}")
        monkeypatch.setattr("penstock.pipes.retry.FIRST_WAIT", 0.001)
        monkeypatch.setattr(type(fs), "cat_file", lambda *args, **how: DATA[:100])
        with pytest.raises(OSError, match=r"cannot be fetched: Truncated: got 100 bytes of 102,40"):
            get_file(Remote(), "memory://get-file/0.jpg")
    finally:
        fs.rm("/get-file", recursive=True)


def test_all_http_servers_share_one_filesystem():
    """Images may lie at very many, and each filesystem keeps connections and memory."""
    one, other = (Remote().filesystem(f"http://{host}/0.jpg") for host in ("a.org", "b.org"))
    assert one[0] is other[0]
    assert (one[1], other[1]) == ("http://a.org/0.jpg", "http://b.org/0.jpg")

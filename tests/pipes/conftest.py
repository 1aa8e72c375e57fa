"""Fixtures: servers of S3 and of plain http, with faults; tars and their embeddings."""

import http.client
import io
import itertools
import socket
import struct
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Fault = Callable[[str, str, int], tuple[str, float] | None]
"""(method, path, first byte asked for) to (kind, number), or None: see `Handler.answer`."""

_NUMBERS = itertools.count()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Proxy"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        start = int(asked or 0)
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.log.append((self.command, path, start))
            fault = self.server.fault(self.command, path, start)
        kind, number = fault or ("", 0.0)
        if kind == "status":
            self.answer(int(number), {}, b"")
            return
        if kind == "slow":
            time.sleep(number)
        backend = http.client.HTTPConnection(*self.server.backend)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        backend.request(self.command, self.path, body, headers)
        response = backend.getresponse()
        data = response.read()
        kept = {
            k: v
            for k, v in response.getheaders()
            if k.lower() not in ("connection", "transfer-encoding", "server", "date")
        }
        backend.close()
        if kind == "short":  # a body that ends early, and says so
            data = data[: int(number)]
            kept["Content-Length"] = str(len(data))
        if kind in ("truncate", "reset", "stall", "trickle"):
            self.answer(response.status, kept, data[: int(number)])
            self.wfile.flush()
            if kind == "stall":
                self.server.over.wait(60)
            if kind == "reset":
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.connection.close()
            self.close_connection = True
            return
        self.answer(response.status, kept, data)

    def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        """Send a response: in whole, or (truncate, reset, stall) its first bytes only."""
        self.send_response(status)
        headers = {"Content-Length": str(len(data)), **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def log_message(self, *_: object) -> None:
        pass


class Proxy(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, backend: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.backend = backend
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.log: list[tuple[str, str, int]] = []
        self.fault: Fault = lambda *_: None

    def handle_error(self, *_: object) -> None:
        pass  # clients that are killed


class S3:
    """A bucket, behind a proxy.

    Attributes:
        options: fsspec's storage options for it.
        log: (method, path, first byte asked for) of every request.
    """

    def __init__(self, proxy: Proxy, bucket: str) -> None:
        self.proxy = proxy
        self.bucket = bucket
        self.log = proxy.log
        host, port = proxy.server_address[:2]
        self.options: dict[str, Any] = {
            "key": "a",
            "secret": "b",
            "client_kwargs": {"endpoint_url": f"http://{host!s}:{port}"},
        }
        self._request("PUT", f"/{bucket}", b"")

    def _request(self, method: str, path: str, body: bytes) -> None:
        connection = http.client.HTTPConnection(*self.proxy.backend)
        connection.request(method, path, body, {"Authorization": "AWS a:b"})
        response = connection.getresponse()
        response.read()
        connection.close()
        assert response.status < 300, response.status

    def put(self, name: str, data: bytes) -> str:
        self._request("PUT", f"/{self.bucket}/{name}", data)
        return self.url(name)

    def delete(self, name: str) -> None:
        self._request("DELETE", f"/{self.bucket}/{name}", b"")

    def url(self, name: str) -> str:
        return f"s3://{self.bucket}/{name}"

    def gets(self, name: str) -> list[int]:
        """Return the first bytes asked for by the GETs of an object, in order."""
        path = f"/{self.bucket}/{name}"
        return [start for method, p, start in self.log if (method, p) == ("GET", path)]

    def fail(self, fault: Fault) -> None:
        """Put faults between server and client from now on."""
        self.proxy.fault = fault

    def fail_gets(self, name: str, times: int, kind: str, number: float) -> None:
        """Have the next GETs of an object fail."""
        left = [times]

        def fault(method: str, path: str, start: int) -> tuple[str, float] | None:
            if method != "GET" or path != f"/{self.bucket}/{name}" or not left[0]:
                return None
            left[0] -= 1
            return kind, number

        self.fail(fault)


@pytest.fixture(scope="session")
def moto() -> Iterator[tuple[str, int]]:
    """The address of a real S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def s3(moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A bucket of this test's own; requests that fail are made again at once."""
    monkeypatch.setattr("penstock.pipes.retry.FIRST_WAIT", 0.001)
    proxy = Proxy(moto)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield S3(proxy, f"bucket-{next(_NUMBERS)}")
    proxy.over.set()
    proxy.shutdown()
    proxy.server_close()
    thread.join()


class WebHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "WebServer"

    def do_GET(self) -> None:
        web = self.server.web
        name = self.path.partition("?")[0].strip("/")
        with web.lock:
            web.log.append((self.command, name))
            faults = web.faults.get(name, [])
            kind, number = faults.pop(0) if faults else ("", 0.0)
        if web.together is not None:
            try:
                web.together.wait(20)
            except threading.BrokenBarrierError:
                kind, number = "status", 418
        if kind == "slow":
            time.sleep(number)
        data = web.files.get(name)
        if kind == "status" or data is None:
            self.send_response(int(number) if kind else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.close_connection = bool(kind)
        if kind in ("chunks", "endless"):
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(data)))
        for header, value in web.headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "endless":
            while True:
                self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        if kind == "chunks":  # and never the last one
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            return
        if kind == "trickle":
            for i in range(len(data)):
                self.wfile.write(data[i : i + 1])
                if web.over.wait(number):
                    return
        self.wfile.write(data[: int(number)] if kind in ("truncate", "reset", "stall") else data)
        if kind == "stall":
            web.over.wait(60)
        if kind == "reset":
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


class WebServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    web: "Web"

    def handle_error(self, *_: object) -> None:
        pass  # clients that hang up


class Web:
    """Files on an http server.

    Attributes:
        files: What there is, by name.
        faults: What goes wrong with the next answers for a name: (kind, number) each.
        headers: What all answers have besides.
        together: So many requests must wait at once before they are answered.
        log: (method, name) of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[tuple[str, float]]] = {}
        self.headers: dict[str, str] = {}
        self.together: threading.Barrier | None = None
        self.log: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.server = WebServer(("127.0.0.1", 0), WebHandler)
        self.server.web = self

    def put(self, name: str, data: bytes) -> str:
        self.files[name] = data
        return self.url(name)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def fail(self, name: str, times: int, kind: str, number: float = 0.0) -> None:
        """Have the next answers for a name fail."""
        self.faults[name] = [(kind, number)] * times

    def gets(self, name: str) -> int:
        """Return how often a file was asked for."""
        return self.log.count(("GET", name))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """An http server; requests that fail are made again at once."""
    monkeypatch.setattr("penstock.pipes.retry.FIRST_WAIT", 0.001)
    found = Web()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    found.over.set()
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def own_row(shard: int, index: int, dim: int = 4) -> np.ndarray:
    """Return the embedding that says whose it is, float32 [dim]."""
    row = np.ones(dim, np.float32)
    row[0], row[1] = shard + 1, index + 1
    return row


class Embedded:
    """Tars whose keys are shard and index, as img2dataset writes them, and their embeddings.

    Attributes:
        tars: Folder of the tars, such as ``00012.tar`` with keys such as ``000120007``.
        rows: Folder of ``img_emb_012.npy``, a row for each index, of zeros where there is no key.
        indices: The indices that each shard has keys for.
    """

    def __init__(self, folder: Path, indices: dict[int, list[int]], dim: int = 4) -> None:
        self.tars, self.rows = folder / "tars", folder / "rows"
        self.indices, self.dim = indices, dim
        self.tars.mkdir(parents=True)
        self.rows.mkdir()
        for shard, own in indices.items():
            self.write_tar(shard, {i: {"txt": f"{shard} {i}".encode()} for i in own})
            self.write_rows(shard, self.array(shard))

    def write_tar(self, shard: int, samples: dict[int, dict[str, bytes]], key: str = "") -> None:
        with tarfile.open(self.tars / f"{shard:05d}.tar", "w") as tar:
            for i, fields in samples.items():
                for name, data in fields.items():
                    member = tarfile.TarInfo(f"{key or f'{shard:05d}'}{i:04d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))

    def array(self, shard: int) -> np.ndarray:
        own = self.indices[shard]
        rows = np.zeros((max(own, default=-1) + 1, self.dim), np.float32)
        for i in own:
            rows[i] = own_row(shard, i, self.dim)
        return rows

    def write_rows(self, shard: int, rows: np.ndarray) -> Path:
        path = self.rows / f"img_emb_{shard:03d}.npy"
        np.save(path, rows, allow_pickle=False)
        return path

    @property
    def keys(self) -> list[str]:
        return [f"{shard:05d}{i:04d}" for shard, own in self.indices.items() for i in own]


@pytest.fixture(scope="session")
def embed() -> type[Embedded]:
    """Return what writes tars and embeddings to a folder."""
    return Embedded


@pytest.fixture(scope="session")
def check_own() -> Callable[..., int]:
    """Return a function that checks that each embedding of a batch is its own sample's."""

    def check(batch: dict[str, Any], field: str = "image_embedding") -> int:
        for key, row in zip(batch["__key__"], batch[field], strict=True):
            want = own_row(int(key[:5]), int(key[5:]), len(row))
            assert (row.float().numpy() == want).all(), (key, row)
        return len(batch["__key__"])

    return check

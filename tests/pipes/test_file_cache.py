"""Images at URLs: fetched once, whole or not at all, by whichever process comes first."""

import http.server
import multiprocessing
import os
import threading
from collections import Counter

import fsspec
import pytest

from penstock.pipes import DataError, ManifestReader, file_cache
from penstock.pipes.file_cache import RemoteFile


@pytest.fixture
def server(tmp_path, make_jpeg):
    """A local HTTP server of images; counts what it is asked for, and misbehaves where told."""
    asked = Counter()
    trouble = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            name = self.path.partition("?")[0].strip("/")
            asked[self.command, name] += 1
            status = trouble.get(name, 200)
            if isinstance(status, list):
                status = status.pop(0) if status else 200
            number = name.partition(".")[0]
            data = make_jpeg(40, 60, int(number)) if number.isdigit() else b""
            self.send_response(status if data or status != 200 else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[: len(data) // 2] if status == 206 else data)

        def log_message(self, *args):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}", asked, trouble
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr("penstock.pipes.file_cache.time.sleep", lambda seconds: None)


def gets(asked):
    return {name: n for (command, name), n in asked.items() if command == "GET"}


def test_a_file_is_fetched_once(server, make_jpeg):
    url, asked, _ = server
    for _ in range(2):
        assert RemoteFile(f"{url}/1.jpg?size=9").read() == make_jpeg(40, 60, 1)
    assert gets(asked) == {"1.jpg": 1}
    (name,) = os.listdir(os.path.dirname(RemoteFile(f"{url}/1.jpg?size=9").local()))
    assert not name.endswith(".part")


def test_a_passing_fault_is_tried_again(server, make_jpeg):
    url, _, trouble = server
    trouble["1.jpg"] = [503, 500, 429]
    assert RemoteFile(f"{url}/1.jpg").read() == make_jpeg(40, 60, 1)


def test_a_lasting_fault_is_an_error_of_input_and_leaves_nothing(server, tmp_path):
    url, _, trouble = server
    trouble["1.jpg"] = 503
    with pytest.raises(OSError, match=r"/1.jpg cannot be fetched: "):
        RemoteFile(f"{url}/1.jpg", str(tmp_path / "cache")).read()
    assert [files for _, _, files in os.walk(tmp_path / "cache") if files] == []


def test_what_is_not_there_or_refused_is_bad_data(server):
    url, _, trouble = server
    with pytest.raises(DataError, match=r"there is no file at .*/none.jpg"):
        RemoteFile(f"{url}/none.jpg").read()
    trouble["1.jpg"] = 403
    with pytest.raises(DataError, match=r"/1.jpg is refused"):
        RemoteFile(f"{url}/1.jpg").read()


def fetch(url, cache, out):
    out.put(len(RemoteFile(url, cache).read()))


def test_two_processes_fetch_it_once(server, tmp_path):
    url, asked, _ = server
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    workers = [
        context.Process(target=fetch, args=(f"{url}/2.jpg", str(tmp_path), out)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    sizes = {out.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(sizes) == 1
    assert gets(asked) == {"2.jpg": 1}


def test_what_a_killed_process_has_left_is_overwritten(server, tmp_path, make_jpeg):
    url, _, _ = server
    file = RemoteFile(f"{url}/3.jpg", str(tmp_path))
    target = file.local()
    os.rename(target, target + ".part")
    with open(target + ".part", "ab") as part:
        part.write(b"more" * 10_000)
    assert file.read() == make_jpeg(40, 60, 3)
    assert os.listdir(os.path.dirname(target)) == [os.path.basename(target)]


def test_a_manifest_of_urls(server, tmp_path):
    url, asked, _ = server
    rows = "".join(f"{url}/{i}.jpg\tcaption {i}\n" for i in range(4)) + f"{url}/none.jpg\tnone\n"
    (tmp_path / "rows.tsv").write_text(rows)
    reader = ManifestReader(tmp_path / "rows.tsv", shuffle=False)
    pipe = reader.bucket_by_aspect_ratio(64, 2, step=32).decode()
    loader = pipe.loader(2, on_error="skip", quarantine=tmp_path / "q.jsonl", epoch_batches=6)
    keys = Counter(key for batch in loader for key in batch["__key__"])
    loader.close()
    assert keys == {f"{url}/{i}.jpg": 3 for i in range(4)}
    assert {name: n for name, n in gets(asked).items() if name != "none.jpg"} == {
        f"{i}.jpg": 1 for i in range(4)
    }
    assert "there is no file at" in (tmp_path / "q.jsonl").read_text()


def test_a_manifest_that_is_remote_itself(make_jpeg):
    fs = fsspec.filesystem("memory")
    fs.pipe("/set/img/0.jpg", make_jpeg(40, 50, 0))
    fs.pipe("/set/rows.csv", b"path,text\nimg/0.jpg,one\n")
    try:
        (batch,) = ManifestReader("memory://set/rows.csv").batch(1).decode().loader()
        assert batch["caption"] == ["one"]
        assert batch["image"].shape == (1, 3, 40, 50)
        assert batch["__url__"] == ["memory://set/rows.csv#line=2"]
        fs.pipe("/set/rows.csv", b"path,text\nimg/0.jpg,two\n")
        (batch,) = ManifestReader("memory://set/rows.csv").batch(1).decode().loader()
        assert batch["caption"] == ["two"]
        with pytest.raises(FileNotFoundError, match=r"no such manifest: memory://set/no.csv"):
            ManifestReader("memory://set/no.csv")
    finally:
        fs.rm("/set", recursive=True)


def test_the_number_of_tries():
    assert file_cache.TRIES > 1

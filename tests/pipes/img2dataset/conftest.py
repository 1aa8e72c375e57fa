"""Fixtures: photographs on a web server, and the shards that the real img2dataset makes of them."""

import fcntl
import io
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from penstock.pipes.draws import Draws
from penstock.pipes.sample import Ref
from penstock.recipes.photographs import cut_box, find_photographs

ROOT = Path(__file__).parents[3]
ENVIRONMENT = ROOT / ".venv-img2dataset"
ROWS = 84
SHARD = 14
"""Rows of the list of URLs that img2dataset makes one shard of."""

DEAD_SHARD = 4
"""A shard whose images are all gone."""

SPECIAL = {
    3: "missing",
    7: "page",
    10: "disallowed",
    17: "cut off",
    24: "hung up",
    33: "small",
    36: "missing",
    75: "missing",
    8: "moved",
    12: "turned",
    22: "clear",
    29: "grey",
    40: "gif",
    41: "webp",
    45: "uncaptioned",
}
"""Row to what is special about it: these are not there, or no images that img2dataset takes, …"""

FAILS = ("missing", "page", "disallowed", "cut off", "hung up", "small")


@dataclass(frozen=True)
class Page:
    """One row of the list, and what the web server answers.

    Attributes:
        number: The row.
        kind: What is special about it, of `SPECIAL`.
        caption: Its caption; None: it has none.
        body: The image's file.
        pixels: The image as displayed, RGB, uint8 [H, W, 3].
    """

    number: int
    kind: str
    caption: str | None
    body: bytes = field(repr=False)
    pixels: np.ndarray = field(repr=False)

    @property
    def fails(self) -> bool:
        """Whether img2dataset gets no image."""
        return self.kind in FAILS

    @property
    def key(self) -> str:
        """The key that img2dataset gives it: the shard's number, and its place in the shard."""
        return f"{self.number // SHARD:05d}{self.number % SHARD:02d}"


@dataclass(frozen=True)
class Crawl:
    """What img2dataset has made.

    Attributes:
        folder: Where its shards lie.
        pages: All rows, by number.
    """

    folder: Path
    pages: list[Page]

    @property
    def shards(self) -> str:
        """The shards' names, with braces."""
        return f"{{00000..{ROWS // SHARD - 1:05d}}}.tar"

    @property
    def good(self) -> dict[int, Page]:
        """The rows whose images must be in the shards."""
        return {page.number: page for page in self.pages if not page.fails}


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def pages() -> list[Page]:
    """Return all rows: cuts of the photographs, of many shapes, half of them JPEG and half PNG."""
    photographs = [(Image.open(path), words) for path, words in find_photographs().items()]
    assert len(photographs) == 11
    return [make_page(i, *photographs[i % 11]) for i in range(ROWS)]


def make_page(i: int, photograph: Image.Image, words: str) -> Page:
    draws = Draws(0, Ref(0, 0, i))
    kind = "missing" if i // SHARD == DEAD_SHARD else SPECIAL.get(i, "")
    photograph = photograph.convert("RGB")
    cut = photograph.crop(cut_box(photograph.height, photograph.width, draws))
    scale = (24 if kind == "small" else 90 + draws.below(120, "side")) / min(cut.size)
    cut = cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.BOX)
    file, options = ("JPEG", {"quality": 90}) if i % 2 else ("PNG", {})
    if kind == "turned":
        file, options = "JPEG", {"quality": 95, "exif": turned(6)}
    if kind == "clear":
        cut.putalpha(Image.linear_gradient("L").resize(cut.size))
    if kind == "grey":
        cut, file = cut.convert("L"), "PNG"
    if kind in ("gif", "webp"):
        file, options = kind.upper(), {"lossless": True} if kind == "webp" else {}
    body = encode(cut, file, **options)
    with Image.open(io.BytesIO(body)) as image:
        shown = ImageOps.exif_transpose(image).convert("RGBA")
    white = Image.new("RGBA", shown.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, shown).convert("RGB"))
    if kind == "page":
        body = b"<!DOCTYPE html><title>Sign in to see this photograph</title>"
    if kind == "cut off":
        body = body[: len(body) * 2 // 3]
    caption = None if kind == "uncaptioned" else f"number {i}, {words}"
    return Page(i, kind, caption, body, pixels)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


class Handler(BaseHTTPRequestHandler):
    """Serves the rows; of each shard's, those that stand first take the longest."""

    def do_GET(self) -> None:
        number = int(self.path.rpartition("/")[2])
        page = pages()[number]
        time.sleep(0.012 * (SHARD - number % SHARD))
        if page.kind == "hung up":
            self.close_connection = True
        elif page.kind == "moved" and self.path.startswith("/old/"):
            self.answer(302, b"", Location=f"/new/{number}")
        elif page.kind == "missing":
            self.answer(404, b"")
        elif page.kind == "disallowed":
            self.answer(200, page.body, **{"X-Robots-Tag": "noai"})
        else:
            self.answer(200, page.body)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web_server() -> Iterator[str]:
    """Serve the rows on loopback; yield the URL that they lie under."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/old"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def find_python() -> str:
    """Return the Python that has img2dataset; skip the test where there is none."""
    made, wanted = ENVIRONMENT / "requirements.txt", Path(__file__).with_name("requirements.txt")
    if not made.is_file() or made.read_bytes() != wanted.read_bytes():
        pytest.skip(
            f"img2dataset has an environment of its own, {ENVIRONMENT.name}; make test makes it"
        )
    return str(ENVIRONMENT / "bin" / "python")


def run_img2dataset(python: str, folder: Path) -> None:
    """Have img2dataset fetch all rows into shards."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with web_server() as url:
        rows = {
            "URL": [f"{url}/{page.number}" for page in pages()],
            "TEXT": [page.caption for page in pages()],
            "number": [page.number for page in pages()],
            "similarity": [0.25 + page.number / 1000 for page in pages()],
        }
        parquet.write_table(pa.table(rows), folder / "list.parquet")
        options = {
            "url_list": str(folder / "list.parquet"),
            "input_format": "parquet",
            "url_col": "URL",
            "caption_col": "TEXT",
            "save_additional_columns": ["number", "similarity"],
            "output_format": "webdataset",
            "output_folder": str(folder / "shards"),
            "number_sample_per_shard": SHARD,
            "processes_count": 2,
            "thread_count": 8,
            "resize_mode": "no",
            "skip_reencode": True,  # a JPEG is kept as it is
            "min_image_size": 32,
        }
        run = subprocess.run(
            [python, "-I", str(Path(__file__).with_name("crawl.py")), json.dumps(options)],
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "no_proxy": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
    assert run.returncode == 0, run.stdout


@pytest.fixture(scope="session")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Crawl:
    """What img2dataset made of the web server's pages, once for all processes of the tests."""
    python = find_python()
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "img2dataset"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            run_img2dataset(python, folder)
            (folder / "done").touch()
    return Crawl(folder / "shards", pages())

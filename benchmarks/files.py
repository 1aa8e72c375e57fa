"""What images at URLs cost: files fetched at once against one by one, and requests for each image.

    python benchmarks/files.py

An http server in a process of its own answers each request after 20 ms; images have 512 x 512
pixels. One worker reads a manifest of their URLs, each time with an empty cache.
"""

import http.server
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from _result import save

from penstock.pipes import ManifestReader, Pipe, ahead
from penstock.pipes.file_cache import FileCache
from penstock.pipes.file_room import FileRoom
from penstock.pipes.remote import hash_name

IMAGES, SIDE, BATCH, ROUNDS = 384, 512, 32, 3
LATENCY = 0.02
AT_ONCE = (0, 4, 8, 16, 32)  # 0: each when it is read


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    images: ClassVar[list[bytes]] = []

    def do_GET(self) -> None:
        time.sleep(LATENCY)
        number = int(urlsplit(self.path).path.strip("/").partition(".")[0])
        data = self.images[number % len(self.images)]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        sys.stderr.write(f"{self.command}\n")


def serve(folder: str) -> None:
    """Be the http server; each request is a line on stderr."""
    Handler.images = [path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def write_images(folder: Path) -> float:
    """Write JPEGs of photographs; return their mean size in KB."""
    import numpy as np
    from PIL import Image
    from skimage import data as photographs

    sizes = []
    for name in ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina"):
        file = io.BytesIO()
        image = Image.fromarray(np.asarray(getattr(photographs, name)())).convert("RGB")
        image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
        (folder / f"{name}.jpg").write_bytes(file.getvalue())
        sizes.append(len(file.getvalue()))
    return statistics.mean(sizes) / 1e3


@contextmanager
def empty_cache() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="penstock-bench-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def rate(make: Callable[[str], Pipe], cache: str) -> float:
    """Return the images per second of a pass with one worker, from the first batch on."""
    loader = make(cache).loader(1, epoch_batches=IMAGES // BATCH)
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    taken = time.perf_counter() - start
    loader.close()
    return count * BATCH / taken


def rates(make: Callable[[str], Pipe]) -> dict[str, Any]:
    """Compare so many files at once in turns, and a second pass over the files in the cache."""
    found: dict[str, list[float]] = {f"at_once_{n}": [] for n in AT_ONCE}
    found["cached"] = []
    for _ in range(ROUNDS):
        for n in AT_ONCE:
            with empty_cache() as cache:
                ahead.FILES_AT_ONCE = n  # workers are forked with it
                found[f"at_once_{n}"].append(rate(make, cache))
                if n == AT_ONCE[-1]:
                    found["cached"].append(rate(make, cache))
    return {
        **{name: [round(x, 1) for x in several] for name, several in found.items()},
        "16_to_one_by_one": round(
            statistics.median(found["at_once_16"]) / statistics.median(found["at_once_0"]), 2
        ),
    }


def room() -> dict[str, float]:
    """Measure what keeping a file costs, and what a scan of many costs."""
    with empty_cache() as folder:
        files = FileCache(folder, 1 << 40)
        keeper = FileRoom(files.folder, files.limit)
        names = [hash_name(str(i)) for i in range(200_000)]
        for name in names:
            path = Path(files.folder, name[:2], name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        keeper.scan()
        start = time.perf_counter()
        keeper.scan()
        scan = time.perf_counter() - start
        with open(Path(folder, "file"), "wb") as file:
            keeper.write(file.fileno(), b"x", "a file")
            start = time.perf_counter()
            for _ in range(2000):
                keeper.write(file.fileno(), b"x", "a file")
            count = (time.perf_counter() - start) / 2000
    return {
        "scan_us_per_file": round(scan / len(names) * 1e6, 2),
        "count_and_write_us": round(count * 1e6, 1),
    }


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        folder = Path(name)
        size = write_images(folder)
        log = folder / "log"
        server = subprocess.Popen(
            [sys.executable, __file__, "--serve", name],
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        rows = folder / "rows.csv"
        rows.write_text("image\n" + "".join(f"{url}/{i}.jpg\n" for i in range(IMAGES)))

        def batches(cache: str) -> Pipe:
            return ManifestReader(rows, caption=(), cache=cache).batch(BATCH).decode(256)

        def buckets(cache: str) -> Pipe:
            reader = ManifestReader(rows, caption=(), cache=cache)
            return reader.bucket_by_aspect_ratio(256, BATCH).decode()

        try:
            with empty_cache() as cache:
                before = len(log.read_text().split())
                rate(batches, cache)
                made = len(log.read_text().split()) - before
            figures = {
                "image_kb": round(size, 1),
                "latency_ms": LATENCY * 1e3,
                "requests_per_image": made / IMAGES,
                "batches_images_s": rates(batches),
                "buckets_images_s": rates(buckets),
                "room": room(),
            }
        finally:
            server.terminate()
            server.wait()
        save("files", figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main()

"""What streaming from S3 costs: speed against local shards, CPU, the first batch, requests.

    python benchmarks/remote.py

moto's S3 server runs in a process of its own on this machine, so that with one worker decoding the
other core is the server's. Shards hold the JPEGs of one megapixel that photographs in scikit-image
and scikit-learn make.
"""

import collections
import io
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from _result import save

from penstock.pipes import Pipe, ShardLister
from penstock.pipes.remote import Remote
from penstock.pipes.shard_cache import ShardCache

SHARDS, IMAGES, SIDE, BATCH, ROUNDS = 6, 160, 1024, 32, 3


def serve() -> None:
    """Be the S3 server; each request is a line on stderr."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(*server.get_host_and_port(), flush=True)
    sys.stdin.read()


class Server:
    """The S3 server's process."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )
        assert self.process.stdout is not None
        host, port = self.process.stdout.readline().split()
        self.options: dict[str, Any] = {
            "key": "a",
            "secret": "b",
            "client_kwargs": {"endpoint_url": f"http://{host}:{port}"},
        }

    def requests(self) -> collections.Counter[tuple[str, str]]:
        """Return how often each (method, object) was asked for."""
        found = re.findall(r"(GET|HEAD) /bench/(\S+\.tar) HTTP", self.log.read_text())
        return collections.Counter(found)


def write_shards(folder: Path) -> list[Path]:
    import numpy as np
    from PIL import Image
    from skimage import data as photographs
    from sklearn.datasets import load_sample_image

    names = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
    arrays = [getattr(photographs, name)() for name in names]
    arrays += [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    jpegs = []
    for array in arrays:
        file = io.BytesIO()
        image = Image.fromarray(np.asarray(array)).convert("RGB")
        image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(file, "JPEG", quality=92)
        jpegs.append(file.getvalue())
    paths = []
    for i in range(SHARDS):
        paths.append(folder / f"{i:05d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for k in range(IMAGES):
                for name, data in (("jpg", jpegs[(i + k) % len(jpegs)]), ("txt", b"a photograph")):
                    member = tarfile.TarInfo(f"{k:06d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return paths


def graph(urls: str, **how: Any) -> Pipe:
    source = ShardLister(urls, seed=1, **how).read_tar().shuffle(IMAGES)
    return source.batch(BATCH).lanes(1, by="shards").decode(256)


@contextmanager
def empty_cache() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="penstock-bench-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def rate(urls: str, cache: str, **how: Any) -> tuple[float, float, float]:
    """Return images per second of a pass, seconds to the first batch, CPU seconds of the worker."""
    count = SHARDS * IMAGES // BATCH
    loader = graph(urls, cache=cache, **how).loader(1, epoch_batches=count)
    start = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter()
    for _ in range(count - 1):
        next(batches)
    end = time.perf_counter()
    (worker,) = [p for p in psutil.Process().children() if p.name() != "" and _is_worker(p)]
    times = worker.cpu_times()
    loader.close()
    return (count - 1) * BATCH / (end - first), first - start, times.user + times.system


def _is_worker(process: psutil.Process) -> bool:
    return "--serve" not in process.cmdline()


def speed(local: str, remote: str, server: Server) -> dict[str, Any]:
    """Compare passes over local shards with first passes over remote ones, in turns."""
    found: dict[str, list[tuple[float, float, float]]] = {"local": [], "streamed": []}
    for _ in range(ROUNDS):
        with empty_cache() as cache:
            found["local"].append(rate(local, cache))
        with empty_cache() as cache:
            found["streamed"].append(rate(remote, cache, storage_options=server.options))
    rates = {name: [r for r, _, _ in runs] for name, runs in found.items()}
    return {
        **{f"{n}_images_s": [round(x, 1) for x in r] for n, r in rates.items()},
        "streamed_to_local": round(
            statistics.median(rates["streamed"]) / statistics.median(rates["local"]), 3
        ),
        "best_to_best": round(max(rates["streamed"]) / max(rates["local"]), 3),
        **{
            f"{n}_first_batch_s": round(statistics.median(f for _, f, _ in runs), 2)
            for n, runs in found.items()
        },
        **{
            f"{n}_worker_cpu_s": round(statistics.median(c for _, _, c in runs), 2)
            for n, runs in found.items()
        },
    }


def fetching(server: Server, size: int) -> dict[str, float]:
    """Measure fetches of whole shards alone: wall time and this process's CPU time."""
    cpu, wall = [], []
    for i in range(SHARDS):
        with empty_cache() as folder:
            cache = ShardCache(folder, None, Remote(server.options))
            began, start = time.process_time(), time.perf_counter()
            cache.hold(f"s3://bench/{i:05d}.tar").close()
            cpu.append((time.process_time() - began) * 1e3 / (size / 1e6))
            wall.append(time.perf_counter() - start)
    return {
        "client_cpu_ms_per_mb": round(statistics.median(cpu), 2),
        "least_client_cpu_ms_per_mb": round(min(cpu), 2),
        "mb_per_s": round(size / 1e6 / statistics.median(wall), 1),
        "shard_s": round(statistics.median(wall), 2),
        "first_shard_s": round(statistics.median(_first_shard(server) for _ in range(5)), 2),
    }


def _first_shard(server: Server) -> float:
    """Return the seconds in which a new process has its first shard: connections included."""
    ours, theirs = multiprocessing.Pipe()
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        with empty_cache() as folder:
            ShardCache(folder, None, Remote(server.options)).hold("s3://bench/00000.tar").close()
            theirs.send(time.perf_counter() - start)
        os._exit(0)
    os.waitpid(pid, 0)
    seconds: float = ours.recv()
    return seconds


def requests(remote: str, server: Server) -> dict[str, float]:
    """Count the requests of a pass by two workers with an empty cache."""
    before = server.requests()
    with empty_cache() as cache:
        pipe = graph(remote, cache=cache, storage_options=server.options)
        loader = pipe.loader(2, epoch_batches=SHARDS * IMAGES // BATCH)
        for _ in loader:
            pass
        loader.close()
    made = server.requests()
    made.subtract(before)
    methods = collections.Counter[str]()
    for (method, _), count in made.items():
        methods[method] += count
    ranges = -(-_size(server) // (16 << 20))
    return {
        "gets_per_shard": round(methods["GET"] / SHARDS, 2),
        "ranges_of_a_shard": ranges,
        "heads_per_shard": round(methods["HEAD"] / SHARDS, 2),
    }


def _size(server: Server) -> int:
    return Remote(server.options).info("s3://bench/00000.tar").version.size


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        folder = Path(name)
        paths = write_shards(folder)
        server = Server(folder / "requests.log")
        fs, _ = Remote(server.options).filesystem("s3://bench/x")
        fs.mkdir("bench")
        for path in paths:
            fs.pipe_file(f"bench/{path.name}", path.read_bytes(), chunksize=1 << 30)
        names = f"{{{0:05d}..{SHARDS - 1:05d}}}.tar"
        local, remote = str(folder / names), f"s3://bench/{names}"
        size = os.path.getsize(paths[0])
        figures = {
            "shard_mb": round(size / 1e6, 1),
            "fetching": fetching(server, size),
            "one_worker": speed(local, remote, server),
            "requests_of_a_pass": requests(remote, server),
        }
        save("remote", figures)
        assert server.process.stdin is not None
        server.process.stdin.close()
        server.process.wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        main()

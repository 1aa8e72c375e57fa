"""Reading cached latents, against reading the same bytes with safetensors alone.

    python benchmarks/latents.py

Entries such as FLUX.1's VAE gives (mean and log-variance, bfloat16, 16 channels) of 1024 x 1024 and
of 512 x 512 pixels, in batches, in this process and in two workers: by the loader from the store's
shards, and by ``safetensors.torch.load_file`` (a file for each entry), ``safe_open`` and
``safetensors.torch.load`` (of the file's bytes), with torch's own DataLoader and its collation. All
files are in the page cache, and all orders are random. Each kind has a process of its own, since
what malloc gives back to the system, and must get anew, depends on all that went before; with one
thread, as a worker has. Each round runs every kind, one right after the other, and is compared with
itself.
"""

import hashlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from _result import save
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from torch.utils.data import DataLoader, Dataset

from penstock.pipes import EntryStore, ShardLister
from penstock.transforms.entry import entry_name

SIZES = {"1024x1024": (128, 128, 512), "512x512": (64, 64, 1024)}
"""Height and width of the latents, and how many entries."""

BATCH, ROUNDS = 16, 9
SPAWN = multiprocessing.get_context("spawn")

Rows = dict[str, torch.Tensor]


def by_load_file(path: str) -> Rows:
    return load_file(path)


def by_safe_open(path: str) -> Rows:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def by_load(path: str) -> Rows:
    with open(path, "rb") as file:
        return load(file.read())


READERS = {"load_file": by_load_file, "safe_open": by_safe_open, "load": by_load}


class Files(Dataset[Rows]):
    """One file an entry, read by one of the functions above."""

    def __init__(self, paths: Sequence[str], read: Callable[[str], Rows]) -> None:
        self.paths = paths
        self.read = read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Rows:
        return self.read(self.paths[i])


def write_entries(folder: Path, height: int, width: int, count: int) -> list[str]:
    """Write the same tensors to a store, and to a file for each; return the files."""
    generator = torch.Generator().manual_seed(0)
    (folder / "files").mkdir()
    paths = []
    with EntryStore(folder / "store") as store:
        for i in range(count):
            tensors = {
                name: torch.randn(16, height, width, generator=generator).bfloat16()
                for name in ("mean", "logvar")
            }
            about = {"field": "latents", "target_size": [8 * height, 8 * width]}
            store.write(entry_name({"i": i}), tensors, about, str(i))
            path = str(folder / "files" / f"{i:06d}.safetensors")
            save_file(
                tensors, path, {"field": "latents", "target_size": f"{8 * height}x{8 * width}"}
            )
            paths.append(path)
    return paths


def epochs(kind: str, folder: Path, paths: list[str], workers: int) -> Iterable[Rows]:
    """Return what gives one epoch of batches each time that it is iterated over."""
    if kind == "loader":
        reader = ShardLister(str(folder / "store" / "*.tar"), seed=1).read_tar()
        pipe = reader.select("safetensors").shuffle(len(paths)).batch(BATCH).decode()
        return pipe.loader(num_workers=workers, epoch_batches=len(paths) // BATCH)
    return DataLoader(
        Files(paths, READERS[kind]),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def serve(kind: str, folder: Path, paths: list[str], workers: int, line: Any) -> None:
    """Answer first with a hash of each entry that an epoch gave, then with an epoch's seconds."""
    torch.set_num_threads(1)
    kept = epochs(kind, folder, paths, workers)
    line.send(sorted(hashed(kept)))
    while line.recv():
        start = time.perf_counter()
        for batch in kept:
            del batch
        line.send(time.perf_counter() - start)


def hashed(kept: Iterable[Rows]) -> Iterator[bytes]:
    for batch in kept:
        rows = batch.get("latents", batch)
        for mean, logvar in zip(rows["mean"], rows["logvar"], strict=True):
            both = torch.stack((mean, logvar)).view(torch.uint8).numpy().tobytes()
            yield hashlib.blake2b(both).digest()


def throughput(folder: Path, paths: list[str], workers: int) -> dict[str, Any]:
    """Return entries per second of each kind, and the loader's rate as a share of the others'."""
    kinds = ["loader", *READERS]
    lines, crew = {}, []
    for kind in kinds:
        lines[kind], theirs = SPAWN.Pipe()
        crew.append(SPAWN.Process(target=serve, args=(kind, folder, paths, workers, theirs)))
        crew[-1].start()
    seen = [lines[kind].recv() for kind in kinds]
    if any(other != seen[0] for other in seen) or len(set(seen[0])) != len(paths):
        raise RuntimeError("the kinds do not read the same entries")
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in range(ROUNDS + 1):
        for kind in kinds[i % len(kinds) :] + kinds[: i % len(kinds)]:
            lines[kind].send(True)
            seconds = lines[kind].recv()
            if i:  # the first round is for the processes' memory to settle
                taken[kind].append(seconds)
    for kind, process in zip(kinds, crew, strict=True):
        lines[kind].send(False)
        process.join()
    ours = taken["loader"]
    return {
        "entries_per_s": {k: round(len(paths) / statistics.median(t), 1) for k, t in taken.items()},
        "loader_to_others_percent": {
            kind: round(100 * statistics.median(o / m for o, m in zip(t, ours, strict=True)), 1)
            for kind, t in taken.items()
            if kind != "loader"
        },
    }


def main() -> None:
    figures: dict[str, Any] = {}
    for size, (height, width, count) in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            folder = Path(name)
            paths = write_entries(folder, height, width, count)
            bytes_each = Path(paths[0]).stat().st_size
            figures[size] = {"bytes_each": bytes_each, "entries": count, "batch": BATCH} | {
                f"workers_{workers}": throughput(folder, paths, workers) for workers in (0, 2)
            }
    save("latents", figures)


if __name__ == "__main__":
    main()

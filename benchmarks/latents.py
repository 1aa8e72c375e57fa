"""Reading cached latents, against reading the same bytes with safetensors alone.

    python benchmarks/latents.py

Entries such as FLUX.1's VAE gives (mean and log-variance, bfloat16, 16 channels) of 1024 x 1024 and
of 512 x 512 pixels, in batches, in this process and in two workers: by the loader from the store's
shards, and by ``safetensors.torch.load_file`` (a file for each entry), ``safe_open`` and
``safetensors.torch.load``, with torch's own DataLoader and its collation. All files are in the
page cache, and all orders are random. Each round runs every kind, one right after the other, and is
compared with itself.
"""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from _result import save
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from torch.utils.data import DataLoader, Dataset

from penstock.pipes import EntryStore, ShardLister
from penstock.transforms.entry import entry_name

SIZES = {"1024x1024": (128, 128, 256), "512x512": (64, 64, 1024)}
"""Height and width of the latents, and how many entries."""

BATCH, ROUNDS = 16, 7

Rows = dict[str, torch.Tensor]
Kinds = dict[str, Callable[[], Iterator[Rows]]]


def by_load_file(path: str) -> Rows:
    return load_file(path)


def by_safe_open(path: str) -> Rows:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def by_load(path: str) -> Rows:
    with open(path, "rb") as file:
        return load(file.read())


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


def batches(
    folder: Path, paths: list[str], workers: int
) -> dict[str, Callable[[], Iterator[Rows]]]:
    """Return what gives one epoch of batches, by kind."""
    count = len(paths) // BATCH
    reader = ShardLister(str(folder / "store" / "*.tar"), seed=1).read_tar()
    pipe = reader.select("safetensors").shuffle(len(paths)).batch(BATCH).decode()
    loader = pipe.loader(num_workers=workers, epoch_batches=count)
    kinds: Kinds = {"loader": lambda: (batch["latents"] for batch in loader)}
    for read in (by_load_file, by_safe_open, by_load):
        plain = DataLoader(
            Files(paths, read),
            BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        kinds[read.__name__.removeprefix("by_")] = lambda plain=plain: iter(plain)
    return kinds


def same_bytes(kinds: Kinds) -> None:
    """Refuse to compare what is not the same: each kind must give each entry once."""
    seen = {}
    for name, epoch in kinds.items():
        rows = []
        for batch in epoch():
            for mean, logvar in zip(batch["mean"], batch["logvar"], strict=True):
                both = torch.stack((mean, logvar)).view(torch.uint8).numpy().tobytes()
                rows.append(hashlib.blake2b(both).digest())
        seen[name] = sorted(rows)
    first = seen["loader"]
    if len(set(first)) != len(first) or any(other != first for other in seen.values()):
        raise RuntimeError("the kinds do not read the same entries")


def throughput(folder: Path, paths: list[str], workers: int) -> dict[str, Any]:
    """Return entries per second of each kind, and the loader's rate as a share of the others'."""
    kinds = batches(folder, paths, workers)
    same_bytes(kinds)
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    names = list(kinds)
    for i in range(ROUNDS):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            for batch in kinds[name]():
                del batch
            taken[name].append(time.perf_counter() - start)
    count = len(paths) // BATCH * BATCH
    return {
        "entries_per_s": {n: round(count / statistics.median(t), 1) for n, t in taken.items()},
        "loader_to_others_percent": {
            n: round(
                100 * statistics.median(o / m for o, m in zip(t, taken["loader"], strict=True)), 1
            )
            for n, t in taken.items()
            if n != "loader"
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

"""What a join costs: throughput with and without it, and the order half's time a sample.

    python benchmarks/join.py

Photographs of one megapixel, decoded to 256 px in this process, without a join, with rows of 768
float16 from files beside the tars, and with a field of other shards by key; and the same with
photographs that were stored at 256 px already. Each round runs every kind, one right after the
other, and is compared with itself.
"""

import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from _result import save
from PIL import Image

from penstock.pipes import Pipe, ShardLister
from penstock.pipes.graph import Graph

SHARDS, IMAGES, DIM, BATCH, ROUNDS = 4, 128, 768, 32, 11
ORDER_SHARDS, ORDER_SAMPLES = 4, 10_000


def photographs(side: int) -> list[bytes]:
    """Return JPEGs of ``side`` pixels."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    names = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
    arrays = [getattr(data, name)() for name in names]
    arrays += [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    jpegs = []
    for array in arrays:
        file = io.BytesIO()
        image = Image.fromarray(np.asarray(array)).convert("RGB")
        image.resize((side, side), Image.Resampling.LANCZOS).save(file, "JPEG", quality=92)
        jpegs.append(file.getvalue())
    return jpegs


def write_tar(path: Path, fields: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in fields:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_set(folder: Path, jpegs: list[bytes], shards: int, images: int) -> None:
    """Write tars, rows in both orders of elements, and the same arrays in tars of their own."""
    rng = np.random.default_rng(0)
    for name in ("rows", "fortran"):
        (folder / name).mkdir(parents=True)
    for s in range(shards):
        keys = [f"{s:05d}{i:04d}" for i in range(images)]
        pictures = [(f"{k}.jpg", jpegs[(s + i) % len(jpegs)]) for i, k in enumerate(keys)]
        write_tar(folder / "tars" / f"{s:05d}.tar", pictures)
        rows = rng.standard_normal((images, DIM)).astype(np.float16)
        np.save(folder / "rows" / f"img_emb_{s:04d}.npy", rows)
        np.save(folder / "fortran" / f"img_emb_{s:04d}.npy", np.asfortranarray(rows))
        arrays = []
        for key, row in zip(keys, rows, strict=True):
            file = io.BytesIO()
            np.save(file, row)
            arrays.append((f"{key}.npy", file.getvalue()))
        order = rng.permutation(images)
        write_tar(folder / "other" / f"{s:05d}.tar", [arrays[i] for i in order])


def kinds(folder: Path) -> dict[str, Pipe]:
    reader = ShardLister(str(folder / "tars"), seed=1).read_tar()
    other = ShardLister(str(folder / "other")).read_tar()
    return {
        "none": reader,
        "rows": reader.join_embeddings(folder / "rows"),
        "rows_skip": reader.join_embeddings(folder / "rows", on_missing="skip"),
        "rows_fortran": reader.join_embeddings(folder / "fortran"),
        "by_key": reader.join(other),
    }


def throughput(folder: Path) -> dict[str, Any]:
    """Return images per CPU second of each kind, and its cost to that of no join."""
    count = SHARDS * IMAGES // BATCH
    pipes = {
        name: pipe.shuffle(IMAGES).batch(BATCH).decode(256) for name, pipe in kinds(folder).items()
    }
    loaders = {name: p.loader(epoch_batches=count) for name, p in pipes.items()}
    for loader in loaders.values():
        list(loader)  # indexes, headers and the files themselves are in memory from here on
    taken: dict[str, list[float]] = {name: [] for name in loaders}
    for i in range(ROUNDS):
        names = list(loaders)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.process_time()
            for _ in loaders[name]:
                pass
            taken[name].append(time.process_time() - start)
    costs = {
        name: [t / none - 1 for t, none in zip(times, taken["none"], strict=True)]
        for name, times in taken.items()
    }
    return {
        "images_per_cpu_s": {
            n: round(count * BATCH / statistics.median(t), 1) for n, t in taken.items()
        },
        "cost_percent": {
            n: round(100 * statistics.median(c), 2) for n, c in costs.items() if n != "none"
        },
        "cost_of_least_times_percent": {
            n: round(100 * (min(t) / min(taken["none"]) - 1), 2)
            for n, t in taken.items()
            if n != "none"
        },
    }


def order_half(folder: Path) -> dict[str, float]:
    """Return the order half's µs a sample, of CPU time, with a window behind the join."""
    found = {}
    samples = ORDER_SHARDS * ORDER_SAMPLES
    for name, pipe in kinds(folder).items():
        if name == "rows_fortran":
            continue
        order = Graph.of(pipe.shuffle(1000)).order()
        taken = []
        for i in range(6):
            start = time.process_time()
            for _ in range(samples):
                order.next()
            if i:  # the first pass opens the shards
                taken.append((time.process_time() - start) / samples * 1e6)
        found[f"{name}_us"] = round(statistics.median(taken), 2)
    return found


def making(folder: Path) -> dict[str, float]:
    """Return the µs in which a sample is made from its ref, and its embedding loaded."""
    found = {}
    for name, pipe in kinds(folder).items():
        order = Graph.of(pipe).order()
        refs = [order.next().ref for _ in range(ORDER_SHARDS * ORDER_SAMPLES)]
        refs = refs[:: 1 if name != "rows_fortran" else 100]
        for ref in refs[:: len(refs) // 8]:
            order.resolve(ref)
        start = time.process_time()
        samples = [order.resolve(ref) for ref in refs]
        made = time.process_time()
        found[f"{name}_us"] = round((made - start) / len(refs) * 1e6, 2)
        if name.startswith("rows"):
            for sample in samples:
                sample["image_embedding"].value()
            found[f"{name}_load_us"] = round((time.process_time() - made) / len(refs) * 1e6, 2)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        folder = Path(name)
        write_set(folder / "large", photographs(1024), SHARDS, IMAGES)
        write_set(folder / "small", photographs(256), SHARDS, IMAGES)
        write_set(folder / "order", [b"x"], ORDER_SHARDS, ORDER_SAMPLES)
        figures = {
            "one_megapixel_to_256": throughput(folder / "large"),
            "stored_at_256": throughput(folder / "small"),
            "order_half": order_half(folder / "order"),
            "making_a_sample": making(folder / "order"),
        }
        save("join", figures)


if __name__ == "__main__":
    main()

"""EmbeddingReader against numpy.load with mmap, in the same run, and its samples in a loader.

    python benchmarks/embedding_reader.py

Four files of 50,000 embeddings of 768 numbers, in memory (the page cache) after the first run. Both
give arrays with memory of their own, batch by batch; runs alternate. The reader is made once, as in
a training run: it has then read the headers. CPU time is what is compared: other processes of the
machine do not count.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from _result import save

from penstock.pipes import EmbeddingReader

FILES, ROWS, DIMENSION, BATCH, REPEATS = 4, 50_000, 768, 1024, 11
LOADED = 40_000
"""Rows that are taken from a loader."""


def write(folder: Path, dtype: str) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(FILES):
        rows = rng.standard_normal((ROWS, DIMENSION), np.float32).astype(dtype)
        np.save(folder / f"img_emb_{number}.npy", rows)


def mapped(folder: Path, dtype: str | None) -> int:
    """Read by numpy alone; return the number of rows."""
    count = 0
    for path in sorted(folder.glob("*.npy")):
        rows = np.load(path, mmap_mode="r")
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            batch = np.array(part) if dtype is None else part.astype(dtype)
            count += len(batch)
    return count


def read(reader: EmbeddingReader) -> int:
    return sum(len(batch["embedding"]) for batch in reader.read(BATCH))


def called(reader: EmbeddingReader) -> int:
    return sum(len(rows) for rows, _ in reader(BATCH, show_progress=False))


def compare(folder: Path, ours: Callable[[], int], numpy: Callable[[], int]) -> dict[str, float]:
    """Return MB/s of what is stored (median run, by the clock) and the ratio of CPU times."""
    size = sum(path.stat().st_size for path in folder.glob("*.npy")) / 1e6
    times: dict[Callable[[], int], list[tuple[float, float]]] = {numpy: [], ours: []}
    for _ in range(REPEATS):
        for run, taken in times.items():
            wall, cpu = time.perf_counter(), time.process_time()
            assert run() == FILES * ROWS
            taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (
        {run: statistics.median(t[i] for t in taken) for run, taken in times.items()}
        for i in (0, 1)
    )
    return {
        "numpy_mb_s": round(size / wall[numpy]),
        "ours_mb_s": round(size / wall[ours]),
        "ours_to_numpy": round(cpu[numpy] / cpu[ours], 2),
    }


def loaded(folder: Path, window: int) -> float:
    """Return the CPU microseconds of a shuffled row in a loader without workers."""
    batches = iter(EmbeddingReader(folder).shuffle(window).batch(BATCH).load().loader())
    next(batches)
    taken = []
    for _ in range(3):
        start, rows = time.process_time(), 0
        while rows < LOADED:
            rows += len(next(batches)["embedding"])
        taken.append((time.process_time() - start) / rows * 1e6)
    return round(statistics.median(taken), 1)


def main() -> None:
    figures: dict[str, object] = {"batch": BATCH, "dimension": DIMENSION}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "float16"):
            path = Path(folder) / dtype
            write(path, dtype)
            figures[f"read_{dtype}"] = compare(
                path, partial(read, EmbeddingReader(path)), partial(mapped, path, None)
            )
        figures["call_float16_as_float32"] = compare(
            path, partial(called, EmbeddingReader(path)), partial(mapped, path, "float32")
        )
        figures["shuffled_row_us"] = loaded(path, 100_000)
    save("embedding_reader", figures)


if __name__ == "__main__":
    main()

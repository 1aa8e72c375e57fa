"""What the order half costs: time a sample, a lane's state, resuming, a window's memory.

    python benchmarks/order_half.py

A million samples without data in 100 shards, a window of 100,000, 20 buckets of 32.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
from _fake import FakeReader
from _result import save

from penstock.pipes import Pipe
from penstock.pipes.graph import Graph
from penstock.pipes.order import Order

SHARDS, SHARD_SIZE, WINDOW, BATCH = 100, 10_000, 100_000, 32
SIZES = [(512 + 64 * i, 512 + 64 * (19 - i)) for i in range(20)]


def pipe(window: int = WINDOW) -> Pipe:
    source = FakeReader(SHARDS, SHARD_SIZE).shuffle(window)
    return source.bucket_by_aspect_ratio(batch_size=BATCH, sizes=SIZES).load()


def order(window: int = WINDOW) -> Order[Any]:
    return Graph.of(pipe(window)).order(0)


def walk(lane: Order[Any], samples: int) -> int:
    seen = 0
    while seen < samples:
        seen += len(lane.next().refs)
    return seen


def times(run: Callable[[], object], repeats: int) -> list[float]:
    """Return CPU seconds of each run: other processes of the machine do not count."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return taken


def per_sample() -> dict[str, float]:
    lane = order()
    walk(lane, 150_000)  # the window is full from here on
    taken = [t / 50_000 * 1e6 for t in times(lambda: walk(lane, 50_000), 7)]
    return {"median_us": round(statistics.median(taken), 2), "least_us": round(min(taken), 2)}


def state() -> dict[str, float]:
    lane = order()
    walk(lane, 300_000)
    bins = lane.bins  # type: ignore[attr-defined]
    text = json.dumps(lane.state(), separators=(",", ":"))
    half = {"refs": sum(len(b) for b in bins) // 3, "bytes": len(text), **pack(lane)}
    # The worst case: every bucket lacks one sample.
    for i, held in enumerate(bins):
        while len(held) < 3 * (BATCH - 1):
            held.extend(max(bins, key=len)[3 * (i % 3) : 3 * (i % 3) + 3])
    text = json.dumps(lane.state(), separators=(",", ":"))
    full = {"refs": sum(len(b) for b in bins) // 3, "bytes": len(text), **pack(lane)}
    return {"half_full": half, "full": full}  # type: ignore[dict-item]


def pack(lane: Order[Any]) -> dict[str, float]:
    taken = times(lambda: json.dumps(lane.state(), separators=(",", ":")), 500)
    return {
        "pack_median_us": round(statistics.median(taken) * 1e6, 1),
        "pack_least_us": round(min(taken) * 1e6, 1),
    }


def resume() -> dict[str, float]:
    """Time from a new loader and a state to the next batch, at 1 % and at 99 % of a pass."""
    loader = pipe().loader()
    batches = iter(loader)
    states = {}
    for percent in (1, 99):
        while loader.position * BATCH < SHARDS * SHARD_SIZE * percent / 100:
            next(batches)
        states[percent] = loader.state_dict()

    def run(percent: int) -> None:
        other = pipe().loader()
        other.load_state_dict(states[percent])
        next(iter(other))

    at = {p: statistics.median(times(lambda p=p: run(p), 5)) for p in states}  # type: ignore[misc]
    return {f"at_{p}_percent_s": round(t, 3) for p, t in at.items()}


def memory() -> dict[str, float]:
    """Compare processes that walked 300,000 samples with and without a window."""
    held = {}
    for window in (1, WINDOW):
        done = subprocess.run(
            [sys.executable, __file__, "--rss", str(window)],
            capture_output=True,
            text=True,
            check=True,
        )
        held[window] = int(done.stdout)
    return {"window_mb": round((held[WINDOW] - held[1]) / 1e6, 1)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rss"]:
        walk(order(int(sys.argv[2])), 300_000)
        print(psutil.Process().memory_info().rss)
    else:
        figures = {
            "per_sample": per_sample(),
            "state": state(),
            "resume": resume(),
            "memory": memory(),
        }
        save("order_half", figures)

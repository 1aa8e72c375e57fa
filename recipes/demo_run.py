"""A run over shards that saves checkpoints and can be killed: what the demo kills and resumes.

    python -m penstock.recipes.demo_run --url 'shards/*.tar' --out run --until 200
    python -m penstock.recipes.demo_run --url 'shards/*.tar' --out more --until 200 \
        --resume run/checkpoint.json --num_workers 3

It stands in for a training: instead of a step it writes down what it was given, one line of
``log.jsonl`` for each batch, with a hash of every field.
"""

import json
import os
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..pipes import ElasticDataLoader, Pipe, ShardLister
from ..pipes.verify import fingerprints
from ._cli import cli
from .write_file import write_file

LOG, CHECKPOINT = "log.jsonl", "checkpoint.json"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Run a graph from its start, or from a checkpoint, and write down every batch."""

    url: str
    """The shards."""
    out: Path
    """Folder for the log and the checkpoint; made if missing."""
    until: int
    """Global batch at which to stop."""
    resume: Path | None = None
    """Checkpoint to go on from."""
    num_workers: int = 2
    """Worker processes."""
    save_every: int = 20
    """Batches between two checkpoints."""
    kill_at: int | None = None
    """After how many batches the process kills itself with SIGKILL."""
    cache: str | None = None
    """Folder for the shards' indexes."""
    seed: int = 0
    """Seed of the order and of every crop, flip and caption."""
    resolution: int = 256
    """Side in pixels of the square whose area the buckets have."""
    step: int = 32
    """The sides of the buckets are multiples of it, in pixels."""
    batch_size: int = 8
    """Samples per batch."""
    lanes: int = 2
    """Lanes of the order."""


@dataclass(frozen=True)
class Result:
    """What a run did.

    Attributes:
        images: Number of images after the first batch.
        seconds: Time from the first batch to the last.
        epoch_batches: Global batches in an epoch.
    """

    images: int
    seconds: float
    epoch_batches: int


def build(cfg: Config) -> Pipe:
    """Return the graph: the order of the samples first, then the work."""
    return (
        ShardLister(cfg.url, seed=cfg.seed, cache=cfg.cache)
        .read_tar()
        .shuffle(10_000)
        .bucket_by_aspect_ratio(cfg.resolution, cfg.batch_size, step=cfg.step)
        .lanes(cfg.lanes)
        .decode(crop="random", flip=0.5)
        .shuffle_caption(keep=1)
        .drop_caption(0.1)
    )


def run(cfg: Config, see: Callable[[dict[str, Any]], None] | None = None) -> Result:
    """Return what a run did that takes batches until ``cfg.until``.

    Args:
        cfg: What to run.
        see: Called with each batch.
    """
    cfg.out.mkdir(parents=True, exist_ok=True)
    # torch's advice on speed, for machines with fewer cores than workers.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    loader = build(cfg).loader(cfg.num_workers)
    if cfg.resume is not None:
        loader.load_state_dict(json.loads(cfg.resume.read_text(encoding="utf-8")))
    words = f"{cfg.num_workers} workers"
    images, began, ended = 0, 0.0, 0.0
    with (
        (cfg.out / LOG).open("w", encoding="utf-8") as log,
        tqdm(initial=loader.position, total=cfg.until, unit=" batches", desc=words) as bar,
    ):
        while loader.position < cfg.until:  # a `for` ends where the epoch ends
            for batch in loader:
                ended = time.monotonic()
                images += len(batch["image"]) if began else 0
                began = began or ended
                _after(batch, loader, cfg, log)
                if see is not None:
                    see(batch)
                bar.update()
                if loader.position >= cfg.until:
                    break
    loader.close()
    assert loader.epoch_batches is not None  # no filter stands in the graph
    return Result(images, ended - began, loader.epoch_batches)


def _after(batch: dict[str, Any], loader: ElasticDataLoader, cfg: Config, log: Any) -> None:
    """Write the batch down, save a checkpoint where one is due, and die if it is time."""
    line = {"batch": batch["__batch__"], "epoch": loader.epoch, "fields": fingerprints(batch)}
    log.write(json.dumps(line) + "\n")
    log.flush()
    os.fsync(log.fileno())
    if loader.position % cfg.save_every == 0:
        write_file(cfg.out / CHECKPOINT, json.dumps(loader.state_dict()))
    if loader.position == cfg.kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


def main(cfg: Config) -> None:
    """Run, and say where the log is."""
    print(cfg)
    result = run(cfg)
    rate = result.images / result.seconds if result.seconds else 0.0
    print(f"{rate:.0f} images/s; every batch is written down in {cfg.out / LOG}")


if __name__ == "__main__":
    main(cli(Config))

"""See penstock at work: shards, batches, a run that is killed and goes on exactly.

    python -m penstock.recipes.demo --out demo

Makes shards with webdataset's ShardWriter, of photographs that lie in scikit-image's and
scikit-learn's wheels, and of drawn shapes; runs a whole graph over them; runs it again in a process
that kills itself in the middle of an epoch, goes on from its checkpoint with another number of
workers, and compares every batch; writes a contact sheet and the bucket report. Nothing is
downloaded.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..pipes import AspectRatioBucketer, BucketReport, bucket_report
from ..pipes.graph import Graph
from . import demo_run
from ._cli import cli
from .contact_sheet import write_contact_sheet
from .demo_compare import compare
from .demo_run import CHECKPOINT
from .make_shapes import shape_samples, write_shards
from .photographs import photograph_samples
from .write_file import write_file

BATCHES_OF_A_SIZE = 2
"""How many batches of each bucket the contact sheet shows."""

PATIENCE = 15.0
"""Seconds in which the processes of a killed run must be gone."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Make shards, run a graph over them, kill it, resume it, compare, and show what came out."""

    out: Path = Path("demo")
    """Folder for all that is made."""
    photographs: int = 1200
    """Cuts of photographs."""
    shapes: int = 1200
    """Drawn shapes."""
    samples_per_shard: int = 200
    """Samples in each shard."""
    resolution: int = 256
    """Side in pixels of the square whose area the buckets have."""
    batch_size: int = 8
    """Samples per batch."""
    num_workers: int = 2
    """Worker processes of the first runs; the resumed one has one more."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        plan_of(self)


@dataclass(frozen=True)
class Plan:
    """When what happens.

    Attributes:
        until: Batches in all: an epoch and a quarter, so that the resumed run passes its end.
        save_every: Batches between two checkpoints.
        kill_at: After how many batches the run is killed: in mid-epoch, between two checkpoints.
    """

    until: int
    save_every: int
    kill_at: int


def plan_of(cfg: Config) -> Plan:
    """Return the plan for so many samples.

    Raises:
        ValueError: They are too few to be killed among them.
    """
    epoch = (cfg.photographs + cfg.shapes) // cfg.batch_size
    if epoch < 6:
        raise ValueError(
            f"{cfg.photographs} photographs and {cfg.shapes} shapes make {epoch} batches of "
            f"{cfg.batch_size}; the demo needs at least 6, to be killed among them"
        )
    save_every = max(2, epoch // 12)
    kill_at = epoch * 3 // 5 // save_every * save_every + save_every // 2
    return Plan(epoch * 5 // 4, save_every, kill_at)


def main(cfg: Config) -> None:
    """Run the demo; the exit status is 1 where anything differs."""
    print(cfg)
    plan = plan_of(cfg)
    _say(1, f"{cfg.photographs + cfg.shapes:,} captioned pictures as webdataset shards")
    shards = make_shards(cfg)
    plain = demo_run.Config(
        url=str(cfg.out / "shards"),
        out=cfg.out / "uninterrupted",
        cache=str(cfg.out / "cache"),
        until=plan.until,
        num_workers=cfg.num_workers,
        save_every=plan.save_every,
        seed=cfg.seed,
        resolution=cfg.resolution,
        batch_size=cfg.batch_size,
    )
    _say(2, f"a run of {plan.until} batches without interruption")
    shown: dict[tuple[int, ...], list[dict[str, Any]]] = defaultdict(list)
    result = demo_run.run(plain, lambda batch: _keep(batch, shown))
    _say(3, f"the same run, in a process that kills itself (SIGKILL) after batch {plan.kill_at}")
    killed = replace(plain, out=cfg.out / "killed", kill_at=plan.kill_at)
    (killed.out / CHECKPOINT).unlink(missing_ok=True)  # that of an earlier demo
    problems = _in_process(killed, -signal.SIGKILL)
    workers = cfg.num_workers + 1
    _say(4, f"another process goes on from its last checkpoint, with {workers} workers")
    resumed = replace(
        plain, out=cfg.out / "resumed", resume=killed.out / CHECKPOINT, num_workers=workers
    )
    problems += _in_process(resumed, 0) if not problems else []
    _say(5, "comparison, contact sheet and bucket report")
    problems = problems or compare(plain.out, killed.out, resumed.out, plan.kill_at, plan.until)
    report = report_buckets(plain)
    write_file(cfg.out / "bucket_report.txt", f"{report}\n")
    write_file(cfg.out / "bucket_report.json", report.to_json())
    _sheet(cfg, shown, report)
    print(f"\n{report}\n")
    if problems:
        sys.exit("\n".join(["THE RUNS DIFFER:", *problems, f"The logs are in {cfg.out}."]))
    print(_summary(cfg, plan, len(shards), result))


def make_shards(cfg: Config) -> list[Path]:
    """Return the paths of the demo's shards, made anew in ``<out>/shards``."""
    shards: list[Path] = []
    total = cfg.photographs + cfg.shapes
    with tqdm(total=total, unit=" pictures", desc="shards") as bar:
        for prefix, samples in (
            ("photographs-", photograph_samples(cfg.photographs, seed=cfg.seed)),
            ("shapes-", shape_samples(cfg.shapes, seed=cfg.seed)),
        ):
            shards += write_shards(
                _counted(samples, bar),
                cfg.out / "shards",
                samples_per_shard=cfg.samples_per_shard,
                prefix=prefix,
                overwrite=True,
            )
    return shards


def _counted(samples: Iterable[dict[str, Any]], bar: Any) -> Iterator[dict[str, Any]]:
    for sample in samples:
        yield sample
        bar.update()


def report_buckets(cfg: demo_run.Config) -> BucketReport:
    """Return what the graph's buckets do to the shards' images."""
    graph = Graph.of(demo_run.build(cfg))
    bucketer = next(step for step in graph.steps if isinstance(step, AspectRatioBucketer))
    sizes = [sizes for source in graph.sources for sizes in source.image_sizes()]
    return bucket_report(bucketer.buckets, np.concatenate(sizes))


def _in_process(cfg: demo_run.Config, status: int) -> list[str]:
    """Run in a process of its own; return what went wrong, in words."""
    values = {name: value for name, value in vars(cfg).items() if value is not None}
    options = [f"--{name}={value}" for name, value in values.items()]
    # So that a package which is not installed is found there too.
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", demo_run.__name__, *options],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        process_group=0,  # its workers are of its group, and are found by it
    )
    try:
        found = process.wait()
        problems = [] if found == status else [f"a process ended with {found}, not with {status}"]
        if not _gone(process.pid, PATIENCE):
            problems.append(f"processes of the run in {cfg.out} outlived it by {PATIENCE:g} s")
        return problems
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _gone(group: int, seconds: float) -> bool:
    """Return whether the last process of a group ends within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # macOS says so of processes that have ended and wait for init
            return True
        time.sleep(0.1)
    return False


def _keep(batch: dict[str, Any], shown: dict[tuple[int, ...], list[dict[str, Any]]]) -> None:
    same = shown[tuple(batch["image"].shape)]
    if len(same) < BATCHES_OF_A_SIZE:
        same.append(batch)


def _sheet(
    cfg: Config, shown: dict[tuple[int, ...], list[dict[str, Any]]], report: BucketReport
) -> None:
    write_contact_sheet(
        [batch for batches in shown.values() for batch in batches],
        cfg.out,
        title="penstock: batches as a model would see them",
        notes=(
            f"The first {BATCHES_OF_A_SIZE} batches of each bucket: cropped at random to its size, "
            "mirrored one time in two, tags behind the first shuffled, one caption in ten dropped. "
            'Mirrored, "left" becomes "right" and the caption does not: train on such captions '
            "with flip=0."
        ),
        report_html=f"<h2>Buckets</h2>\n{report.to_html()}",
    )


def _summary(cfg: Config, plan: Plan, shards: int, result: demo_run.Result) -> str:
    state = (cfg.out / "killed" / CHECKPOINT).read_text(encoding="utf-8")
    saved = json.loads(state)["position"]
    again = plan.kill_at - saved
    rate = result.images / result.seconds
    lines = {
        "shards": f"{cfg.photographs + cfg.shapes:,} captioned pictures in {shards} tars",
        "killed": f"after {plan.kill_at} of {plan.until} batches, in the middle of the first epoch "
        f"of {result.epoch_batches}; nothing was left running",
        "resumed": f"from the checkpoint at batch {saved} ({len(state):,} bytes of JSON), with "
        f"{cfg.num_workers + 1} workers instead of {cfg.num_workers}",
        "compared": f"all {plan.until} batches are bit-identical to the uninterrupted run's, "
        f"pixels and captions; {again} of them were made twice",
        "throughput": f"{rate:,.0f} images/s with {cfg.num_workers} workers on {os.cpu_count()} "
        "CPUs, each batch hashed and written down",
        "batches": f"{cfg.out / 'contact_sheet.html'} (and .png)",
        "buckets": f"{cfg.out / 'bucket_report.txt'} (and .json)",
        "data": f"{cfg.out / 'shards'}",
    }
    return "\n".join(f"{name:10}  {words}" for name, words in lines.items())


def _say(step: int, words: str) -> None:
    print(f"\n[{step}/5] {words}", flush=True)


if __name__ == "__main__":
    main(cli(Config))

"""Runs of real ranks (torch.distributed, gloo), killed with SIGKILL again and again."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from penstock.pipes import ElasticDataLoader, Pipe, ShardLister
from penstock.pipes.verify import fingerprints

LANES = 6
fork = multiprocessing.get_context("fork")  # a new process has torch imported already


def graph(shards: str) -> Pipe:
    return (
        ShardLister(shards, seed=9)
        .read_tar()
        .shuffle(20)
        .bucket_by_aspect_ratio(64, 3, step=16)
        .lanes(LANES)
        .decode(crop="random", flip=0.5)
        .shuffle_caption(keep=1)
        .drop_caption(0.2)
    )


def load(shards: str, workers: int) -> ElasticDataLoader:
    return graph(shards).loader(
        workers, epoch_batches=23, multiprocessing_context="fork" if workers else None
    )


def train(
    shards: str, folder: Path, life: int, rank: int, ranks: int, workers: int, stop: int
) -> None:
    """Be one rank: log every batch, checkpoint every second step, until ``stop`` batches."""
    os.setpgrp()  # with its workers, so that all can be killed at once
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    store = torch.distributed.FileStore(str(folder / f"store{life}"), ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    loader = load(shards, workers)
    checkpoint = folder / "checkpoint.json"
    if checkpoint.exists():
        loader.load_state_dict(json.loads(checkpoint.read_text()))
    step = 0
    with open(folder / f"log{rank}", "a") as log:
        while loader.position < stop:
            for batch in loader:
                log.write(json.dumps([batch["__batch__"], fingerprints(batch)]) + "\n")
                log.flush()
                step += 1
                if step % 2 == 0:
                    state = loader.gather_state()
                    if rank == 0:
                        new = folder / "checkpoint.new"
                        new.write_text(json.dumps(state))
                        new.rename(checkpoint)
                if loader.position >= stop:
                    break
    loader.close()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def logged(folder: Path) -> list[tuple[int, dict[str, str]]]:
    """Return all whole lines of all ranks' logs."""
    lines = [x for log in folder.glob("log*") for x in log.read_text().split("\n")[:-1]]
    return [tuple(json.loads(x)) for x in lines if x.endswith("]")]


def run_killed(shards: str, folder: Path, kills: int, chance: random.Random) -> None:
    """Kill ``kills`` lives of a run at random moments, let the last one finish, and compare."""
    stop = 24 + 12 * kills
    expected = []
    whole = load(shards, 0)
    while len(expected) < stop + 8:
        expected += [fingerprints(batch) for batch in whole]
    for life in range(kills + 1):
        ranks, workers = chance.choice((1, 2, 3)), chance.choice((0, 1, 2))
        last = life == kills
        before = len(logged(folder))
        run = [
            fork.Process(target=train, args=(shards, folder, life, rank, ranks, workers, stop))
            for rank in range(ranks)
        ]
        for process in run:
            process.start()
        if not last:
            due = before + chance.randrange(30)
            deadline = time.monotonic() + 60
            while (
                len(logged(folder)) < due
                and time.monotonic() < deadline
                and all(p.is_alive() for p in run)
            ):
                time.sleep(0.01)
            time.sleep(chance.random() * 0.05)
            for process in run:
                try:
                    os.killpg(process.pid or 0, signal.SIGKILL)
                except ProcessLookupError:  # it has not made its group yet
                    process.kill()
        for process in run:
            process.join(120)
        if last:
            assert [p.exitcode for p in run] == [0] * ranks
    seen = set()
    for g, found in logged(folder):
        assert found == expected[g], f"batch {g}"
        seen.add(g)
    assert set(range(stop)) <= seen


@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_six_kills(shards: str, tmp_path: Path) -> None:
    run_killed(shards, tmp_path, 6, random.Random(1))


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("seed", range(15))
def test_three_hundred_kills(seed: int, shards: str, tmp_path: Path) -> None:
    run_killed(shards, tmp_path, 20, random.Random(seed))

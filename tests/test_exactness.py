"""The sequence of global batches is the same however often, and onto whatever, a run is resumed."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from penstock.pipes import ElasticDataLoader, Pipe, ShardLister, merge_states
from penstock.pipes.verify import fingerprints

LANES = (1, 4, 6, 8)
RANKS = (1, 2, 3, 4)
WORKERS = (0, 1, 2, 3)
HORIZON = 150  # global batches that chains may reach


def graph(shards: str, lanes: int) -> Pipe:
    """Return a graph with everything in it that could go wrong."""
    return (
        ShardLister(shards, seed=3)
        .read_tar()
        .filter_size(min_side=42)
        .shuffle(20)
        .bucket_by_aspect_ratio(64, 3, step=16)
        .lanes(lanes)
        .decode(crop="random", flip=0.5)
        .shuffle_caption(keep=1)
        .drop_caption(0.2, parts=0.2)
    )


def make(shards: str, lanes: int, workers: int, rank: int = 0, ranks: int = 1) -> ElasticDataLoader:
    return graph(shards, lanes).loader(
        workers,
        rank=rank,
        world_size=ranks,
        epoch_batches=23,
        multiprocessing_context="fork" if workers else None,
    )


def take(loader: ElasticDataLoader, count: int) -> list[dict[str, Any]]:
    """Return the next batches, over the ends of epochs."""
    batches: list[dict[str, Any]] = []
    while len(batches) < count:
        for batch in loader:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


@pytest.fixture(scope="session")
def expected(shards: str) -> Callable[[int], list[dict[str, str]]]:
    """Return a function from lanes to the fingerprints of the uninterrupted run's batches."""
    runs: dict[int, list[dict[str, str]]] = {}

    def run(lanes: int) -> list[dict[str, str]]:
        if lanes not in runs:
            runs[lanes] = [fingerprints(b) for b in take(make(shards, lanes, 0), HORIZON)]
        return runs[lanes]

    return run


def run_chain(
    shards: str, expected: list[dict[str, str]], lanes: int, chance: random.Random
) -> str:
    """Run legs that continue each other; return what was run."""
    position, state, words = 0, None, []
    for _ in range(4 + chance.randrange(2)):
        ranks, workers = chance.choice(RANKS), chance.choice(WORKERS)
        loaders = [make(shards, lanes, workers, rank, ranks) for rank in range(ranks)]
        for loader in loaders:
            for _ in range(0 if state is None else chance.choice((1, 1, 2))):
                loader.load_state_dict(state)
                assert loader.state_dict() == state
        most = (HORIZON - position) // ranks
        steps = min(most, chance.choice((0, 1, 2, 5, 9)))
        words.append(f"{ranks}x{workers}:{steps}")
        for rank, loader in enumerate(loaders):
            for k, batch in enumerate(take(loader, steps)):
                g = position + k * ranks + rank
                assert batch["__batch__"] == g
                assert fingerprints(batch) == expected[g], f"lanes {lanes}, {words}, batch {g}"
        state = json.loads(json.dumps(merge_states([loader.state_dict() for loader in loaders])))
        for loader in loaders:
            loader.close()
        position += steps * ranks
    return " ".join(words)


@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
@pytest.mark.parametrize(
    "chain", [pytest.param(i, marks=() if i < 48 else pytest.mark.soak) for i in range(200)]
)
def test_chain(chain: int, shards: str, expected: Callable[[int], list[dict[str, str]]]) -> None:
    lanes = LANES[chain % len(LANES)]
    run_chain(shards, expected(lanes), lanes, random.Random(chain))

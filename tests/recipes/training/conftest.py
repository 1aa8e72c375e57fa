"""Ranks: processes of one gloo group, started from a server that has torch imported already."""

import multiprocessing
import pickle
import runpy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import penstock.pipes

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("pytest", "torch._dynamo"),
        *("penstock.recipes.training.checkpoint", "penstock.recipes.training.parallel"),
        # These take ten seconds, and each rank of a training would import them.
        *("penstock.recipes.flux_run", "diffusers.models.transformers.transformer_flux"),
        *("diffusers.models.autoencoders.autoencoder_kl", "diffusers.loaders"),
        *("transformers.models.t5.modeling_t5", "transformers.models.clip.modeling_clip"),
    ]
)
CHILD = "import runpy; runpy.run_path(conftest)['be_rank'](*place)"


def be_rank(
    rank: int, size: int, store: str, out: str, file: str, name: str, args: tuple[Any, ...]
) -> None:
    """Be one rank: call a test file's function with a world, and leave what it returns."""
    import torch

    from penstock.recipes.training.world import World

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.FileStore(store, size), rank=rank, world_size=size
        )
    result = runpy.run_path(file)[name](World(rank, size), *args)
    Path(out).write_bytes(pickle.dumps(result))
    if size > 1:
        torch.distributed.destroy_process_group()


@pytest.fixture
def start_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[Any], list[Path]]]:
    """Return a function that starts ranks, and gives their processes and files of results."""
    # The server, which the first start starts, has no other way to find the package.
    monkeypatch.setenv("PYTHONPATH", str(Path(penstock.pipes.__file__).parents[2]))
    runs = 0

    def start(size: int, function: Callable[..., Any], *args: Any) -> tuple[list[Any], list[Path]]:
        nonlocal runs
        runs += 1
        outs = [tmp_path / f"out-{runs}-{rank}" for rank in range(size)]
        ranks = []
        for rank, out in enumerate(outs):
            file = function.__code__.co_filename
            place = (rank, size, str(tmp_path / f"store-{runs}"), str(out), file)
            place = (*place, function.__name__, args)
            process = SERVER.Process(
                target=exec, args=(CHILD, {"conftest": __file__, "place": place})
            )
            process.start()
            ranks.append(process)
        return ranks, outs

    return start


@pytest.fixture
def run_ranks(start_ranks: Callable[..., tuple[list[Any], list[Path]]]) -> Callable[..., list[Any]]:
    """Return a function that calls ``function(world, *args)`` on ranks; gives their results."""

    def run(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        ranks, outs = start_ranks(size, function, *args)
        for process in ranks:
            process.join(120)
        codes = [process.exitcode for process in ranks]
        for process in ranks:
            if process.is_alive():
                process.kill()
        assert codes == [0] * size
        return [pickle.loads(out.read_bytes()) for out in outs]

    return run

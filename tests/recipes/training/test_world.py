import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from penstock.recipes.training.precision import autocast, dtype_of
from penstock.recipes.training.world import World, join_world


def test_one_process_is_a_world() -> None:
    with join_world("cpu") as world:
        assert (world.rank, world.size, world.main) == (0, 1, True)
        assert world.device == torch.device("cpu")
        world.barrier()
        assert world.sum(1.5, 2) == [1.5, 2]
        assert world.mean(torch.tensor(6.0), 4) == 1.5
        assert math.isnan(world.mean(0.0, 0))
        assert world.any(True)
        assert not world.any(False)
        assert world.from_main("x") == "x"
    assert not torch.distributed.is_initialized()


def talk(world: World) -> dict[str, Any]:
    r = world.rank
    world.barrier()
    with join_world("cpu") as again:  # the group that is there is used, and left
        same = (again.rank, again.size) == (r, world.size)
    return {
        "same": same and torch.distributed.is_initialized(),
        "sum": world.sum(0.1 * (r + 1), 2**40 + r),
        "mean": world.mean(3.0 * r, 2 * r),
        "none": world.mean(0.0, 0),
        "any": [world.any(False), world.any(r == 1), world.any(True)],
        "from_main": world.from_main({"rank": r, "text": "x" * r}),
    }


def test_ranks_agree(run_ranks: Callable[..., list[dict[str, Any]]]) -> None:
    first, second = run_ranks(2, talk)
    assert math.isnan(first.pop("none"))
    assert math.isnan(second.pop("none"))
    assert first == second
    assert first["same"]
    assert first["sum"] == [pytest.approx(0.3), 2**41 + 1]
    assert first["mean"] == 1.5
    assert first["any"] == [False, True, True]
    assert first["from_main"] == {"rank": 0, "text": ""}


@pytest.mark.parametrize(("batches", "size", "each"), [(8, 1, 8), (8, 4, 2), (3, 3, 1)])
def test_a_step_is_dealt_evenly(batches: int, size: int, each: int) -> None:
    assert World(0, size).share(batches) == each


@pytest.mark.parametrize(
    ("batches", "size", "says"),
    [
        (8, 3, "8 batches a step .* 3 ranks: take 6 or 9 batches a step, or 1 or 2 or 4 or 8 rank"),
        (2, 4, "2 batches a step .* 4 ranks: take 4 batches a step, or 1 or 2 ranks"),
        (0, 2, "0 batches a step .* 2 ranks: take 2 batches a step$"),
    ],
)
def test_or_the_error_says_which_numbers_fit(batches: int, size: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        World(0, size).share(batches)


def test_several_without_an_address_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RuntimeError, match="torchrun --nproc-per-node 2"), join_world("cpu"):
        pass


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(ValueError, match="torch sees no GPU here: say device cpu"),
        join_world("cuda"),
    ):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="GPU 2 is asked for, and there are 2"), join_world():
        pass
    with (
        pytest.raises(ValueError, match="cuda:0 for each of 4 processes: say cuda"),
        join_world("cuda:0"),
    ):
        pass


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert dtype_of("fp32", cpu) == torch.float32
    a = torch.ones(2, 2)
    with autocast(cpu, dtype_of("bf16", cpu)):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(cpu, torch.float32):
        assert (a @ a).dtype == torch.float32
    with pytest.raises(ValueError, match="bf16 or fp32, got 'fp16'"):
        dtype_of("fp16", cpu)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ValueError, match="Tesla T4 does not compute in bfloat16"):
        dtype_of("bf16", torch.device("cuda"))

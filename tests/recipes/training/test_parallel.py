import json
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from penstock.recipes.training.checkpoint import Checkpoints
from penstock.recipes.training.ema import Ema
from penstock.recipes.training.noise import SampleNoise, seed_step
from penstock.recipes.training.optimizer import make_optimizer
from penstock.recipes.training.optimizer_state import pack_optimizer, unpack_optimizer
from penstock.recipes.training.parallel import (
    accumulating,
    bare,
    clip_gradients,
    parallelize,
    scale_gradients,
    trainable,
)
from penstock.recipes.training.schedule import Schedule, set_rate
from penstock.recipes.training.world import World

BATCHES = 6  # a step's, which one, two and three ranks can share


class Block(nn.Module):
    """A frozen layer with a trained side path, as LoRA is."""

    def __init__(self, base: torch.dtype) -> None:
        super().__init__()
        self.base = nn.Linear(7, 7, bias=False).requires_grad_(False).to(base)
        self.side = nn.Linear(7, 7)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = self.base(x.to(self.base.weight.dtype)).to(x.dtype)
        return x + torch.tanh(base + self.drop(self.side(x)))


def model(base: torch.dtype = torch.float64, drop: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        whole = nn.Sequential(Block(base), Block(base), nn.Linear(7, 3))
    for block in whole[:2]:
        block.side.double()
        block.drop.p = drop
    whole[2].double()
    return whole


def train(
    world: World,
    mode: str,
    steps: int,
    folder: str | None = None,
    every: int = 0,
    drop: float = 0.0,
    log: str | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Train to step ``steps``, from the last checkpoint of the folder if there is one."""
    module = parallelize(model(drop=drop), world, mode=mode, blocks=[Block], **how)
    named = trainable(module)
    optimizer = make_optimizer("adamw", named.items(), rate=0.05)
    ema = Ema(named.items(), 0.9)
    noise = SampleNoise(1)
    schedule = Schedule(kind="cosine", warmup=2)
    checkpoints = Checkpoints(folder, world=world) if folder else None
    start = 0
    if checkpoints and world.from_main(checkpoints.latest()):
        found = checkpoints.load()
        start = found.step
        targets = unpack_optimizer(optimizer, named, found.state["optimizer"])
        found.fill("optimizer", targets)
        found.fill("model", named)
        found.fill("ema", ema.tensors())
    losses, norms = [], []
    for step in range(start, steps):
        set_rate(optimizer, schedule.factor(step, 8))
        seed_step(1, step, world.rank)
        mine = world.share(BATCHES)
        total, count = torch.zeros((), dtype=torch.float64), 0
        for k in range(mine):
            g = step * BATCHES + k * world.size + world.rank
            refs = [(0, g, i) for i in range(1 + g % 3)]  # batches of one, two and three
            x = noise.normal(refs, (7,), dtype=torch.float64)
            with accumulating(module, last=k == mine - 1):
                loss = (module(x) - x[:, :3].sin()).square().mean(1)
                loss.sum().backward()
            total += loss.detach().sum()
            count += len(refs)
        scale_gradients(named.values(), world.size / world.sum(count)[0])
        norms.append(clip_gradients(named.values(), 0.3))
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)
        losses.append(world.mean(total, count))
        if log and world.main:
            with Path(log).open("a") as file:
                file.write(json.dumps([step, losses[-1].hex()]) + "\n")
        if checkpoints and every and (step + 1) % every == 0:
            tensors, rest = pack_optimizer(optimizer, named)
            groups = {"model": named, "optimizer": tensors, "ema": ema.tensors()}
            checkpoints.save(step + 1, groups, {"optimizer": rest})
    return {
        "losses": losses,
        "norms": norms,
        "weights": {n: whole(p) for n, p in bare(module).named_parameters()},
        "ema": {n: whole(p) for n, p in ema.tensors().items()},
        "split": sorted(n for n, p in named.items() if isinstance(p, DTensor)),
    }


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return train(World(), "ddp", 6)


def close(got: dict[str, Any], want: dict[str, Any], tail: int = 0) -> None:
    for kind in ("weights", "ema"):
        assert set(got[kind]) == set(want[kind])
    torch.testing.assert_close(
        {k: got[k] for k in ("weights", "ema")},
        {k: want[k] for k in ("weights", "ema")},
        rtol=1e-9,
        atol=1e-11,
    )
    assert got["losses"] == pytest.approx(want["losses"][tail:], rel=1e-9)
    assert got["norms"] == pytest.approx(want["norms"][tail:], rel=1e-9)


def same(got: dict[str, Any], want: dict[str, Any], tail: int = 0) -> None:
    assert got["losses"] == want["losses"][tail:]
    assert got["norms"] == want["norms"][tail:]
    for kind in ("weights", "ema"):
        assert set(got[kind]) == set(want[kind])
        for name, tensor in got[kind].items():
            assert torch.equal(tensor, want[kind][name]), name


def test_it_learns(alone: dict[str, Any]) -> None:
    assert alone["losses"][-1] < 0.8 * alone["losses"][0]
    assert max(alone["norms"]) > 0.3  # some are clipped
    frozen = model().state_dict()
    for name, tensor in alone["weights"].items():
        assert torch.equal(tensor, frozen[name]) == name.endswith("base.weight")


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_ranks_train_as_one(
    mode: str, alone: dict[str, Any], run_ranks: Callable[..., Any]
) -> None:
    first, second = run_ranks(2, train, mode, 6)
    same(second, first)
    close(first, alone)
    assert first["split"] == ([] if mode == "ddp" else sorted(alone["ema"]))


def test_parts_of_two_are_resumed_by_one_two_and_three(
    alone: dict[str, Any], run_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    before = run_ranks(2, train, "fsdp", 3, str(folder), 3)[0]
    after = run_ranks(2, train, "fsdp", 6, str(folder))[0]
    unbroken = run_ranks(2, train, "fsdp", 6)[0]
    same(after, unbroken, 3)
    assert before["losses"] == unbroken["losses"][:3]
    for world, mode in ((1, "fsdp"), (2, "ddp"), (3, "fsdp")):
        for got in run_ranks(world, train, mode, 6, str(folder)):
            close(got, alone, 3)


def test_whole_ones_are_resumed_by_parts(
    alone: dict[str, Any], run_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(World(), "ddp", 3, str(folder), 3)
    same(train(World(), "ddp", 6, str(folder)), alone, 3)
    for got in run_ranks(2, train, "fsdp", 6, str(folder)):
        close(got, alone, 3)


def test_killed_again_and_again_it_gives_the_same_losses(
    start_ranks: Callable[..., Any], run_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    """Two ranks with dropout, killed at random: each loss is an unbroken run's, to the bit."""
    chance = random.Random(2)
    unbroken = run_ranks(2, train, "ddp", 30, None, 0, 0.2)[0]["losses"]
    args = ("ddp", 30, str(tmp_path / "run"), 1, 0.2, str(tmp_path / "log"))
    log = tmp_path / "log"
    for life in range(3):
        ranks, _ = start_ranks(2, train, *args)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and all(p.is_alive() for p in ranks):
            if log.exists() and len(log.read_text().splitlines()) >= 6 * (life + 1):
                break
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        for process in ranks:
            process.kill()
            process.join()
    last = run_ranks(2, train, *args)[0]["losses"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {step for step, _ in lines} == set(range(30))
    for step, loss in lines:
        assert float.fromhex(loss) == unbroken[step]
    assert 0 < len(last) < 30


def talk(world: World, mode: str) -> list[int]:
    """Return how often the ranks talk in each of a step's three batches, backward."""
    module = parallelize(model(), world, mode=mode, blocks=[Block])
    if mode == "ddp":
        sent = [0]

        def count(
            state: object, bucket: torch.distributed.GradBucket
        ) -> torch.futures.Future[torch.Tensor]:
            sent[0] += 1
            future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        module.register_comm_hook(None, count)  # type: ignore[operator]
    warnings.filterwarnings("ignore", ".*returned a view tensor")  # under CommDebugMode
    times = []
    for keep, last in ((True, False), (True, False), (True, True), (False, False)):
        with CommDebugMode() as comms, accumulating(module, last=last, keep_whole=keep):
            module(torch.ones(2, 7, dtype=torch.float64)).sum().backward()
        if mode == "ddp":
            times.append(sent[0])
            sent[0] = 0
        else:
            counts = comms.get_comm_counts()
            times.append(sum(n for op, n in counts.items() if "reduce_scatter" in str(op)))
    return times


def test_gradients_are_sent_once_a_step(run_ranks: Callable[..., Any]) -> None:
    assert run_ranks(2, talk, "ddp")[0] == [0, 0, 1, 0]
    # Two blocks and the rest.
    assert run_ranks(2, talk, "fsdp")[0] == [0, 0, 3, 3]


def mixed(world: World) -> dict[str, Any]:
    """Train float32 sides of a bfloat16 base, gathered as bfloat16."""
    module = model(torch.bfloat16)
    for block in module[:2]:
        block.side.float()
    module[2].float()
    module = parallelize(module, world, mode="fsdp", blocks=[Block], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(torch.ones(2, 7))
    out.float().sum().backward()
    named = trainable(module)
    return {
        "weights": {n: str(p.dtype) for n, p in bare(module).named_parameters()},
        "gradients": {str(p.grad.dtype) for p in named.values() if p.grad is not None},
        "norm": clip_gradients(named.values(), None),
    }


def test_fsdp_gathers_bf16_and_keeps_what_it_trains_in_float32(
    run_ranks: Callable[..., Any],
) -> None:
    first, second = run_ranks(2, mixed)
    assert first == second
    assert first["gradients"] == {"torch.float32"}
    for name, dtype in first["weights"].items():
        assert dtype == ("torch.bfloat16" if "base" in name else "torch.float32")
    assert first["norm"] > 0


def unlike(world: World) -> str:
    module = model()
    with torch.no_grad():
        module[2].bias.add_(world.rank)
    try:
        parallelize(module, world, mode="fsdp", blocks=[Block])
    except ValueError as error:
        return str(error)
    return ""


def test_ranks_that_begin_apart_are_refused(run_ranks: Callable[..., Any]) -> None:
    first, second = run_ranks(2, unlike)
    assert first == "the ranks begin with different weights: make them from the same seed"
    assert "weights, for one 2.bias on rank 1: make them from" in second


def compiled(world: World, mode: str) -> tuple[dict[str, Any], int]:
    from torch._dynamo.utils import counters

    warnings.filterwarnings("ignore", ".*not a leaf Tensor")  # torch's compiler looks at all
    got = train(world, mode, 2, compile=True, backend="eager")
    return got, counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_compiled_blocks(mode: str, alone: dict[str, Any], run_ranks: Callable[..., Any]) -> None:
    for got, graphs in run_ranks(2, compiled, mode):
        assert got["losses"] == pytest.approx(alone["losses"][:2], rel=1e-9)
        assert set(got["weights"]) == set(alone["weights"])
        assert graphs > 0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="mode must be ddp or fsdp, got 'dp'"):
        parallelize(model(), World(), mode="dp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Linear has no parameter that requires a gradient"):
        parallelize(nn.Linear(2, 2).requires_grad_(False), World())
    with pytest.raises(ValueError, match="Sequential has no Conv2d: say which blocks it repeats"):
        parallelize(model(), World(), blocks=[nn.Conv2d])


def test_norm_and_clipping_by_hand() -> None:
    a, b, none = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert clip_gradients([a, b, none], None) == 5
    assert clip_gradients([a, b], 10) == 5
    assert a.grad.tolist() == [3, 0]
    scale_gradients([a, b, none], 2)
    assert clip_gradients([a, b], 1) == 10
    torch.testing.assert_close(a.grad, torch.tensor([0.6, 0]))
    torch.testing.assert_close(b.grad, torch.tensor([0, 0.8]))
    a.grad[0] = float("inf")
    assert clip_gradients([a, b], 1) == float("inf")
    torch.testing.assert_close(b.grad, torch.tensor([0, 0.8]))  # left alone
    assert clip_gradients([none], 1) == 0
    small = nn.Parameter(torch.zeros(4096, dtype=torch.bfloat16))
    small.grad = torch.full((4096,), 1.0078125, dtype=torch.bfloat16)
    assert clip_gradients([small], None) == 64.5  # bfloat16 has 64 and 64.5, sums are exact

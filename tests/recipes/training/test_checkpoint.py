import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import Shard, distribute_tensor

from penstock.pipes.errors import DataError
from penstock.recipes.training.checkpoint import Checkpoints
from penstock.recipes.training.world import World


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return groups of tensors that tell which step they are of."""
    wide = torch.arange(12.0).view(3, 4) + step
    return {
        "model": {"a.weight": wide.to(torch.bfloat16), "b": torch.tensor(float(step))},
        "optimizer": {"a.weight/exp_avg": wide / 3, "a.weight/codes": wide.to(torch.uint8)},
    }


def save(checkpoints: Checkpoints, step: int) -> Path:
    return checkpoints.save(step, tensors_of(step), {"loader": {"position": step}, "seed": 7})


def is_whole(checkpoints: Checkpoints, path: Path | None = None) -> int:
    """Return the step of a checkpoint (the last one), all of which is as it was saved."""
    found = checkpoints.load(path)
    assert found.state == {"loader": {"position": found.step}, "seed": 7}
    for group, named in tensors_of(found.step).items():
        got = found.tensors(group)
        assert list(got) == sorted(named) or set(got) == set(named)
        for name, tensor in named.items():
            assert got[name].dtype == tensor.dtype
            assert torch.equal(got[name], tensor)
    return found.step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_saved_and_loaded_and_the_last_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", keep=2)
    assert checkpoints.latest() is None
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        checkpoints.load()
    for step in (100, 200, 1200):
        path = save(checkpoints, step)
        assert path == checkpoints.latest() == tmp_path / "run" / f"step-{step:08d}"
        assert is_whole(checkpoints) == step
    assert names(tmp_path / "run") == ["step-00000200", "step-00001200"]
    assert names(path) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert is_whole(checkpoints, checkpoints.folder / "step-00000200") == 200
    assert checkpoints.load("step-00000200").step == 200
    assert is_whole(Checkpoints(tmp_path / "run", keep=None)) == 1200


def test_a_step_saved_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 2, 2):
        save(checkpoints, step)
    assert names(tmp_path) == ["step-00000001", "step-00000002.3"]
    assert is_whole(checkpoints) == 2
    save(checkpoints, 3)
    assert names(tmp_path) == ["step-00000002.3", "step-00000003"]


def test_going_on_from_an_earlier_one_forgets_the_later(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=None)
    for step in (1, 2, 3, 4):
        save(checkpoints, step)
    assert [p.name for p in checkpoints.forget_after(2)] == ["step-00000003", "step-00000004"]
    assert is_whole(checkpoints) == 2
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_filled_in_place_whatever_shares_memory(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    base = torch.arange(100.0)
    group = {"view": base[10:20], "other": base[10:20], "turned": base.view(10, 10).T}
    path = checkpoints.save(1, {"model": group}, {})
    assert (path / "model.safetensors").stat().st_size < 4 * 130 + 300  # not the base's bytes
    targets = {"view": torch.zeros(10), "other": torch.zeros(10), "turned": torch.zeros(10, 10)}
    held = dict(targets)
    checkpoints.load().fill("model", targets)
    for name, tensor in group.items():
        assert torch.equal(held[name], tensor)


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    found = checkpoints.load()
    good = {n: torch.zeros_like(t) for n, t in tensors_of(1)["model"].items()}
    for targets, says in (
        ({**good, "more": torch.zeros(1)}, "1 tensors were not saved, for one more; resume with"),
        ({"b": good["b"]}, "1 that were saved are not here, for one a.weight; resume"),
        ({**good, "b": torch.zeros(2)}, r"b was saved as \['float32', \[\]\] and is \['float32', "),
        ({**good, "b": good["b"].double()}, r"b was saved as .* and is \['float64', \[\]\] here"),
    ):
        with pytest.raises(ValueError, match=says):
            found.fill("model", targets)
    assert all(t.count_nonzero() == 0 for t in good.values())
    with pytest.raises(KeyError, match="has no ema, only model, optimizer"):
        found.fill("ema", good)


def test_damage_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = save(checkpoints, 1)
    model = path / "model.safetensors"
    data = model.read_bytes()
    model.write_bytes(data[:-3])
    with pytest.raises(DataError, match=r"model.safetensors has \d+ bytes and had \d+: go on from"):
        checkpoints.load().tensors("model")
    model.write_bytes(b"\xff" * len(data))
    with pytest.raises(DataError, match="model.safetensors cannot be read"):
        checkpoints.load().tensors("model")
    save_file({"b": torch.zeros(9)}, model)
    state = json.loads((path / "state.json").read_text())
    state["tensors"]["model"]["files"]["model.safetensors"] = model.stat().st_size
    (path / "state.json").write_text(json.dumps(state, indent=1))
    with pytest.raises(DataError, match="does not hold the tensors that state.json lists"):
        checkpoints.load().tensors("model")
    model.unlink()
    with pytest.raises(DataError, match="model.safetensors is missing: go on from an earlier"):
        checkpoints.load().tensors("model")
    state = path / "state.json"
    text = state.read_text()
    for wrong, says in (
        (text[:-9], "state.json is no checkpoint's state"),
        ("[]", "state.json is no checkpoint's state"),
        (text.replace('"version": 1', '"version": 2'), "version 2; this penstock reads 1"),
    ):
        state.write_text(wrong)
        with pytest.raises(DataError, match=says):
            checkpoints.load()


def test_only_the_runs_own_are_read(tmp_path: Path) -> None:
    other = save(Checkpoints(tmp_path / "other"), 5)
    checkpoints = Checkpoints(tmp_path / "run")
    save(checkpoints, 1)
    (tmp_path / "run" / "step-00000009").symlink_to(other)
    for path in (other, tmp_path / "run" / "step-00000009", "..", "step-1", tmp_path / "run"):
        with pytest.raises(ValueError, match="is not one of the checkpoints in"):
            checkpoints.load(path)
    for url in ("s3://bucket/step-00000001", "hf://user/run/step-00000001"):
        with pytest.raises(ValueError, match="are read from .* alone, got"):
            checkpoints.load(url)
        with pytest.raises(ValueError, match="kept in a local folder, got"):
            Checkpoints(url)
    with pytest.raises(FileNotFoundError, match="no .*step-00000002; there are: step-00000001, st"):
        checkpoints.load("step-00000002")
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)


def test_what_cannot_be_saved_leaves_what_was_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(2, {}, {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="group '../model' must be letters, digits"):
        checkpoints.save(2, {"../model": {}}, {})
    assert names(tmp_path) == ["step-00000001"]


WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir")


def dies_at(folder: Path, n: int) -> bool:
    """Fork a run that saves three times and is killed at its nth move on the disk; did it die?"""
    child = os.fork()
    if child == 0:
        left = n

        def count(event: str, args: tuple[Any, ...]) -> None:
            nonlocal left
            if event in WATCHED:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        checkpoints = Checkpoints(folder, keep=1)
        for step in (2, 2, 3):
            save(checkpoints, step)
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_every_move_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kill interrupts, the last checkpoint is whole, and the next run goes on."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a kill loses nothing that is written
    seen = set()
    n = 0
    while True:
        folder = tmp_path / str(n)
        checkpoints = Checkpoints(folder, keep=1)
        save(checkpoints, 1)
        died = dies_at(folder, n)
        seen.add(is_whole(checkpoints))
        for _, path in checkpoints._found():
            is_whole(checkpoints, path)  # the older ones too: none is half removed
        if not died:
            break
        save(checkpoints, 5)
        assert names(folder) == ["step-00000005"]  # nothing lies about
        n += 1
    assert seen == {1, 2, 3}
    assert n > 40


def sharded(step: int, world: World) -> dict[str, dict[str, torch.Tensor]]:
    """Return groups as FSDP2 has them: split along the first dimension, unevenly; one is whole."""
    groups = tensors_of(step)
    if world.size == 1:
        return groups
    mesh = torch.distributed.init_device_mesh("cpu", (world.size,))
    for group, name in (("model", "a.weight"), ("optimizer", "a.weight/exp_avg")):
        groups[group][name] = distribute_tensor(groups[group][name], mesh, [Shard(0)])
    return groups


def save_for_ever(world: World, folder: str) -> None:
    checkpoints = Checkpoints(folder, keep=2, world=world)
    last = checkpoints.world.from_main(checkpoints.latest())
    step = 0 if last is None else checkpoints.load(last).step
    while True:
        step += 1
        checkpoints.save(step, sharded(step, world), {"loader": {"position": step}, "seed": 7})
        (Path(folder).parent / f"said-{world.rank}").write_text(str(step))


def fill_and_sum(world: World, folder: str) -> list[bool]:
    """Fill split tensors from what other numbers of ranks saved, and look at them."""
    found = Checkpoints(folder, world=world).load()
    right = []
    for group, named in sharded(0, world).items():
        found.fill(group, named)
        for name, want in tensors_of(found.step)[group].items():
            got = named[name]
            whole = got.full_tensor() if hasattr(got, "full_tensor") else got
            right.append(torch.equal(whole, want) and whole.dtype == want.dtype)
    return right


def test_two_ranks_killed_while_saving_parts(
    start_ranks: Callable[..., Any], run_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    chance = random.Random(5)
    folder = tmp_path / "run"
    alone = Checkpoints(folder)
    said = tmp_path / "said-0"
    last = 0
    for _ in range(4):
        ranks, _ = start_ranks(2, save_for_ever, str(folder))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if said.exists() and int(said.read_text() or "0") >= last + 3:
                break
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        for process in ranks:
            process.kill()
            process.join()
        before, last = last, is_whole(alone)
        assert last >= max(before + 3, int(said.read_text() or "0"))
    path = alone.latest()
    assert path is not None
    assert sorted(p.suffix for p in (path / "model").iterdir()) == [".safetensors"] * 2
    assert not list(path.rglob("*.metadata"))  # DCP's pickle
    for size in (1, 2, 3):
        for right in run_ranks(size, fill_and_sum, str(folder)):
            assert right == [True] * 4


def test_whole_tensors_fill_split_ones(run_ranks: Callable[..., Any], tmp_path: Path) -> None:
    save(Checkpoints(tmp_path / "run"), 6)
    for right in run_ranks(2, fill_and_sum, str(tmp_path / "run")):
        assert right == [True] * 4


def test_damaged_parts_are_named(run_ranks: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_ranks(2, save_twice, str(folder))
    checkpoints = Checkpoints(folder)
    assert is_whole(checkpoints) == 2
    assert json.loads((folder / "step-00000002" / "state.json").read_text())["tensors"]["model"][
        "parts"
    ]
    for one in sorted((folder / "step-00000002" / "model").iterdir()):
        data = one.read_bytes()
        one.unlink()
        with pytest.raises(DataError, match=f"{one.name} is missing: go on"):
            checkpoints.load().tensors("model")
        one.write_bytes(b"\xff" * len(data))
        with pytest.raises(DataError, match="step-00000002/model cannot be read"):
            checkpoints.load().tensors("model")
        one.write_bytes(data)


def save_twice(world: World, folder: str) -> None:
    checkpoints = Checkpoints(folder, keep=1, world=world)
    for step in (1, 2):
        checkpoints.save(step, sharded(step, world), {"loader": {"position": step}, "seed": 7})

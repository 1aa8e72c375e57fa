"""Workers that die, hang, or outlive their loader; start methods."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from penstock.pipes import Pipe, ShardLister
from penstock.pipes.verify import fingerprints

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pipe(shards: str) -> Pipe:
    return (
        ShardLister(shards, seed=1)
        .read_tar()
        .shuffle(15)
        .bucket_by_aspect_ratio(64, 3, step=16)
        .decode(crop="random")
    )


@pytest.fixture
def expected(pipe: Pipe) -> list[dict[str, str]]:
    return [fingerprints(b) for b in pipe.loader(epoch_batches=40)]


def workers_of(loader: Any) -> list[int]:
    return [w.pid for w in loader._stream.processes]


@pytest.mark.parametrize("victims", [1, 2])
def test_a_worker_killed_while_the_trainer_computes(
    pipe: Pipe, expected: list[dict[str, str]], victims: int
) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    loader = pipe.loader(2, epoch_batches=40)
    for g, batch in enumerate(loader):
        assert fingerprints(batch) == expected[g]
        if g in (3, 17):
            for pid in workers_of(loader)[:victims]:
                os.kill(pid, signal.SIGKILL)
            # torch's own handler would raise here, in the trainer's code.
            assert signal.getsignal(signal.SIGCHLD) == handler
            time.sleep(0.1)
    assert g == 39
    loader.close()


def _slow(sample: dict[str, Any], seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return sample


def test_a_worker_killed_while_the_trainer_waits(
    pipe: Pipe, expected: list[dict[str, str]]
) -> None:
    loader = pipe.map(partial(_slow, seconds=0.05)).loader(2, epoch_batches=12, prefetch_factor=1)

    def kill() -> None:
        os.kill(workers_of(loader)[0], signal.SIGKILL)

    for g, batch in enumerate(loader):
        assert fingerprints(batch) == expected[g]
        if g in (2, 9):
            threading.Timer(0.03, kill).start()  # the next batch takes 0.15 s
    assert g == 11
    loader.close()


def _kill_on(sample: dict[str, Any], key: str, url: str) -> dict[str, Any]:
    if sample["__key__"] == key and sample["__url__"].endswith(url):
        os.kill(os.getpid(), signal.SIGKILL)
    return sample


def test_a_batch_that_kills_its_worker_every_time_is_named(shards: str) -> None:
    pipe = ShardLister(shards, shuffle=False).read_tar().batch(3).load()
    loader = pipe.map(partial(_kill_on, key="0010", url="00000.tar")).loader(2)
    got = []
    with pytest.raises(
        RuntimeError, match=r"batch 3 could not be made.*SIGKILL.*00000.tar: 0010"
    ) as info:
        for batch in loader:
            got.append(batch["__batch__"])
    assert got == [0, 1, 2]
    assert "batch_at(3)" in str(info.value)
    assert loader.state_dict()["position"] == 3


def test_replacing_is_counted_between_two_good_batches(
    pipe: Pipe, expected: list[dict[str, str]]
) -> None:
    loader = pipe.loader(1, epoch_batches=12)
    for g, batch in enumerate(loader):  # twelve deaths in all, never more than one in a row
        assert fingerprints(batch) == expected[g]
        os.kill(workers_of(loader)[0], signal.SIGKILL)
    assert g == 11
    loader.close()


def _sleep_on(sample: dict[str, Any], key: str) -> dict[str, Any]:
    if sample["__key__"] == key:
        time.sleep(60)
    return sample


def test_a_worker_that_hangs_is_reported_with_its_stack(
    shards: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = ShardLister(shards, shuffle=False).read_tar().batch(3).load()
    loader = pipe.map(partial(_sleep_on, key="0007")).loader(2, timeout=1.5)
    got = []
    with pytest.raises(TimeoutError, match=r"timeout=1.5 s from the workers \(pid \d+"):
        for batch in loader:
            got.append(batch["__batch__"])
    assert got == [0, 1]
    assert "_sleep_on" in capfd.readouterr().err


def test_each_batch_has_the_whole_timeout(pipe: Pipe) -> None:
    loader = pipe.map(partial(_slow, seconds=0.5)).loader(1, timeout=2.5, epoch_batches=3)
    assert len(list(loader)) == 3  # each batch takes 1.5 s
    loader.close()


def test_an_error_of_the_trainers_function_is_raised_as_it_is(pipe: Pipe) -> None:
    def fail(sample: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("no such thing")

    loader = pipe.map(fail).loader(1)
    with pytest.raises(KeyError, match="no such thing"):
        next(iter(loader))


_SCRIPT = """
import sys, os, json, threading, time
from penstock.pipes import ShardLister
from penstock.pipes.verify import fingerprints
if __name__ == "__main__":
    url, method = sys.argv[1:]
    pipe = (ShardLister(url, seed=1).read_tar().shuffle(15)
            .bucket_by_aspect_ratio(64, 3, step=16).decode(crop="random"))
    loader = pipe.loader(2, epoch_batches=8, multiprocessing_context=method)
    print(json.dumps([fingerprints(b) for b in loader]), flush=True)
    if method == "fork":
        # Killed while its workers work: torch's own watch looks only between two batches.
        slow = pipe.map(lambda sample: time.sleep(90)).loader(2)
        threading.Thread(target=lambda: next(iter(slow)), daemon=True).start()
        while slow._stream is None:
            time.sleep(0.01)
        print(json.dumps([w.pid for w in slow._stream.processes]), flush=True)
        time.sleep(60)
"""


def run_script(script: Path, *args: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".dev")}
    return subprocess.Popen(
        [sys.executable, str(script), *args], env=env, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods(
    method: str, shards: str, expected: list[dict[str, str]], tmp_path: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    run = run_script(script, shards, method)
    out, _ = run.communicate(timeout=120)
    assert json.loads(out) == expected[:8]


def test_a_function_that_cannot_be_sent_is_named(pipe: Pipe) -> None:
    loader = pipe.map(lambda s: s).loader(1, multiprocessing_context="spawn")
    with pytest.raises(
        TypeError, match="Mapper's fn .*lambda.* cannot be sent to a worker .*top level"
    ):
        next(iter(loader))


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


def test_nothing_is_left_of_a_run_that_was_killed(
    shards: str, expected: list[dict[str, str]], tmp_path: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    before = _shared_memory()
    with run_script(script, shards, "fork") as run:
        assert run.stdout is not None
        assert json.loads(run.stdout.readline()) == expected[:8]
        pids = json.loads(run.stdout.readline())
        assert all(_alive(pid) for pid in pids)
        run.kill()
    deadline = time.monotonic() + 15
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if _alive(pid)]
    assert not [n for n in _shared_memory() - before if n.startswith("torch_")]
    with run_script(script, shards, "fork") as again:  # no lock of the dead run is in its way
        assert again.stdout is not None
        assert json.loads(again.stdout.readline()) == expected[:8]
        again.kill()


_BESIDE = """
import os, signal, sys, time, torch
from penstock.pipes import ShardLister
loader = ShardLister(sys.argv[1]).read_tar().batch(3).load().loader(1)
next(iter(loader))
plain = iter(torch.utils.data.DataLoader(list(range(100)), num_workers=1))
next(plain)
os.kill(loader._stream.processes[0].pid, signal.SIGKILL)
time.sleep(0.3)  # torch's handler is in force now, and must not raise for penstock's worker
print("calm", flush=True)
os.kill(plain._workers[0].pid, signal.SIGKILL)
try:
    time.sleep(3)
except RuntimeError as error:
    print("raised", flush=True)
next(iter(loader))
print("goes on", flush=True)
os._exit(0)
"""


def test_torch_still_watches_another_loaders_workers(shards: str, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(_BESIDE)
    out, _ = run_script(script, shards).communicate(timeout=60)
    assert out.split("\n")[:3] == ["calm", "raised", "goes on"]


def test_worker_init_fn_is_called(pipe: Pipe, tmp_path: Path) -> None:
    def note(worker: int) -> None:
        (tmp_path / str(worker)).touch()

    loader = pipe.loader(2, worker_init_fn=note)
    next(iter(loader))
    loader.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Any:
    yield
    import gc

    gc.collect()
    assert not [c for c in psutil.Process().children() if not _of_python(c)]


def _of_python(child: psutil.Process) -> bool:
    """Return whether multiprocessing itself keeps this child, or it is gone already."""
    try:
        words = " ".join(child.cmdline())
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return True
    return "resource_tracker" in words or "forkserver" in words

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.recipes.training.stop import Stop
from penstock.recipes.training.world import World


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_the_handlers_come_back(number: signal.Signals) -> None:
    former = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGTERM, signal.SIGUSR1)}
    mine = {n: signal.getsignal(n) for n in former}
    try:
        with Stop(World()) as stop:
            assert not stop.asked()
            os.kill(os.getpid(), number)
            assert stop.asked()
            assert stop.signal == number
            assert stop.asked()
        assert {n: signal.getsignal(n) for n in former} == mine
    finally:
        for n, handler in former.items():
            signal.signal(n, handler)


def test_the_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), Stop(World()):
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_what_it_did_before() -> None:
    seen: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with Stop(World()):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert seen == []
            os.kill(os.getpid(), signal.SIGUSR1)
            assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, former)


def endless(world: World, folder: str) -> None:
    with Stop(world) as stop:
        (Path(folder) / "begun").touch()
        while True:
            time.sleep(0.01)
            if stop.asked():
                (Path(folder) / "asked").touch()


def test_a_second_sigterm_ends_a_process_that_hangs(
    start_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    [process], _ = start_ranks(1, endless, str(tmp_path))
    try:
        for name in ("begun", "asked"):
            deadline = time.monotonic() + 60
            while not (tmp_path / name).exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert (tmp_path / name).exists()
            assert process.is_alive()
            os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        assert process.exitcode == -signal.SIGTERM
    finally:
        process.kill()


def stops_at(world: World) -> int:
    with Stop(world) as stop:
        for step in range(100):
            if step == 5 and world.rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            if stop.asked():
                return step
    return -1


def test_ranks_stop_at_one_step_whichever_was_told(run_ranks: Callable[..., list[int]]) -> None:
    assert run_ranks(2, stops_at) == [5, 5]


def test_not_from_another_thread() -> None:
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            Stop(World()).__enter__()
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])

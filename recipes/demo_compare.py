"""Compare the logs of a run that was killed and resumed with those of an uninterrupted one."""

import json
from pathlib import Path
from typing import Any

from .demo_run import CHECKPOINT, LOG


def compare(whole: Path, killed: Path, resumed: Path, kill_at: int, until: int) -> list[str]:
    """Return what differs between the runs' logs, in words; nothing where all is exact.

    Args:
        whole: Folder of the uninterrupted run, batches 0 to ``until``.
        killed: Folder of the killed run, batches 0 to ``kill_at``, and of its checkpoint.
        resumed: Folder of the run that went on from the checkpoint.
        kill_at: Number of batches that the killed run gave.
        until: Number of batches that the uninterrupted run gave.
    """
    saved = json.loads((killed / CHECKPOINT).read_text(encoding="utf-8"))["position"]
    expected = _read_log(whole)
    problems = _wrong_numbers("uninterrupted", expected, 0, until)
    for name, folder, first, end in (
        ("killed", killed, 0, kill_at),
        ("resumed", resumed, saved, until),
    ):
        lines = _read_log(folder)
        problems += _wrong_numbers(name, lines, first, end)
        for line in lines:
            other = next((e for e in expected if e["batch"] == line["batch"]), None)
            if other is not None and line != other:
                problems.append(f"batch {line['batch']} of the {name} run: {_differs(line, other)}")
    return problems


def _read_log(folder: Path) -> list[dict[str, Any]]:
    with (folder / LOG).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _wrong_numbers(name: str, lines: list[dict[str, Any]], first: int, end: int) -> list[str]:
    numbers = [line["batch"] for line in lines]
    if numbers == list(range(first, end)):
        return []
    wrong = next(
        (f"batch {n} came where {k} was due" for k, n in enumerate(numbers, first) if n != k),
        f"{len(numbers)} batches came",
    )
    return [f"the {name} run should give batches {first} to {end - 1}, and {wrong}"]


def _differs(line: dict[str, Any], other: dict[str, Any]) -> str:
    if line["epoch"] != other["epoch"]:
        return f"it came in epoch {line['epoch']}, and in epoch {other['epoch']} uninterrupted"
    one, two = line["fields"], other["fields"]
    names = sorted(k for k in one.keys() | two.keys() if one.get(k) != two.get(k))
    return f"{', '.join(names)} differ from the uninterrupted run's"

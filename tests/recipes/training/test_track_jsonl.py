import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penstock.recipes.training.run_log import read_log
from penstock.recipes.training.track_jsonl import JsonlTracker

RED = Image.new("RGB", (8, 6), "red")


def tell(tracker, steps):
    for step in steps:
        tracker.log(step, {"train/loss": 1 / step})
        if step % 2 == 0:
            tracker.images(step, "samples", [RED, RED], ["one", "two"])
            tracker.text(step, "note", f"at {step}")


def content(folder):
    """What a folder holds, times left out."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "log.jsonl":
            rows = [json.loads(line) for line in data.splitlines()]
            data = [{name: x for name, x in row.items() if name != "time"} for row in rows]
        files[path.relative_to(folder).as_posix()] = data
    return files


def test_a_line_is_there_at_once(tmp_path):
    tracker = JsonlTracker(tmp_path / "new" / "run")
    tracker.progress(1)
    tracker.log(1, {"train/loss": 0.25})
    (line,) = read_log(tmp_path / "new" / "run" / "log.jsonl")
    assert (line.step, line.values) == (1, {"train/loss": 0.25})
    tracker.close()


def test_pictures_are_written_as_they_are_and_as_a_grid(tmp_path):
    tracker = JsonlTracker(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    tracker.images(7, "samples", [RED, Image.fromarray(pixels)], ["", "noise"])
    tracker.close()
    (line,) = read_log(tmp_path / "log.jsonl")
    assert list(line.files) == [f"images/samples/step-000000007-0{i}.png" for i in range(2)]
    assert line.captions == ("", "noise")
    with Image.open(tmp_path / line.files[1]) as picture:
        assert np.array_equal(np.asarray(picture), pixels)
    with Image.open(tmp_path / "images/samples/step-000000007.png") as grid:
        assert grid.width > 2 * 128


@pytest.mark.parametrize("names", [["a/b", "a_b", "a b", "A/b"], ["..", ".", "../../x", "é" * 300]])
def test_any_name_makes_a_folder_of_its_own(tmp_path, names):
    tracker = JsonlTracker(tmp_path / "run")
    for name in names:
        tracker.images(1, name, [RED], [""])
    tracker.close()
    assert len(list((tmp_path / "run" / "images").iterdir())) == len(names)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("saved", [0, 1, 2, 5, 8])
def test_a_run_that_goes_on_leaves_what_an_uninterrupted_one_does(tmp_path, saved):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    tracker = JsonlTracker(whole)
    tell(tracker, range(1, 9))
    tracker.close()
    tracker = JsonlTracker(killed)
    tell(tracker, range(1, 9))
    tracker.images(8, "samples", [RED] * 3, [""] * 3)  # one more than the other run will write
    tracker.close()
    with (killed / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 9, "tim')
    if saved == 8:
        saved = 6
    tracker = JsonlTracker(killed, step=saved)
    tell(tracker, range(saved + 1, 9))
    tracker.close()
    assert content(killed) == content(whole)


def test_only_its_own_pictures_are_removed(tmp_path):
    folder = tmp_path / "images" / "mine"
    folder.mkdir(parents=True)
    names = ["step-final.png", "step-000000009.jpg", "photo.png"]
    for name in [*names, "step-000000009.png", "step-1000000000-00.png"]:
        (folder / name).touch()
    JsonlTracker(tmp_path, step=8).close()
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)


CODE = """
import sys
from penstock.recipes.training.track_jsonl import JsonlTracker
tracker = JsonlTracker(sys.argv[1])
step = 0
while True:
    step += 1
    tracker.log(step, {"train/loss": 1 / step})
    if step == 100:
        print("ready", flush=True)
"""


def test_a_kill_loses_nothing_that_was_told(tmp_path):
    root = Path(__file__).parents[3] / ".dev"
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    with process.stdout as out:
        assert out.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = read_log(tmp_path / "log.jsonl")
    assert len(found) >= 100
    assert [line.step for line in found] == list(range(1, len(found) + 1))
    assert all(line.values == {"train/loss": 1 / line.step} for line in found)
    JsonlTracker(tmp_path, step=70).close()
    assert len(read_log(tmp_path / "log.jsonl")) == 70

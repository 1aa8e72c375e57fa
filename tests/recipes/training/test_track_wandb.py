import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.recipes.training.track_wandb import WandbTracker

# wandb takes seconds to load, and keeps threads and a service of its own.
CODE = """
import sys
import warnings
from pathlib import Path

from PIL import Image

warnings.simplefilter("error")
from penstock.recipes.training.track_wandb import WandbTracker

out = Path(sys.argv[1])
ids = []
for steps in (range(1, 4), range(3, 6)):
    tracker = WandbTracker(out, name="a run", config={"lora": {"rank": 16}}, mode="offline")
    ids.append(tracker._run.id)
    for step in steps:
        tracker.progress(step)
        tracker.log(step, {"train/loss": 1 / step, "grad_norm": float("nan")})
    tracker.images(5, "samples", [Image.new("RGB", (20, 10))] * 2, ["a caption <b>", ""])
    tracker.text(5, "note", "words <b>")
    tracker.close()
assert ids[0] == ids[1] == (out / "wandb_run_id.txt").read_text().strip()
print(ids[0])
try:
    WandbTracker(out / "other", mode="online")
except RuntimeError as error:
    assert "`wandb login`" in str(error), error
else:
    raise AssertionError("it began a run without an account")
"""


def test_offline_runs_that_go_on_are_one_run(tmp_path):
    keep = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    root = Path(__file__).parents[3] / ".dev"
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**keep, "PYTHONPATH": str(root), "HOME": str(tmp_path), "NETRC": str(tmp_path / "no")},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.split()[-1]
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}/*.wandb"))
    assert len(files) == 2
    first, second = (path.read_bytes() for path in files)
    third = b"0.3333333333333333"
    assert (third in first, b"0.25" in first) == (True, False)
    assert (third in second, b"0.25" in second) == (True, True)
    for data in (first, second):
        assert {b"train/loss", b"a run", b"a caption <b>", b'{"rank":16}'} <= {
            word
            for word in (b"train/loss", b"a run", b"a caption <b>", b'{"rank":16}')
            if word in data
        }
    pages = list((tmp_path / "run" / "wandb").rglob("media/html/*.html"))
    assert pages
    assert all("words &lt;b&gt;" in page.read_text() for page in pages)


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'penstock\[track\]'"):
        WandbTracker(tmp_path)
    assert list(tmp_path.iterdir()) == []

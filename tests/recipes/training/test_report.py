import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from penstock.recipes.training import report
from penstock.recipes.training.report import write_report
from penstock.recipes.training.run_log import LogLine
from penstock.recipes.training.track_jsonl import JsonlTracker

EVIL = "<script>alert(\"x\")</script> & 'more'"
VOID = ("meta", "img", "br", "polyline", "line", "circle", "rect", "path")


class Page(HTMLParser):
    """Checks that tags are balanced; collects attributes and text."""

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.links, self.words, self.kinds = [], [], [], [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        assert self.open == []

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.kinds.append(dict(attrs).get("class"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID[:3]:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs)
        self.kinds.append(attrs.get("class"))
        self.links += [v for k, v in attrs.items() if k in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in VOID or tag == "circle":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += [data.strip()] if data.strip() else []


@dataclass
class Lora:
    rank: int = 16


@dataclass
class Config:
    lora: Lora
    steps: int = 400
    prompts: tuple[str, ...] = ("a cat", EVIL)
    quantize: str | None = None


def train(folder, *, steps=400, overfits=False, name="samples", pictures=2):
    tracker = JsonlTracker(folder)
    for step in range(0, steps + 1, 10):
        if step:
            tracker.log(step, {"train/loss": 1 / step + step % 7 / 100, "lr": 1e-4 - step * 1e-7})
        if step % 100 == 0:
            loss = 0.6 - step / 1000 + (max(0, step - 200) / 500 if overfits else 0)
            tracker.log(step, {"val/loss": loss, "val/loss_at/0.1": loss, "val/loss_at/0.9": 1.0})
            colours = ["red", "blue", "green"][:pictures]
            made = [Image.new("RGB", (80 + step // 10, 60), c) for c in colours]
            tracker.images(step, name, made, [f"prompt {c}" for c in colours])
    tracker.close()


def test_a_reader_sees_what_there_is(tmp_path):
    folder = tmp_path / "my-run"
    train(folder)
    Image.new("RGB", (3000, 900), "grey").save(folder / "contact_sheet.png")
    path = write_report(folder, config=Config(Lora()))
    assert path == folder / "report.html"
    page = Page(path)
    words = page.words
    assert words.index("Learning") < words.index("Loss") < words.index("Samples")
    assert words.index("Samples") < words.index("What else was logged")
    assert words.index("What else was logged") < words.index("What it was trained on")
    assert {"my-run", "Validation loss at", "Learning rate", "Configuration"} <= set(words)
    steps = words[words.index("Steps") : words.index("Steps") + 3]
    assert steps == ["Steps", "400", "of 400, 100 %"]
    assert words[words.index("lora.rank") + 1] == "16"
    assert words[words.index("quantize") + 1] == "none"
    assert words[words.index("prompts") + 1] == f"a cat\n{EVIL}"
    # Two pictures large, two rows of five steps small, and the sheet.
    assert len(page.images) == 2 + 2 * 5 + 1
    assert [i["alt"] for i in page.images[:3]] == ["prompt red", "prompt blue", "prompt red"]
    assert (page.images[0]["width"], page.images[0]["height"]) == ("120", "60")
    assert page.images[-1]["width"] == "1600"
    small = [(i["width"], i["alt"]) for i in page.images[2:-1]]
    assert small[:5] == [(w, "prompt red") for w in ("80", "90", "100", "110", "118")]
    assert "step 0" in words[words.index("all steps") :]


def test_overfitting_is_seen(tmp_path):
    train(tmp_path, overfits=True)
    page = Page(write_report(tmp_path, title="T"))
    assert "It may be overfitting" in page.words
    assert "verdict watch" in page.kinds
    assert page.words[page.words.index("Lowest validation") + 2] == "at step 200"


def test_everything_is_escaped_and_nothing_is_external(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {EVIL: 1.0, f"val/{EVIL}": 2.0, f"val/a/{EVIL}": math.nan})
    tracker.images(1, EVIL, [Image.new("RGB", (8, 8))], [EVIL])
    tracker.images(2, EVIL, [Image.new("RGB", (8, 8))], [f"{EVIL}\ud83d"])
    tracker.text(1, EVIL, EVIL)
    tracker.close()
    path = write_report(tmp_path, title=EVIL, config={EVIL: EVIL, "a": {EVIL: [EVIL]}})
    page = Page(path)
    assert "<script" not in page.text
    assert page.text.count(EVIL) == 0
    assert page.words.count(EVIL) > 6
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not re.search(r"https?:|url\(|@import", page.text)
    assert "default-src 'none'" in page.text


def test_it_is_written_whole_while_the_run_goes_on(tmp_path):
    train(tmp_path)
    write_report(tmp_path)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 410, "ti')
    Page(write_report(tmp_path))
    assert not list(tmp_path.glob("*.part"))


def test_a_run_that_has_just_begun(tmp_path):
    JsonlTracker(tmp_path).close()
    page = Page(write_report(tmp_path))
    assert {"Nothing has been logged yet.", "Too early to say"} <= set(page.words)


def test_the_configuration_beside_the_log_is_read(tmp_path):
    train(tmp_path, steps=10)
    (tmp_path / "config.json").write_text(json.dumps({"steps": 40, "lora": {"rank": 4}}))
    words = Page(write_report(tmp_path)).words
    assert "of 40, 25 %" in words
    assert words[words.index("lora.rank") + 1] == "4"
    (tmp_path / "config.yaml").write_text("steps: 20\n")
    assert "of 20, 50 %" in Page(write_report(tmp_path)).words
    (tmp_path / "config.yaml").write_text("a: [\n")
    assert any("cannot be read" in w for w in Page(write_report(tmp_path)).words)


def test_what_a_log_names_outside_the_folder_is_not_shown(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    run = tmp_path / "run"
    tracker = JsonlTracker(run)
    for file in ("../secret.png", str(tmp_path / "secret.png")):
        tracker._write(LogLine(1, 0.0, images="samples", files=[file], captions=["x"]))
    tracker.close()
    assert Page(write_report(run)).images == []


def test_a_picture_that_is_gone_or_torn_is_said(tmp_path):
    train(tmp_path, steps=0)
    (tmp_path / "images/samples/step-000000000-00.png").unlink()
    (tmp_path / "images/samples/step-000000000-01.png").write_bytes(b"\x89PNG torn")
    page = Page(write_report(tmp_path))
    assert page.images == []
    assert sum("step-000000000-0" in w for w in page.words) == 2


def test_long_runs_stay_small_and_say_so(tmp_path):
    train(tmp_path, steps=3000)
    tracker = JsonlTracker(tmp_path, step=3000)
    tracker.images(3000, "many", [Image.new("RGB", (8, 8))] * 20, [""] * 20)
    for i in range(60):
        tracker.text(3000, f"note {i}", "words")
    tracker.close()
    page = Page(write_report(tmp_path))
    assert "8 of 31 steps" in page.words
    assert "step 3,000; 16 of 20 pictures are shown" in page.words
    assert "the last 50 of 60" in page.words
    shown = [w for w in page.words if re.fullmatch(r"step [\d,]+", w)]
    assert {"step 0", "step 3,000"} <= set(shown)
    assert len(page.images) == 2 + 2 * 8 + 16


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no log\.jsonl: give the folder"):
        write_report(tmp_path)
    JsonlTracker(tmp_path).close()
    with pytest.raises(FileNotFoundError, match="no contact sheet"):
        write_report(tmp_path, contact_sheet=tmp_path / "no.png")


def test_it_runs_as_a_module(tmp_path):
    train(tmp_path, steps=20)
    root = Path(__file__).parents[3] / ".dev"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", report.__name__, "--run", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'report.html'}\n"
    Page(tmp_path / "report.html")

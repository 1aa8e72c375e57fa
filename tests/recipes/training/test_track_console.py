import io
import math
import re

import pytest
from PIL import Image

from penstock.recipes.training.track_console import ConsoleTracker


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Ascii(io.StringIO):
    encoding = "ascii"


def test_plain_lines_where_there_is_no_terminal():
    file = io.StringIO()
    tracker = ConsoleTracker(steps=2000, file=file)
    for step in range(1, 1001):
        tracker.progress(step)
    tracker.log(1000, {"lr": 1e-4, "images_per_second": 12.34, "train/loss": 0.41234})
    tracker.images(1000, "samples", [Image.new("RGB", (1, 1))] * 2, ["", ""])
    tracker.text(1000, "note", "two\nlines")
    tracker.close()
    first, *rest = file.getvalue().splitlines()
    assert re.fullmatch(
        r"step 1,000/2,000 \[00:0\d<00:0\d\]  loss 0\.4123  images/s 12\.34  lr 0\.0001", first
    )
    assert [line.partition("]  ")[2] for line in rest] == ["samples: 2 pictures", "note: two lines"]
    assert "\r" not in file.getvalue()


def test_bar_and_lines_live_together():
    file = Terminal()
    tracker = ConsoleTracker(steps=10, step=4, file=file)
    tracker.progress(5)
    tracker.log(5, {"train/loss": 0.5, "images_per_second": 3.0})
    tracker.log(5, {"val/loss": 0.75})
    tracker.progress(6)
    assert tracker._bar.n == 6
    tracker.close()
    shown = file.getvalue()
    assert "step 5/10  loss 0.5  images/s 3\n" in shown
    assert "6/10" in shown
    # What was said last of each stays in the bar.
    assert "loss 0.5, val/loss 0.75, images/s 3" in shown
    # A line begins where the bar was wiped away.
    assert all(
        re.search(r"(^|\r)\s*\rstep|^step", s) for s in shown.split("\n") if "loss 0.5  " in s
    )


def test_time_left_counts_from_where_the_run_went_on(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    file = io.StringIO()
    tracker = ConsoleTracker(steps=1000, step=900, file=file)
    tracker.log(900, {"a": 1.0})
    now[0] += 20.0
    tracker.log(910, {"a": 1.0})
    tracker.log(1001, {"a": 1.0})
    tracker.close()
    assert file.getvalue().splitlines() == [
        *("step 900/1,000  a 1", "step 910/1,000 [00:20<03:00]  a 1", "step 1,001/1,000  a 1")
    ]


def test_steps_may_be_unknown():
    file = io.StringIO()
    tracker = ConsoleTracker(file=file)
    tracker.log(5, {"train/loss": math.nan})
    tracker.close()
    assert file.getvalue() == "step 5  loss nan\n"


@pytest.mark.parametrize("file", [io.StringIO(), Terminal(), Ascii()])
def test_words_cannot_move_the_cursor(file):
    tracker = ConsoleTracker(file=file)
    tracker.text(1, "note", "a\x1b[2J\x07b é日\ud83d")
    tracker.close()
    shown = file.getvalue()
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "a?[2J?b" in shown
    if isinstance(file, Ascii):
        assert shown.isascii()


def test_standard_error_is_what_it_writes_to(capsys):
    tracker = ConsoleTracker(steps=3)
    tracker.log(0, {"a": 1.0})
    tracker.close()
    assert capsys.readouterr() == ("", "step 0/3  a 1\n")

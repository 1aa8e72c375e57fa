import json
import os
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from penstock.recipes import demo, demo_run
from penstock.recipes.demo import Config, main, plan_of
from penstock.recipes.demo_compare import compare
from penstock.recipes.write_file import write_file


def shared_memory():
    """Return the names of torch's shared memory that holds anything."""
    found = set()
    for path in Path("/dev/shm").glob("torch_*"):
        with suppress(FileNotFoundError):
            found |= {path.name} if path.stat().st_size else set()
    return found


def running(words):
    """Return the processes whose command line has ``words`` in it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(words in argument for argument in process.info["cmdline"] or ()):
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
def test_the_demo(tmp_path, capfd):
    before = shared_memory()
    out = tmp_path / "a demo"
    main(Config(out=out, photographs=13, shapes=35, resolution=64, batch_size=4))
    words = capfd.readouterr().out
    assert running(str(out)) == []
    left = shared_memory() - before
    time.sleep(0.2 if left else 0)  # another test's may just be in use
    assert not left & shared_memory()
    assert "all 15 batches are bit-identical" in words
    assert "killed      after 7 of 15 batches" in words
    assert "checkpoint at batch 6" in words
    assert "images/s" in words
    for name in ("contact_sheet.html", "bucket_report.txt", "shards"):
        assert str(out / name) in words
        assert (out / name).exists()
    assert json.loads((out / "bucket_report.json").read_text())["images"] == 48
    logs = {name: (out / name / "log.jsonl").read_text() for name in ("killed", "resumed")}
    whole = (out / "uninterrupted" / "log.jsonl").read_text()
    assert whole.startswith(logs["killed"])
    assert whole.endswith(logs["resumed"])
    assert len(whole.splitlines()) == 15
    tampered = logs["resumed"].replace('"image": "', '"image": "0', 1)
    (out / "resumed" / "log.jsonl").write_text(tampered)
    folders = (out / name for name in ("uninterrupted", "killed", "resumed"))
    assert compare(*folders, 7, 15) == [
        "batch 6 of the resumed run: image differ from the uninterrupted run's"
    ]


@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
def test_what_goes_wrong_ends_with_status_1(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_in_process", lambda cfg, status: ["a process ended with 3"])
    with pytest.raises(SystemExit) as ended:
        main(Config(out=tmp_path, photographs=4, shapes=8, batch_size=2, num_workers=0))
    assert isinstance(ended.value.code, str)  # which sys.exit prints, with status 1
    assert "a process ended with 3" in ended.value.code


@pytest.mark.slow
def test_a_process_that_fails_is_a_problem(tmp_path, capfd):
    cfg = demo_run.Config(url=str(tmp_path / "*.tar"), out=tmp_path, until=3)
    assert demo._in_process(cfg, -9) == ["a process ended with 1, not with -9"]
    assert "matches no file" in capfd.readouterr().err


def line(batch, epoch=0, **fields):
    return {
        "batch": batch,
        "epoch": epoch,
        "fields": {"image": f"i{batch}", "caption": "c"} | fields,
    }


@pytest.fixture
def logs(tmp_path):
    """A function that writes the three logs, each changed as told; 10 batches, killed at 5."""

    def write(**changes):
        runs = {
            "whole": [line(g) for g in range(10)],
            "killed": [line(g) for g in range(5)],
            "resumed": [line(g) for g in range(4, 10)],
        }
        for name, lines in runs.items():
            changed = changes.get(name, lambda lines: lines)(lines)
            (tmp_path / name).mkdir(exist_ok=True)
            text = "".join(json.dumps(one) + "\n" for one in changed)
            (tmp_path / name / "log.jsonl").write_text(text)
        (tmp_path / "killed" / "checkpoint.json").write_text('{"position": 4}')
        return compare(*(tmp_path / name for name in runs), 5, 10)

    return write


def test_equal_logs_do_not_differ(logs):
    assert logs() == []


@pytest.mark.parametrize(
    ("run", "change", "words"),
    [
        ("resumed", lambda ls: [*ls[:2], line(6, caption="d"), *ls[3:]], "batch 6 .*: caption dif"),
        ("killed", lambda ls: [*ls[:-1], line(4, mask="m")], "batch 4 of the killed run: mask"),
        (
            "resumed",
            lambda ls: [*ls[:-1], line(9, epoch=1)],
            "batch 9 .* epoch 1, and in epoch 0",
        ),
        ("resumed", lambda ls: ls[1:], "batches 4 to 9, and batch 5 came where 4 was due"),
        ("resumed", lambda ls: ls[:-1], "batches 4 to 9, and 5 batches came"),
        ("killed", lambda ls: [*ls, line(5)], "batches 0 to 4, and 6 batches came"),
        ("killed", lambda ls: [ls[0], ls[0], *ls[2:]], "batch 0 came where 1 was due"),
        ("whole", lambda ls: ls[:-1], "the uninterrupted run should give batches 0 to 9"),
    ],
)
def test_what_differs_is_said(logs, run, change, words):
    problems = logs(**{run: change})
    assert len(problems) == 1
    assert re.search(words, problems[0]), problems


@pytest.mark.parametrize("samples", [6, 12, 100, 2400, 100_000])
def test_it_is_killed_in_mid_epoch_between_two_checkpoints(samples):
    plan = plan_of(Config(photographs=samples - samples // 2, shapes=samples // 2, batch_size=1))
    assert plan.save_every < plan.kill_at < samples < plan.until
    assert plan.kill_at % plan.save_every


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="needs at least 6"):
        Config(photographs=4, shapes=5, batch_size=2)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_file(path, "first é")

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_file(path, "second")
    assert path.read_text(encoding="utf-8") == "first é"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_run_leaves_behind_is_seen():
    process = subprocess.Popen(["sleep", "60"], process_group=0)
    try:
        assert not demo._gone(process.pid, 0.2)
    finally:
        process.kill()
        process.wait()
    assert demo._gone(process.pid, 5)

import sys

import pytest

from penstock.recipes.training.open_trackers import open_trackers
from penstock.recipes.training.run_log import read_log


def test_the_log_is_always_kept(tmp_path, capsys):
    for step in (0, 2):
        with open_trackers(tmp_path / "run", step=step, steps=4) as trackers:
            for now in range(step + 1, 4):
                trackers.progress(now)
                trackers.log(now, {"train/loss": step + now})
    found = [
        (line.step, line.values["train/loss"]) for line in read_log(tmp_path / "run/log.jsonl")
    ]
    assert found == [(1, 1.0), (2, 2.0), (3, 5.0)]
    assert "step 3/4" in capsys.readouterr().err


def test_other_ranks_leave_no_trace(tmp_path, capsys):
    with open_trackers(tmp_path / "run", ["tensorboard", "wandb"], rank=1) as trackers:
        trackers.log(1, {"train/loss": 1.0})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_a_missing_extra_is_said_before_anything_is_cut(tmp_path, monkeypatch, extra):
    with open_trackers(tmp_path) as trackers:
        trackers.log(1, {"train/loss": 1.0})
    before = (tmp_path / "log.jsonl").read_bytes()
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"penstock\[track\]"):
        open_trackers(tmp_path, [extra])
    assert (tmp_path / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extras": ["mlflow"]}, "unknown tracker 'mlflow': there are tensorboard, wandb"),
        ({"step": 5, "steps": 4}, r"from 0 to steps \(4\), got 5"),
        ({"step": -1}, "got -1"),
    ],
)
def test_nonsense_is_refused_on_every_rank(tmp_path, rank, arguments, message):
    with pytest.raises(ValueError, match=message):
        open_trackers(tmp_path / "run", rank=rank, **arguments)
    assert list(tmp_path.iterdir()) == []

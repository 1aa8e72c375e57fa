import json

import pytest
import torch

from penstock.recipes.training.schedule import Plateau, Schedule, set_rate


def test_factors_by_hand() -> None:
    assert [Schedule().factor(s, 4) for s in range(4)] == [1.0] * 4
    linear = Schedule(kind="linear", warmup=3, floor=0.2)
    got = [linear.factor(s, 7) for s in range(9)]
    assert got == pytest.approx([0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2, 0.2])
    cosine = Schedule(kind="cosine", warmup=1)
    got = [cosine.factor(s, 5) for s in range(6)]
    assert got == pytest.approx([0.5, 1, 0.5 + 0.5**0.5 / 2, 0.5, 0.5 - 0.5**0.5 / 2, 0])
    assert Schedule(kind="linear", warmup=9).factor(9, 5) == 1  # a warm-up longer than the run


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "cosin"}, "kind must be constant, linear or cosine, got 'cosin'"),
        ({"warmup": -1}, "warmup must be at least 0 steps, got -1"),
        ({"floor": 1.5}, "floor must be between 0 and 1, got 1.5"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Schedule(**wrong)  # type: ignore[arg-type]


def test_plateau_goes_as_torchs() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=2)
    ours = Plateau(by=0.3, patience=2)
    losses = [5, 4, 4, 4.1, 3.9999, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 2.99999, 2.5, 9, 9, 9, 9, 9]
    for i, loss in enumerate(losses):
        optimizer.step()
        theirs.step(loss)
        if i % 3 == 0:  # through JSON, as through a checkpoint
            state = json.loads(json.dumps(ours.state_dict()))
            ours = Plateau(by=0.3, patience=2)
            ours.load_state_dict(state)
        ours.look(loss)
        assert ours.factor == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours.factor < 0.1


def test_plateau_stops_at_its_floor_and_refuses_nonsense() -> None:
    plateau = Plateau(by=0.1, patience=0, floor=0.05)
    for _ in range(5):
        plateau.look(1.0)
    assert plateau.factor == 0.05
    with pytest.raises(ValueError, match="by must be between 0 and 1, got 1"):
        Plateau(by=1)
    with pytest.raises(ValueError, match="patience must be at least 0 looks"):
        Plateau(patience=-1)


def test_each_group_keeps_its_first_rate() -> None:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5},
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": torch.tensor(2.0)},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    tensor = optimizer.param_groups[1]["lr"]
    assert set_rate(optimizer, 0.5) == 0.25
    assert set_rate(optimizer, 0.1) == pytest.approx(0.05)
    assert optimizer.param_groups[1]["lr"] is tensor
    assert float(tensor) == pytest.approx(0.2)

import sys

import pytest
import torch
from torch import nn

from penstock.recipes.training.optimizer import make_optimizer


def test_matrices_decay_and_vectors_do_not() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = make_optimizer("adamw", module.named_parameters(), rate=0.1, decay=0.3)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    got = {name: decays[id(p)] for name, p in module.named_parameters()}
    assert got == {"0.weight": 0.3, "0.bias": 0, "1.weight": 0, "1.bias": 0}
    assert all(g["lr"] == 0.1 for g in optimizer.param_groups)


def test_a_group_that_would_be_empty_is_not_there() -> None:
    module = nn.Linear(3, 2, bias=False)
    assert len(make_optimizer("adamw", module.named_parameters(), rate=0.1).param_groups) == 1


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    named = list(nn.Linear(3, 2).named_parameters())
    with pytest.raises(ValueError, match="adamw8bit_ao or adamw4bit_ao, got 'adam'"):
        make_optimizer("adam", named, rate=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameter to train"):
        make_optimizer("adamw", [], rate=0.1)
    with pytest.raises(ValueError, match="is for CUDA and the parameters are on cpu"):
        make_optimizer("adamw8bit", named, rate=0.1)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ImportError, match="adamw8bit_ao needs torchao: pip install torchao"):
        make_optimizer("adamw8bit_ao", named, rate=0.1)


def test_torchaos_states_are_of_8_bits_and_train() -> None:
    pytest.importorskip("torchao")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(64, 128))
    optimizer = make_optimizer("adamw8bit_ao", [("w", weight)], rate=0.01)
    first = float(weight.detach().square().sum())
    with torch.compiler.set_stance("force_eager"):  # compiling takes 20 s
        for _ in range(3):
            weight.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert optimizer.state[weight]["exp_avg"].codes.dtype == torch.uint8
    assert float(weight.detach().square().sum()) < first

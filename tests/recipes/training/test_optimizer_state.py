import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from penstock.recipes.training.optimizer import make_optimizer
from penstock.recipes.training.optimizer_state import pack_optimizer, unpack_optimizer

Make = Callable[[nn.Module], torch.optim.Optimizer]


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.linspace(-1, 1, 128).view(2, 64) * (step + 1)
        module(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    "make",
    [
        lambda m: make_optimizer("adamw", m.named_parameters(), rate=0.01),
        lambda m: torch.optim.AdamW(m.parameters(), amsgrad=True, lr=0.01),
        lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9),
        lambda m: torch.optim.SGD(m.parameters(), lr=0.01),
        lambda m: make_optimizer("adamw8bit_ao", m.named_parameters(), rate=0.01),
        lambda m: make_optimizer("adamw4bit_ao", m.named_parameters(), rate=0.01),
    ],
    ids=["adamw", "amsgrad", "momentum", "sgd", "8bit", "4bit"],
)
def test_goes_on_bit_for_bit(make: Make) -> None:
    with torch.compiler.set_stance("force_eager"):
        whole = model()
        optimizer = make(whole)
        train(whole, optimizer, range(3))
        weights = {n: p.detach().clone() for n, p in whole.named_parameters()}
        tensors, rest = pack_optimizer(optimizer, dict(whole.named_parameters()))
        saved = {name: t.clone() for name, t in tensors.items()}
        train(whole, optimizer, range(3, 6))

        again = model()
        named = dict(again.named_parameters())
        optimizer = make(again)
        rates = [float(g["lr"]) for g in optimizer.param_groups]
        targets = unpack_optimizer(optimizer, named, json.loads(json.dumps(rest)))
        assert [float(g["lr"]) for g in optimizer.param_groups] == rates
        assert all(p.grad is None for p in named.values())
        assert all(
            torch.equal(p, q) for p, q in zip(again.parameters(), model().parameters(), strict=True)
        )
        assert {n: (t.dtype, t.shape) for n, t in targets.items()} == {
            n: (t.dtype, t.shape) for n, t in saved.items()
        }
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(saved[name])
            for name, p in named.items():
                p.copy_(weights[name])
        train(again, optimizer, range(3, 6))
    assert all(
        torch.equal(p, q) for p, q in zip(again.parameters(), whole.parameters(), strict=True)
    )


def test_names_not_numbers() -> None:
    module = model()
    named = dict(module.named_parameters())
    named["2.bias"].requires_grad_(False)
    trained = {n: p for n, p in named.items() if p.requires_grad}
    optimizer = make_optimizer("adamw", trained.items(), rate=0.01)
    train(module, optimizer, range(1))
    tensors, rest = pack_optimizer(optimizer, trained)
    assert set(rest) == set(trained)
    keys = ("step", "exp_avg", "exp_avg_sq")
    assert set(tensors) == {f"{name}/{key}" for name in trained for key in keys}


def test_a_parameter_that_had_no_gradient_has_no_state() -> None:
    module = model()
    named = dict(module.named_parameters())
    optimizer = make_optimizer("adamw", named.items(), rate=0.01)
    module[0](torch.ones(1, 64)).sum().backward()
    optimizer.step()
    _, rest = pack_optimizer(optimizer, named)
    assert set(rest) == {"0.weight", "0.bias"}
    new = make_optimizer("adamw", named.items(), rate=0.01)
    named["2.bias"].grad = torch.ones(64)  # one that lies about makes no state
    assert {name.split("/")[0] for name in unpack_optimizer(new, named, rest)} == set(rest)


def test_values_that_are_no_tensors_go_through_json() -> None:
    module = nn.Linear(2, 2)
    named = dict(module.named_parameters())
    optimizer = torch.optim.SGD(named.values(), lr=0.1, momentum=0.9)
    train_one = module(torch.ones(1, 2)).sum()
    train_one.backward()
    optimizer.step()
    for p in named.values():
        optimizer.state[p].update(step=4, kind=None)
    _, rest = pack_optimizer(optimizer, named)
    assert rest["weight"] == {"step": 4, "kind": None}
    new = torch.optim.SGD(named.values(), lr=0.1, momentum=0.9)
    unpack_optimizer(new, named, rest)
    assert new.state[module.weight]["step"] == 4


def test_refusals() -> None:
    module = nn.Linear(2, 2)
    named = dict(module.named_parameters())
    optimizer = torch.optim.SGD(named.values(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="1 parameters .* for one lora_A: resume with the same"):
        unpack_optimizer(optimizer, named, {"weight": {}, "lora_A": {}})
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"a parameter \[2\] of the optimizer has no name"):
        pack_optimizer(optimizer, {"weight": module.weight})
    optimizer.state[module.weight]["list"] = [1]
    with pytest.raises(TypeError, match="state weight/list is a list, which is not saved"):
        pack_optimizer(optimizer, named)

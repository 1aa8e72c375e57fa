"""Fingerprints: all that changes outputs counts, and nothing else."""

import copy
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from penstock.transforms import fingerprint


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(3, 4)
        self.decoder = torch.nn.Linear(4, 3)
        self.register_buffer("steps", torch.arange(5))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.config: Any = {"act": "silu", "groups": 4, "_name_or_path": "a", "dtype": "float32"}


@pytest.fixture
def net() -> Net:
    torch.random.default_generator.manual_seed(0)
    return Net()


def test_it_is_the_same_for_the_same_model(net: Net) -> None:
    mark = fingerprint(net)
    assert len(mark) == 32
    assert int(mark, 16)
    other = copy.deepcopy(net)
    assert fingerprint(other) == mark
    other.config = {"dtype": "bfloat16", "_name_or_path": "b", "groups": 4, "act": "silu"}
    other.scratch += 1
    assert fingerprint(other) == mark
    other.one.weight = torch.nn.Parameter(other.one.weight.data.T.contiguous().T)
    assert fingerprint(other) == mark
    turned = Net()
    del turned.one, turned.decoder
    turned.decoder, turned.one = copy.deepcopy(net.decoder), copy.deepcopy(net.one)
    assert list(turned.state_dict()) != list(net.state_dict())
    assert fingerprint(turned) == mark
    assert fingerprint(SimpleNamespace(_orig_mod=net)) == mark  # type: ignore[arg-type]


def change(name: str, net: Net) -> Net:
    with torch.no_grad():
        if name == "ulp":
            net.one.bias[2] = torch.nextafter(net.one.bias[2], torch.tensor(9.0))
        elif name == "buffer":
            net.steps[4] = 5
        elif name == "dtype":
            net.bfloat16()
        elif name == "shape":
            net.one.weight = torch.nn.Parameter(net.one.weight.reshape(3, 4))
        elif name == "name":
            net.two = net.one
            del net.one
        elif name == "swap":
            net.one.weight[0], net.one.weight[1] = net.one.weight[1].clone(), net.one.weight[0]
        elif name == "config":
            net.config = {**net.config, "groups": 2}
        elif name == "class":
            net.__class__ = type("Other", (Net,), {})
    return net


@pytest.mark.parametrize(
    "name", ["ulp", "buffer", "dtype", "shape", "name", "swap", "config", "class"]
)
def test_what_counts(net: Net, name: str) -> None:
    before = fingerprint(net)
    assert fingerprint(change(name, copy.deepcopy(net))) != before
    assert fingerprint(net) == before


def test_what_is_left_out(net: Net) -> None:
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.decoder.weight += 1
    other.config["groups"] = 9
    assert fingerprint(net) != fingerprint(other)
    kept = {"without": ("decoder.",), "ignore": ("groups",)}
    assert fingerprint(net, **kept) == fingerprint(other, **kept)


def test_each_byte_of_several_chunks_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # The function has its module's name.
    monkeypatch.setattr(sys.modules["penstock.transforms.fingerprint"], "CHUNK", 8)
    net = torch.nn.Module()
    net.register_buffer("weight", torch.arange(37, dtype=torch.uint8))
    marks = {fingerprint(net)}
    for i in range(37):
        net.weight[i] += 1
        marks.add(fingerprint(net))
        net.weight[i] -= 1
    assert len(marks) == 38


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bool, torch.bfloat16, torch.int8])
def test_all_types(dtype: torch.dtype) -> None:
    net = torch.nn.Module()
    net.register_buffer("weight", torch.zeros(3, 5).to(dtype))
    net.register_buffer("scalar", torch.ones(()).to(dtype))
    net.register_buffer("empty", torch.ones(0).to(dtype))
    before = fingerprint(net)
    net.weight[1, 1] = 1
    assert fingerprint(net) != before


def test_transformers_configs(t5: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    model = transformers.T5EncoderModel(config)
    mark = fingerprint(model)
    model.config.use_cache = not model.config.use_cache
    model.config._name_or_path = "elsewhere"
    assert fingerprint(model) == mark
    model.config.relative_attention_max_distance = 64
    assert fingerprint(model) != mark


def test_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="the weight weight has no data"):
        fingerprint(torch.nn.Linear(2, 2, device="meta"))

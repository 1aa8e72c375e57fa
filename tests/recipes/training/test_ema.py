import pytest
import torch

from penstock.recipes.training.ema import Ema


def module(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    layers = torch.nn.Linear(3, 2).to(dtype)
    layers.bias.requires_grad_(False)
    with torch.no_grad():
        layers.weight.copy_(torch.arange(6).reshape(2, 3))
    return layers


def move(layers: torch.nn.Module, by: float) -> None:
    with torch.no_grad():
        for p in layers.parameters():
            p.add_(by)


def test_by_hand() -> None:
    layers = module()
    ema = Ema(layers.named_parameters(), 0.25)
    assert list(ema.tensors()) == ["weight"]  # what is not trained has no average
    assert [ema.decay_at(s) for s in (0, 1, 2, 3)] == [0.1, 2 / 11, 0.25, 0.25]
    want = layers.weight.detach().double()
    for step in range(4):
        move(layers, 1.0)
        ema.update(step)
        decay = [0.1, 2 / 11, 0.25, 0.25][step]
        want = decay * want + (1 - decay) * layers.weight.detach().double()
    torch.testing.assert_close(ema.tensors()["weight"].double(), want)


def test_bf16_weights_have_a_float32_average() -> None:
    layers = module(torch.bfloat16)
    ema = Ema(layers.named_parameters(), 0.999)
    for step in range(20_000, 20_010):
        move(layers, 1.0)
        ema.update(step)
    average = ema.tensors()["weight"]
    assert average.dtype == torch.float32
    # 55 thousandths in all: bfloat16, whose steps at 5 are 1/32, would not have moved.
    torch.testing.assert_close(average.flatten()[5] - 5, torch.tensor(0.055), atol=3e-4, rtol=0)


def test_applied_and_back() -> None:
    layers = module()
    ema = Ema(layers.named_parameters(), 0.5)
    move(layers, 0.1)
    mine = layers.weight.detach().clone()
    with pytest.raises(KeyError), ema.applied():
        assert torch.is_grad_enabled()
        assert torch.equal(layers.weight, ema.tensors()["weight"])
        assert not torch.equal(layers.weight, mine)
        raise KeyError
    assert torch.equal(layers.weight, mine)


def test_its_tensors_are_filled_in_place() -> None:
    layers = module()
    ema = Ema(layers.named_parameters(), 0.5)
    ema.tensors()["weight"].fill_(7)
    with ema.applied():
        assert layers.weight.eq(7).all()


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_nonsense_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
        Ema([], decay)

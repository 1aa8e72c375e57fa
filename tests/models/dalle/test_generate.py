"""Drawing codes."""

import torch

from penstock.models.dalle.generate import _Draw, evaluating


def test_only_the_likeliest_are_drawn():
    logits = torch.tensor([[0.0, 5.0, 4.0, -1.0]]).repeat(2000, 1)
    draw = _Draw(8, 0.75, 1.0, torch.Generator().manual_seed(0))  # a quarter of all eight
    assert set(draw(logits).flatten().tolist()) == {1, 2}
    assert set(_Draw(10, 1.0, 1.0, None)(logits).flatten().tolist()) == {1}


def test_shares_are_those_of_the_softmax():
    logits = torch.tensor([[0.0, 1.0, -1.0]])
    for temperature in (1.0, 0.5):
        draw = _Draw(3, 0.0, temperature, torch.Generator().manual_seed(0))
        shares = draw(logits.repeat(20000, 1)).flatten().bincount() / 20000
        torch.testing.assert_close(shares, (logits[0] / temperature).softmax(0), atol=0.015, rtol=0)


def test_no_temperature_takes_the_likeliest():
    logits = torch.randn(5, 9)
    assert torch.equal(_Draw(9, 0.0, 0, None)(logits)[:, 0], logits.argmax(1))


def test_evaluating_puts_back_each_part():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    model[1].eval()
    with evaluating(model):
        assert not model[0].training
    assert model[0].training
    assert not model[1].training

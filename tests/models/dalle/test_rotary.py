"""Rotary positions."""

import math

import pytest
import torch

from penstock.models.dalle.rotary import rotary_turns, turn


def test_turns_of_known_positions():
    turns = rotary_turns(4, 3, 24)  # a third of 24: four pairs for each of three
    assert turns.shape == (4 + 9, 12)
    torch.testing.assert_close(turns.abs(), torch.ones(13, 12))
    angle = turns[2].angle()
    assert angle[0].item() == pytest.approx(2.0)
    assert angle[1].item() == pytest.approx(2 * 10_000 ** (-2 / 8))
    # Of the image, row -1 and column 0: frequencies from pi to 5 pi.
    image = turns[4 + 1]
    for i in range(4):
        frequency = (1 + 4 * i / 3) * math.pi
        expected = torch.polar(torch.ones(2), torch.tensor([-frequency, 0.0]))
        torch.testing.assert_close(image[[4 + i, 8 + i]], expected, atol=1e-5, rtol=0)


def test_image_and_text_are_far_apart():
    turns = rotary_turns(4, 3, 24)
    image, text = torch.tensor([8192.0]), torch.tensor([10 * math.pi])
    torch.testing.assert_close(turns[4:, 0], torch.polar(torch.ones(1), image).expand(9))
    assert (turns[:4, 4:] == turns[0, 4:]).all()
    torch.testing.assert_close(turns[:1, 4], torch.polar(torch.ones(1), -text))
    slow = torch.polar(torch.ones(1), -10 * 7 / 3 * torch.tensor([math.pi]))
    torch.testing.assert_close(turns[:1, 9], slow, atol=1e-4, rtol=0)


def test_the_rest_does_not_turn():
    assert (rotary_turns(4, 3, 64)[:, 30:] == 1).all()


def test_turn_is_a_rotation_of_pairs():
    x = torch.randn(2, 5, 3, 4, 8)
    angles = torch.randn(5, 4)
    out = turn(x, torch.polar(torch.ones(5, 4), angles))
    a = angles[:, None, None]
    torch.testing.assert_close(out[..., 0::2], x[..., 0::2] * a.cos() - x[..., 1::2] * a.sin())
    torch.testing.assert_close(out[..., 1::2], x[..., 1::2] * a.cos() + x[..., 0::2] * a.sin())


def test_halves_are_turned_as_floats():
    x = torch.randn(1, 5, 3, 2, 8)
    turns = torch.polar(torch.ones(5, 4), torch.randn(5, 4))
    out = turn(x.bfloat16(), turns)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, turn(x.bfloat16().float(), turns).bfloat16())


def test_odd_heads_are_refused():
    with pytest.raises(ValueError, match="even dim_head, got 15"):
        rotary_turns(4, 3, 15)

"""A layer's halves."""

import torch
import torch.nn.functional as F

from penstock.models.dalle.attention import Pass
from penstock.models.dalle.layers import FeedForward, Half


def test_feed_forward():
    network, x = FeedForward(6, mult=3), torch.randn(2, 5, 6)
    inner = network.to_inner(x)
    expected = network.to_out(inner[..., :18] * F.gelu(inner[..., 18:]))
    torch.testing.assert_close(network(x), expected)


def test_norms_and_scale():
    for sandwich in (False, True):
        half = Half(FeedForward(6), 6, layer=0, sandwich=sandwich, shift=False)
        with torch.no_grad():
            half.scale.copy_(torch.arange(6.0))
        x, stream = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
        out = half.inner(F.layer_norm(x, (6,)))
        out = F.layer_norm(out, (6,)) if sandwich else out
        found = half.add(stream, x, Pass(None))
        torch.testing.assert_close(found, stream + out * torch.arange(6.0))


def test_dropout_is_within_the_network():
    network = FeedForward(6, dropout=0.5)
    x = torch.randn(1, 5, 6)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))

"""The networks of VQGAN."""

import torch

from penstock.models.dalle.vq_network import (
    AttnBlock,
    Downsample,
    VQDecoder,
    VQEncoder,
    VQSizes,
    nearest,
)

SIZES = VQSizes(
    ch=32,
    ch_mult=(1, 1, 2),
    num_res_blocks=2,
    attn_resolutions=(8,),
    resolution=32,
    z_channels=4,
)


@torch.no_grad()
def test_sizes():
    encoder, decoder = VQEncoder(SIZES), VQDecoder(SIZES)
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 8, 8, 8)  # double_z
    assert decoder(torch.rand(2, 4, 8, 8)).shape == (2, 3, 32, 32)
    assert [len(level.attn) for level in encoder.down] == [0, 0, 2]
    assert [len(level.block) for level in decoder.up] == [3, 3, 3]
    assert [len(level.attn) for level in decoder.up] == [0, 0, 3]


@torch.no_grad()
def test_attention_among_pixels():
    block, x = AttnBlock(32), torch.randn(2, 32, 3, 5)
    h = block.norm(x)
    q, k, v = (part(h).flatten(2) for part in (block.q, block.k, block.v))
    weights = (q.mT @ k / 32**0.5).softmax(-1)
    expected = x + block.proj_out((v @ weights.mT).unflatten(2, (3, 5)))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_halves_are_padded_below_and_to_the_right():
    step = Downsample(1)
    step.conv.weight.copy_(torch.eye(3).flip(1)[None, None])  # above right to below left
    step.conv.bias.zero_()
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert step(x).flatten().tolist() == [2 + 5 + 8, 7 + 10, 10 + 13, 15]


def test_nearest():
    table = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    x = torch.tensor([[0.4, 0.0], [0.6, 0.1], [0.0, 1.6], [9.0, 0.0]]).T.view(1, 2, 2, 2)
    assert nearest(x, table).tolist() == [[0, 1, 2, 1]]

"""The VAE's codes, reconstructions and losses."""

import math

import pytest
import torch
import torch.nn.functional as F


def small(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("blocks", [0, 2])
def test_shapes(make_vae, blocks):
    vae = make_vae(num_resnet_blocks=blocks)
    assert vae(small(), return_logits=True).shape == (2, 20, 4, 4)
    codes = vae.get_codebook_indices(small())
    assert (codes.shape, codes.dtype) == ((2, 16), torch.int64)
    assert vae.decode(codes).shape == (2, 3, 16, 16)


def test_reconstructions_are_images(make_vae):
    vae = make_vae()
    with torch.no_grad():
        vae.decoder[-1].bias.copy_(torch.tensor([-3.0, 0.0, 3.0]))
    for images in (vae(small()), vae.decode(vae.get_codebook_indices(small()))):
        assert 0 <= images.min() <= images.max() <= 1
        assert images[:, 0].max() == 0
        assert 0.2 < images[:, 1].mean() < 0.8
        assert images[:, 2].min() == 1


def test_loss_is_of_the_normalised_image(make_vae):
    vae = make_vae(normalization=((0.4, 0.3, 0.2), (0.25, 0.25, 0.25)))
    torch.manual_seed(5)
    loss, recons = vae(small(), return_loss=True, return_recons=True)
    assert 0 < recons.min() < recons.max() < 1  # nothing is cut, so the loss follows from it
    torch.testing.assert_close(loss, F.mse_loss(recons, small()) * 16)
    assert not recons.requires_grad
    loss.backward()


@pytest.mark.parametrize("normalization", [None, ((0, 0, 0), (1, 1, 1))])
def test_no_normalisation(make_vae, normalization):
    vae = make_vae(normalization=normalization)
    assert torch.equal(vae.normalize(small()), small())


def test_divergence_does_not_grow_with_the_batch(make_vae):
    vae = make_vae(kl_div_loss_weight=1.0)
    one, both = small(1), small(1).expand(2, -1, -1, -1)
    of_one = vae.divergence(vae(one, return_logits=True))
    torch.testing.assert_close(vae.divergence(vae(both, return_logits=True)), of_one)
    summed = make_vae(kl_div_loss_weight=1.0, kl_reduction="sum")
    torch.testing.assert_close(summed.divergence(vae(both, return_logits=True)), of_one * 32)


def test_divergence_is_that_of_the_even_choice(make_vae):
    vae = make_vae()
    assert vae.divergence(torch.zeros(2, 20, 4, 4)).item() == pytest.approx(0, abs=1e-6)
    sure = torch.full((2, 20, 4, 4), -1e4)
    sure[:, 3] = 0
    assert vae.divergence(sure).item() == pytest.approx(math.log(20))


def test_divergence_has_its_weight(make_vae):
    losses = []
    for weight in (0.0, 0.5):
        vae = make_vae(kl_div_loss_weight=weight)
        torch.manual_seed(6)
        losses.append(vae(small(), return_loss=True))
    torch.testing.assert_close(
        losses[1] - losses[0], 0.5 * vae.divergence(vae(small(), return_logits=True))
    )


def test_straight_through_uses_one_code(make_vae):
    vae = make_vae(straight_through=True)
    torch.manual_seed(7)
    found = vae(small(1))
    torch.manual_seed(7)
    logits = vae(small(1), return_logits=True)
    codes = F.gumbel_softmax(logits, tau=0.9, dim=1, hard=True).argmax(1).flatten(1)
    torch.testing.assert_close(found, vae.decode(codes))


def test_reinmax_changes_the_gradient_alone(make_vae):
    found = []
    for reinmax in (False, True):
        vae = make_vae(straight_through=True, reinmax=reinmax)
        torch.manual_seed(8)
        loss = vae(small(), return_loss=True)
        loss.backward()
        found.append((loss.item(), vae.encoder[0][0].weight.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert not torch.allclose(found[0][1], found[1][1], rtol=1e-2)


def test_temperature_of_a_pass(make_vae):
    vae = make_vae()
    found = []
    for temp in (None, 0.9, 0.1):
        torch.manual_seed(9)
        found.append(vae(small(), temp=temp))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_training_mode_is_left_alone(make_vae):
    vae = make_vae()
    vae.get_codebook_indices(small())
    assert vae.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 24}, "power of 2, got 24"),
        ({"num_layers": 0}, "1 to 4 for images of 16 pixels, got 0"),
        ({"num_layers": 5}, "got 5"),
        ({"kl_reduction": "batchmean"}, "'mean' or 'sum'"),
        ({"channels": 5}, "5 means and deviations"),
    ],
)
def test_bad_arguments(make_vae, settings, message):
    with pytest.raises(ValueError, match=message):
        make_vae(**settings)


def test_bad_inputs(make_vae):
    vae = make_vae()
    with pytest.raises(ValueError, match=r"\[B, 3, 16, 16\], got \[1, 3, 8, 16\]"):
        vae(torch.zeros(1, 3, 8, 16))
    with pytest.raises(ValueError, match="a square, got 15"):
        vae.decode(torch.zeros(1, 15, dtype=torch.long))

"""Models with the same weights in dalle-pytorch 1.6.6 and in penstock, and how far they differ."""

from collections.abc import Iterator
from typing import Any

import dalle_pytorch
import torch
from torch import Tensor, nn

from penstock.models import dalle as penstock
from penstock.models.dalle.convert import convert_weights

TEXTS, LENGTH, WORDS = 3, 11, 50


def shaken(model: nn.Module, seed: int) -> nn.Module:
    """Move all trained weights by noise, so that none is as small or as even as it began."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            size = 0.5 if name.endswith("scale") else 0.05
            if not name.endswith("freqs"):
                weight += size * torch.randn(weight.shape, generator=draw)
    return model


def vaes(**settings: Any) -> tuple[nn.Module, nn.Module]:
    settings = {"image_size": 32, "num_layers": 2, "num_tokens": 24, "codebook_dim": 20} | settings
    settings["hidden_dim"] = 12
    torch.manual_seed(0)
    theirs = shaken(dalle_pytorch.DiscreteVAE(**settings), 1)
    ours = penstock.DiscreteVAE(**settings, kl_reduction="sum")
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def dalles(**settings: Any) -> tuple[nn.Module, nn.Module]:
    settings = {"dim": 36, "depth": 3, "heads": 3, "dim_head": 16} | settings
    settings |= {"num_text_tokens": WORDS, "text_seq_len": LENGTH}
    their_vae, our_vae = vaes()
    torch.manual_seed(1)
    theirs = shaken(dalle_pytorch.DALLE(vae=their_vae, **settings), 2)
    ours = penstock.DALLE(vae=our_vae, **settings)
    ours.load_state_dict(convert_weights(theirs.state_dict()))
    return theirs, ours


def clips() -> tuple[nn.Module, nn.Module]:
    settings: dict[str, Any] = {
        "dim_text": 24,
        "dim_image": 32,
        "dim_latent": 16,
        "num_text_tokens": WORDS,
        "text_enc_depth": 2,
        "text_seq_len": LENGTH,
        "text_heads": 2,
        "visual_enc_depth": 2,
        "visual_heads": 2,
        "visual_image_size": 32,
        "visual_patch_size": 8,
    }
    torch.manual_seed(2)
    theirs = shaken(dalle_pytorch.CLIP(**settings), 3)
    ours = penstock.CLIP(**settings)
    ours.load_state_dict(convert_weights(theirs.state_dict()))
    return theirs, ours


def inputs() -> tuple[Tensor, Tensor]:
    """Return texts with paddings, and images in [0, 1]."""
    draw = torch.Generator().manual_seed(3)
    text = torch.randint(1, WORDS, (TEXTS, LENGTH), generator=draw)
    text[0, 4:] = 0
    text[1, 9:] = 0
    return text, torch.rand(TEXTS, 3, 32, 32, generator=draw)


def far(ours: Tensor, theirs: Tensor, scale: float = 1.0) -> float:
    """Return the largest difference, as a share of the largest number if that is above scale."""
    assert ours.shape == theirs.shape, f"{[*ours.shape]} is not {[*theirs.shape]}"
    masked = theirs == -torch.finfo(theirs.dtype).max
    assert torch.equal(masked, ours == -torch.finfo(ours.dtype).max)
    ours, theirs = ours[~masked].double(), theirs[~masked].double()
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=scale)).item()


def far_gradients(ours: nn.Module, theirs: nn.Module) -> float:
    """Return the largest difference among all weights' gradients, by the largest gradient."""
    expected = convert_weights({n: p.grad for n, p in gradients(theirs)})
    found = dict(gradients(ours))
    assert found.keys() <= expected.keys(), found.keys() - expected.keys()
    largest = max(grad.abs().max().item() for grad in expected.values())
    missing = [n for n in expected.keys() - found.keys() if expected[n].abs().max() > 0]
    assert largest > 0
    assert not missing, missing
    return max(far(found[name].grad, expected[name], largest) for name in found)


def gradients(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    yield from ((n, p) for n, p in model.named_parameters() if p.grad is not None)

"""Where dalle-pytorch 1.6.6 is right: how far penstock is from it, case by case."""

from collections.abc import Iterator
from typing import Any

import torch
from same import clips, dalles, far, far_gradients, inputs, vaes

VAES: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual blocks": {"num_resnet_blocks": 2},
    "smooth L1": {"smooth_l1_loss": True},
    "straight-through": {"straight_through": True},
    "ReinMax": {"straight_through": True, "reinmax": True},
    "summed KL": {"kl_div_loss_weight": 0.01},
    "other normalisation": {"normalization": ((0.4, 0.3, 0.2), (0.2, 0.3, 0.4))},
    "three halvings": {"num_layers": 3, "temperature": 0.5},
}
KINDS = ("full", "axial_row", "axial_col", "conv_like")
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "reversible": {"reversible": True},
    "learnt positions": {"rotary_emb": False},
    "no shift": {"shift_tokens": False},
    "sandwich norm": {"sandwich_norm": True},
    "stable": {"stable": True},
    "tied embeddings": {"share_input_output_emb": True},
    "shared layers": {"shared_attn_ids": (0, 1, 0), "shared_ff_ids": (0, 0, 1)},
    "image weight 3": {"loss_img_weight": 3},
    "all": {
        "reversible": True,
        "rotary_emb": False,
        "sandwich_norm": True,
        "stable": True,
        "share_input_output_emb": True,
        "shared_ff_ids": (0, 0, 1),
    },
}


def vae_cases() -> Iterator[tuple[str, dict[str, float]]]:
    images = inputs()[1]
    for name, settings in VAES.items():
        theirs, ours = vaes(**settings)
        codes = ours.get_codebook_indices(images)
        means, deviations = (torch.tensor(t)[:3].view(3, 1, 1) for t in theirs.normalization)

        def pixels(x: torch.Tensor, means=means, deviations=deviations) -> torch.Tensor:
            return (x * deviations + means).clamp(0, 1)

        torch.manual_seed(4)
        their_loss, their_recons = theirs(images, return_loss=True, return_recons=True)
        torch.manual_seed(4)
        our_loss, our_recons = ours(images, return_loss=True, return_recons=True)
        their_loss.backward()
        our_loss.backward()
        yield (
            f"VAE, {name}",
            {
                "codes": (codes != theirs.get_codebook_indices(images)).double().mean().item(),
                "decoded": far(ours.decode(codes), pixels(theirs.decode(codes))),
                "reconstructions": far(our_recons, pixels(their_recons)),
                "loss": far(our_loss, their_loss),
                "gradients": far_gradients(ours, theirs),
            },
        )


def clip_cases() -> Iterator[tuple[str, dict[str, float]]]:
    text, images = inputs()
    for name, mask in {"no mask": None, "mask": text != 0}.items():
        theirs, ours = clips()
        our_loss = ours(text, images, text_mask=mask, return_loss=True)
        their_loss = theirs(text, images, text_mask=mask, return_loss=True)
        our_loss.backward()
        their_loss.backward()
        yield (
            f"CLIP, {name}",
            {
                "similarity": far(
                    ours(text, images, text_mask=mask), theirs(text, images, text_mask=mask)
                ),
                "loss": far(our_loss, their_loss),
                "gradients": far_gradients(ours, theirs),
            },
        )


def dalle_cases() -> Iterator[tuple[str, dict[str, float]]]:
    text, images = inputs()
    for kind in (*KINDS, KINDS):
        for option, settings in OPTIONS.items():
            if "shared_attn_ids" in settings and not isinstance(kind, str):
                settings = {**settings, "shared_attn_ids": (0, 1, 2, 3)}
            depth = 4 if kind is KINDS else 3
            theirs, ours = dalles(
                attn_types=kind if kind is KINDS else (kind,), depth=depth, **settings
            )
            our_loss = ours(text, images, return_loss=True)
            their_loss = theirs(text, images, return_loss=True)
            our_loss.backward()
            their_loss.backward()
            codes = theirs.vae.get_codebook_indices(images)
            yield (
                f"DALL-E, {'all kinds' if kind is KINDS else kind}, {option}",
                {
                    "logits": far(ours(text, images), theirs(text, images)),
                    "of a text": far(ours(text), theirs(text)),
                    "of a part": far(ours(text, codes[:, :13]), theirs(text, codes[:, :13])),
                    "loss": far(our_loss, their_loss),
                    "gradients": far_gradients(ours, theirs),
                    "greedy codes": greedy(ours, theirs, text),
                },
            )


def greedy(ours: Any, theirs: Any, text: torch.Tensor) -> float:
    """Return the share of the greedily drawn codes that differ."""
    found = []
    for model in (ours, theirs):
        kept: list[torch.Tensor] = []
        decode = model.vae.decode
        model.vae.decode = lambda codes, kept=kept, decode=decode: (
            kept.append(codes) or decode(codes)
        )
        model.generate_images(text.clone(), filter_thres=0.9999)
        del model.vae.decode
        found += kept
    return (found[0] != found[1]).double().mean().item()


def all_cases() -> Iterator[tuple[str, dict[str, float]]]:
    yield from vae_cases()
    yield from clip_cases()
    yield from dalle_cases()

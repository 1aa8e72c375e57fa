"""Seconds of a training step and of generation, dalle-pytorch 1.6.6 and penstock in turns."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import dalle_pytorch
import torch

from penstock.models import dalle as penstock
from penstock.models.dalle.convert import convert_weights

SETTINGS: dict[str, Any] = {"dim": 256, "depth": 4, "heads": 4, "dim_head": 64}
BATCH = 4


def pair(kind: str, text: int, width: int, words: int) -> list[Any]:
    """Return their model and ours, of texts of ``text`` ids and width x width codes."""
    vae = {"image_size": width * 2, "num_layers": 1, "num_tokens": 512, "hidden_dim": 8}
    vae |= {"codebook_dim": 8}
    settings = SETTINGS | {"num_text_tokens": words, "text_seq_len": text, "attn_types": (kind,)}
    theirs = dalle_pytorch.DALLE(vae=dalle_pytorch.DiscreteVAE(**vae), **settings)
    ours = penstock.DALLE(vae=penstock.DiscreteVAE(**vae), **settings)
    ours.load_state_dict(convert_weights(theirs.state_dict()))
    return [theirs, ours]


def in_turns(jobs: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Return the seconds of each job in each round; the first round is left out."""
    found: list[list[float]] = [[] for _ in jobs]
    for i in range(rounds + 1):
        for job, seconds in zip(jobs, found, strict=True):
            start = time.process_time()
            job()
            if i:
                seconds.append(time.process_time() - start)
    return found


def compared(jobs: list[Callable[[], Any]], rounds: int) -> dict[str, float]:
    theirs, ours = in_turns(jobs, rounds)
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {
        "theirs_s": round(median(theirs), 4),
        "ours_s": round(median(ours), 4),
        "times": round(median(ratios), 2),
        "times_least": round(min(ratios), 2),
        "times_most": round(max(ratios), 2),
    }


def training(kind: str, text: int, width: int, vocabulary: int, rounds: int) -> dict[str, float]:
    """Compare a step: loss, gradients, Adam."""
    models = pair(kind, text, width, vocabulary)
    words = torch.randint(1, vocabulary, (BATCH, text))
    codes = torch.randint(0, 512, (BATCH, width**2))

    def step(model: Any) -> Callable[[], None]:
        adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4)

        def run() -> None:
            adam.zero_grad()
            model(words, codes, return_loss=True).backward()
            adam.step()

        return run

    return compared([step(model) for model in models], rounds)


def generation(kind: str, width: int, vocabulary: int, rounds: int) -> dict[str, float]:
    """Compare the drawing of width x width codes for one text, both with use_cache."""
    words = torch.randint(1, vocabulary, (1, 32))

    def draw(model: Any) -> Callable[[], None]:
        return lambda: model.generate_images(words.clone(), use_cache=True)

    return compared([draw(model) for model in pair(kind, 32, width, vocabulary)], rounds)

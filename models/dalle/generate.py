"""Drawing codes one after another."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .cache import Cache
from .code_sequence import CodeSequence


def generate_codes(
    model: CodeSequence,
    text: Tensor,
    codes: Tensor,
    *,
    visible: Tensor | None,
    filter_thres: float,
    temperature: float,
    cond_scale: float,
    use_cache: bool,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the codes of whole images, int64 [B, N], of which ``codes``, [B, n], are the first.

    `DALLE.generate_images` says what the arguments are. With guidance the texts and their
    paddings are one batch of 2B, with one cache, so that neither can change the other.
    """
    guided = cond_scale != 1
    if guided:
        text = torch.cat([text, torch.zeros_like(text)])
        visible = None if visible is None else torch.cat([visible, torch.ones_like(visible)])
    ids = model.text_ids(text)
    cache = Cache(model.layout.length) if use_cache else None
    draw = _Draw(model.total_tokens, filter_thres, temperature, generator)
    for _ in range(codes.shape[1], model.image_seq_len):
        both = codes.repeat(2, 1) if guided else codes
        hidden = model.hidden(ids, both, visible, cache)[:, -1]
        logits = model.image_logits(hidden)
        if guided:
            with_text, without = logits.chunk(2)
            logits = without + (with_text - without) * cond_scale
        codes = torch.cat([codes, draw(logits)], dim=1)
    return codes


def generate_words(
    model: CodeSequence,
    ids: Tensor,
    *,
    filter_thres: float,
    temperature: float,
    use_cache: bool,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the ids of whole texts, int64 [B, L], of which ``ids``, [B, n], are the first."""
    cache = Cache(model.layout.length) if use_cache else None
    draw = _Draw(model.total_tokens, filter_thres, temperature, generator)
    for _ in range(ids.shape[1], model.text_seq_len):
        hidden = model.hidden(ids, None, None, cache)[:, -1]
        ids = torch.cat([ids, draw(model.text_logits(hidden))], dim=1)
    return ids


class _Draw:
    """Draws from the likeliest codes (by the Gumbel maximum).

    Args:
        total: Number of all codes, of which ``filter_thres`` is a share.
        filter_thres: Share that is left out.
        temperature: Divides the logits; 0 takes the likeliest.
        generator: What is drawn from.
    """

    def __init__(
        self, total: int, filter_thres: float, temperature: float, generator: torch.Generator | None
    ) -> None:
        if not 0 <= filter_thres <= 1:
            raise ValueError(f"filter_thres must be 0 to 1, got {filter_thres}")
        if not temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {temperature}")
        self.kept = max(int((1 - filter_thres) * total), 1)
        self.temperature, self.generator = temperature, generator

    def __call__(self, logits: Tensor) -> Tensor:
        """Return one code for each row of [B, V], int64 [B, 1]."""
        logits = logits.float()
        if self.temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        best, which = logits.topk(min(self.kept, logits.shape[-1]), dim=-1)
        device = logits.device if self.generator is None else self.generator.device
        even = torch.rand(best.shape, generator=self.generator, device=device).to(best.device)
        noise = -(-even.clamp(min=1e-20).log()).clamp(min=1e-20).log()
        return which.gather(1, (best / self.temperature + noise).argmax(dim=-1, keepdim=True))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model and all its parts in evaluation mode, and then back."""
    before = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training

"""Where dalle-pytorch 1.6.6 is wrong: what each gives, and whether penstock is right."""

from collections.abc import Callable
from typing import Any

import torch
from same import LENGTH, WORDS, dalles, inputs, vaes

Found = tuple[str, str, bool, bool]
"""What they give, what penstock gives, and whether each is right."""
WRONGS: dict[str, Callable[[], Found]] = {}


def wrong(words: str) -> Callable[[Callable[[], Found]], Callable[[], Found]]:
    def keep(function: Callable[[], Found]) -> Callable[[], Found]:
        WRONGS[words] = function
        return function

    return keep


def both(look: Callable[[Any], tuple[str, bool]], models: tuple[Any, Any]) -> Found:
    (theirs, they_are_right), (ours, we_are_right) = map(look, models)
    return theirs, ours, they_are_right, we_are_right


@wrong("guidance: the logits of each code are those with the text, moved from those without it")
def guidance() -> Found:
    text, _ = inputs()

    def look(model: Any) -> tuple[str, bool]:
        codes = []
        decode = model.vae.decode
        model.vae.decode = lambda ids: codes.append(ids) or decode(ids)
        model.generate_images(text.clone(), filter_thres=0.9999, cond_scale=3.0)
        del model.vae.decode
        with torch.no_grad():
            with_text, without = (
                model(t, codes[0])[:, LENGTH:, WORDS + LENGTH :]
                for t in (text.clone(), torch.zeros_like(text))
            )
        best = (without + 3 * (with_text - without)).argmax(-1)
        same = int((best == codes[0]).sum())
        return f"{same} of {best.numel()} codes are", same == best.numel()

    return both(look, dalles())


@wrong("guidance leaves the caller's texts alone")
def texts_of_the_caller() -> Found:
    def look(model: Any) -> tuple[str, bool]:
        text, _ = inputs()
        before = text.clone()
        model.generate_images(text, cond_scale=3.0)
        same = torch.equal(text, before)
        return "left alone" if same else "set to zero", same

    return both(look, dalles())


@wrong("null_cond_prob leaves the caller's texts alone")
def dropped_texts() -> Found:
    def look(model: Any) -> tuple[str, bool]:
        text, _ = inputs()
        before = text.clone()
        model(text, null_cond_prob=1.0)
        same = torch.equal(text, before)
        return "left alone" if same else "set to zero", same

    return both(look, dalles())


@wrong("use_cache=True: after the text, one position a step")
def cache() -> Found:
    def look(model: Any) -> tuple[str, bool]:
        text, _ = inputs()
        lengths: list[int] = []
        forward = model.transformer.forward
        model.transformer.forward = lambda x, *a, **k: (
            lengths.append(x.shape[1]) or forward(x, *a, **k)
        )
        model.generate_images(text, use_cache=True)
        del model.transformer.forward
        return f"{sum(lengths)} positions in {len(lengths)} steps", max(lengths[1:]) == 1

    return both(look, dalles())


@wrong("the divergence's weight means the same at any batch size")
def divergence() -> Found:
    images = torch.rand(1, 3, 32, 32)

    def look(model: Any) -> tuple[str, bool]:
        found = []
        for count in (1, 8):
            losses = []
            for weight in (0.0, 1.0):
                model.kl_div_loss_weight = weight
                torch.manual_seed(0)
                losses.append(model(images.expand(count, -1, -1, -1), return_loss=True).item())
            found.append(losses[1] - losses[0])
        return f"{found[1] / found[0]:.3g} times as large at 8 images as at 1", abs(
            found[1] / found[0] - 1
        ) < 0.01

    theirs, ours = vaes()
    ours.kl_reduction = "mean"
    return both(look, (theirs, ours))


@wrong("what is decoded is an image in [0, 1]")
def range_of_images() -> Found:
    def look(model: Any) -> tuple[str, bool]:
        with torch.no_grad():
            model.decoder[-1].bias.fill_(-0.5)  # below the middle of the range
            images = model.decode(torch.zeros(1, 64, dtype=torch.long))
        inside = images.min() >= 0 and images.max() <= 1
        return f"{images.min():.2f} to {images.max():.2f}", bool(inside)

    return both(look, vaes())


class Letters:
    """Stands for a tokenizer of either: encodes and decodes."""

    @property
    def tokenizer(self) -> "Letters":
        return self

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 96 for letter in text]

    def decode(self, ids: Any, pad_tokens: Any = ()) -> str:
        return " ".join(map(str, ids))


def attempt(call: Callable[[], Any]) -> tuple[str, bool]:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}", False
    return "runs", True


@wrong("texts are generated on the CPU")
def texts() -> Found:
    return both(lambda model: attempt(lambda: model.generate_texts(Letters(), "ab")), dalles())


@wrong("mask= is taken, as the README has it")
def mask() -> Found:
    text, images = inputs()
    return both(
        lambda model: attempt(lambda: model(text, images, mask=text != 0, return_loss=True)),
        dalles(),
    )


@wrong("normalization=None is no normalisation")
def no_normalisation() -> Found:
    import dalle_pytorch

    from penstock.models import dalle as penstock

    return both(
        lambda library: attempt(lambda: library.DiscreteVAE(normalization=None)),
        (dalle_pytorch, penstock),
    )

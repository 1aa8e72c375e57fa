"""Which of a text model's outputs are kept."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch

from .entry import Tensors

NAMED = ("last_hidden_state", "pooler_output", "text_embeds")
HIDDEN = re.compile(r"hidden_states\[(-?\d+(?:, ?-?\d+)*)\]")
RESERVED = ("cut", "dropped", "error", "ids", "mask", "tokens")
"""Names that a cache's entries and fields have for themselves."""


def parse_outputs(output: str | Mapping[str, str] | None) -> dict[str, str]:
    """Return what to keep by the names that it gets.

    Raises:
        ValueError: If it is nothing that a model gives, or a name is none.
    """
    if not output:
        raise ValueError("give output=, such as 'last_hidden_state' or 'pooler_output'")
    if isinstance(output, str):
        pooled = output in ("pooler_output", "text_embeds")
        output = {"pooled" if pooled else "embeds": output}
    for name, what in output.items():
        if what not in NAMED and not HIDDEN.fullmatch(what):
            raise ValueError(
                f"output must be one of {NAMED}, 'hidden_states[-2]' or 'hidden_states[10, 20]', "
                f"got {what!r}"
            )
        _check_name(name)
    return dict(output)


def taken_outputs(
    model: torch.nn.Module, outputs: Mapping[str, str], ids: torch.Tensor, mask: torch.Tensor | None
) -> Tensors:
    """Return the outputs of one call of a model, by name.

    Raises:
        ValueError: If the model has no such output.
    """
    hidden = any(HIDDEN.fullmatch(what) for what in outputs.values())
    more: dict[str, Any] = {"output_hidden_states": True} if hidden else {}
    takes = inspect.signature(model.forward).parameters
    # Of language models: no keys and values kept, and logits, 0.15 GB a caption, of one token.
    more |= {k: v for k, v in (("use_cache", False), ("logits_to_keep", 1)) if k in takes}
    made = model(input_ids=ids, attention_mask=mask, **more)
    return {name: _taken(made, what) for name, what in outputs.items()}


def named_outputs(made: Any) -> Tensors:
    """Return what a function gave, by name.

    Raises:
        TypeError: If that is no tensor and no dict of them.
        ValueError: If a name is none.
    """
    if isinstance(made, torch.Tensor):
        return {"embeds" if made.ndim == 3 else "pooled": made}
    if isinstance(made, Mapping) and all(isinstance(v, torch.Tensor) for v in made.values()):
        for name in made:
            _check_name(name)
        return dict(made)
    raise TypeError(
        f"a text encoder's function must return a tensor or a dict of them, got {made!r:.200}"
    )


def _taken(made: Any, what: str) -> torch.Tensor:
    hidden = HIDDEN.fullmatch(what)
    if hidden is None:
        found = getattr(made, what, None)
        if found is None:
            raise ValueError(f"the model's outputs have no {what!r}, only {sorted(made)}")
        return found  # type: ignore[no-any-return]
    layers = [int(number) for number in hidden[1].split(",")]
    return torch.cat([made.hidden_states[k] for k in layers], -1)


def check_output(name: str, tensor: torch.Tensor, count: int) -> None:
    """Refuse what cannot be kept.

    Raises:
        ValueError: If it is not ``count`` outputs, or not finite.
    """
    if tensor.ndim not in (2, 3) or len(tensor) != count:
        raise ValueError(
            f"{name!r} must be [{count}, L, D] or [{count}, D], and the encoder gave "
            f"{list(tensor.shape)}"
        )
    if not tensor.isfinite().all():
        raise ValueError(
            f"the encoder gave numbers in {name!r} that are not finite: T5 overflows in float16, "
            "for one, and wants bfloat16 or float32"
        )


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z]+", name) or name in RESERVED:
        raise ValueError(
            f"an output's name is of small letters, and none of {RESERVED}; got {name!r}"
        )


def dtype_name(dtype: torch.dtype | None) -> str | None:
    """Return a dtype's name as JSON holds it: "bfloat16"."""
    return None if dtype is None else str(dtype).removeprefix("torch.")

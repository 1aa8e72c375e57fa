"""Text encoders, and all that their outputs depend on."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch

from .entry import Tensors
from .fingerprint import fingerprint as fingerprint_of
from .flux2 import ChatTokenize, Variant
from .text_outputs import check_output, dtype_name, named_outputs, parse_outputs, taken_outputs
from .tokenize import T5_LENGTH, ClipTokenize, Tokenize

Mask = Literal["ignored", "encoder", "both", "zeroed"]

FLUX2_LAYERS: dict[Variant, tuple[int, ...]] = {"dev": (10, 20, 30), "klein": (9, 18, 27)}
"""Whose hidden states FLUX.2 takes (black-forest-labs/flux2, ``src/flux2/text_encoder.py``)."""

PROBES = ("", " A probe: 1 + 1 = 2.\n")


class TextEncoder:
    """A text model, its tokenizer, and what is kept of its outputs; what `TextCache` asks.

    The ready-made ones give bit for bit what diffusers' pipelines feed their transformers::

        clip = TextEncoder.flux_clip(pipeline.text_encoder, pipeline.tokenizer)
        t5 = TextEncoder.flux_t5(pipeline.text_encoder_2, pipeline.tokenizer_2)

    ``mask`` says what padding means to the model and to what is trained on its outputs. Four things
    are called a masked encoder, and the outputs differ:

    - ``"ignored"``: no mask anywhere, padding is attended to (FLUX.1, SDXL, SD3);
    - ``"encoder"``: the text model attends by the mask, what takes its outputs attends to all of
      them (FLUX.2);
    - ``"both"``: what takes them attends by the mask too (PixArt; kohya's apply_t5_attn_mask);
    - ``"zeroed"``: the text model attends to padding, and its outputs for padding become zeros
      (OneTrainer and ai-toolkit, where they mask T5).

    Args:
        model: Of transformers: T5EncoderModel, CLIPTextModel, CLIPTextModelWithProjection, a causal
            language model; in eval mode, of its last weights and dtype. Or a function
            ``f(ids, mask)`` that takes int64 [N, L], and None for the mask where it is ignored, and
            returns a tensor [N, L, D] or [N, D], or a dict of such; then with ``fingerprint``.
        tokenizer: A fast tokenizer of transformers, or a `Tokenize` that has its length.
        max_length: L: ids per caption, special tokens included. None for a `Tokenize`.
        output: What is kept: "last_hidden_state", "pooler_output", "text_embeds",
            "hidden_states[-2]", "hidden_states[10, 20, 30]" (side by side); or several of them by
            the names that they get. One alone is called "pooled" where it is one vector a caption,
            else "embeds". None for a function.
        mask: See above.
        dtype: Of what is kept; None keeps the model's own.
        max_batch: Captions in one call of the model, at most.
        fingerprint: What changes whenever the function's outputs do. For models it is made of class
            and weights.

    Attributes:
        tokens: Gives the tokens; a `Tokenize`.
        about: All that the outputs depend on but the caption, as JSON holds it.

    Raises:
        TypeError: If the model is no model and no function, or the tokenizer no fast one.
        ValueError: If an argument is none of these.
    """

    def __init__(
        self,
        model: torch.nn.Module | Callable[..., Any],
        tokenizer: Any,
        *,
        max_length: int | None = None,
        output: str | Mapping[str, str] | None = None,
        mask: Mask = "ignored",
        dtype: torch.dtype | None = torch.bfloat16,
        max_batch: int = 32,
        fingerprint: str | None = None,
    ) -> None:
        if mask not in get_args(Mask):
            raise ValueError(f"mask must be one of {get_args(Mask)}, got {mask!r}")
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating one, got {dtype}")
        self.model: Any = model
        self.tokens = _tokenize(tokenizer, max_length)
        self.max_length = self.tokens.tokens.max_length
        self.mask = mask
        self.dtype = dtype
        self.max_batch = max_batch
        is_model = isinstance(model, torch.nn.Module)
        if not is_model and output is not None:
            raise ValueError("output is for models: a function returns what is to be kept")
        self.outputs = parse_outputs(output) if is_model else None
        self._stamp = _stamp(model)
        self.about = {
            **_about_model(model, fingerprint),
            "stored": dtype_name(dtype),
            "outputs": self.outputs,
            "attends": "tokens" if mask in ("encoder", "both") else "all",
            "padding": "zeroed" if mask == "zeroed" else "kept",
            "tokenizer": {**self.tokens.tokens.about, "probe": self._probe()},
        }

    # -- ready-made -----------------------------------------------------------------------------

    @classmethod
    def flux_clip(cls, model: Any, tokenizer: Any, **more: Any) -> "TextEncoder":
        """Return FLUX.1's CLIP-L: ``pooled`` [B, 768], of transformers' CLIPTextModel."""
        tokens = tokenizer if isinstance(tokenizer, Tokenize) else ClipTokenize(tokenizer)
        return cls(model, tokens, output={"pooled": "pooler_output"}, **more)

    @classmethod
    def flux_t5(
        cls, model: Any, tokenizer: Any, *, variant: Literal["dev", "schnell"] = "dev", **more: Any
    ) -> "TextEncoder":
        """Return FLUX.1's T5: ``embeds`` [B, L, 4096], L 512 for dev and 256 for schnell."""
        if variant not in T5_LENGTH:
            raise ValueError(f"variant must be one of {sorted(T5_LENGTH)}, got {variant!r}")
        own = isinstance(tokenizer, Tokenize)
        length = {"max_length": None if own else T5_LENGTH[variant], **more}
        return cls(model, tokenizer, output={"embeds": "last_hidden_state"}, **length)

    @classmethod
    def flux2(
        cls, model: Any, tokenizer: Any, *, variant: Variant = "dev", **more: Any
    ) -> "TextEncoder":
        """Return FLUX.2's language model: ``embeds`` [B, 512, 3 D], three layers side by side.

        dev takes Mistral's (D 5,120), klein Qwen3's (2,560 or 4,096). ``tokenizer`` is the
        checkpoint's, with its chat template, or a processor that holds one.
        """
        tokens = ChatTokenize(tokenizer, variant=variant, max_length=more.pop("max_length", None))
        layers = ", ".join(map(str, FLUX2_LAYERS[variant]))
        output = {"embeds": f"hidden_states[{layers}]"}
        return cls(model, tokens, output=output, mask="encoder", **more)

    @classmethod
    def sdxl_clip(cls, model: Any, tokenizer: Any, **more: Any) -> "TextEncoder":
        """Return a CLIP of SDXL or SD3: ``embeds`` [B, 77, D], the last hidden state but one.

        With a projection, as bigG and both of SD3's have (CLIPTextModelWithProjection), also
        ``pooled``, which is its ``text_embeds``.
        """
        output = {"embeds": "hidden_states[-2]"}
        if hasattr(model, "text_projection"):
            output["pooled"] = "text_embeds"
        return cls(model, ClipTokenize(tokenizer), output=output, **more)

    @classmethod
    def sd3_t5(cls, model: Any, tokenizer: Any, **more: Any) -> "TextEncoder":
        """Return SD3's T5: ``embeds`` [B, 256, 4096]; padding is attended to."""
        length = {"max_length": 256, **more}
        return cls(model, tokenizer, output={"embeds": "last_hidden_state"}, **length)

    @classmethod
    def pixart_t5(cls, model: Any, tokenizer: Any, **more: Any) -> "TextEncoder":
        """Return PixArt-Sigma's T5: ``embeds`` [B, 300, 4096]; masked in both.

        For PixArt-alpha give ``max_length=120``. diffusers' pipelines make captions lower case and
        strip them first; this does not.
        """
        length = {"max_length": 300, **more}
        return cls(model, tokenizer, output={"embeds": "last_hidden_state"}, mask="both", **length)

    # -- what the cache asks --------------------------------------------------------------------

    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> Tensors:
        """Return the outputs that are kept, by name: ``dtype`` [N, L, D] or [N, D].

        Without gradients or autocast; on the model's device, ``max_batch`` captions at a time.

        Args:
            ids: int64 [N, L], from ``tokens``.
            mask: int64 [N, L], likewise; 1 for tokens.

        Raises:
            ValueError: If the model is in training mode, its weights are others than when this was
                made, or it gives numbers that are not finite.
        """
        device = self._ready()
        ids_parts, mask_parts = (torch.split(given, self.max_batch) for given in (ids, mask))
        parts = [
            self._part(i.to(device), m.to(device))
            for i, m in zip(ids_parts, mask_parts, strict=True)
        ]
        out = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, tensor in out.items():
            check_output(name, tensor, len(ids))
        return out

    def _ready(self) -> torch.device:
        model = self.model
        if not isinstance(model, torch.nn.Module):
            return torch.device("cpu")
        if model.training:
            raise ValueError(
                f"the {type(model).__name__} is in training mode, where dropout makes its outputs "
                "random: call its .eval()"
            )
        dtype = dtype_name(next(model.parameters()).dtype)
        if dtype != self.about["compute"]:
            raise ValueError(
                f"the {type(model).__name__} is {dtype}, and was {self.about['compute']} when the "
                "TextEncoder was made, and its entries would be stale: make it behind .to(dtype)"
            )
        if any(version > self._stamp.get(key, version) for key, version in _stamp(model).items()):
            raise ValueError(
                f"the weights of the {type(model).__name__} are others than when the TextEncoder "
                "was made, and its entries would be stale: make it when they are final"
            )
        return next(model.parameters()).device

    def _part(self, ids: torch.Tensor, mask: torch.Tensor) -> Tensors:
        given = mask if self.about["attends"] == "tokens" else None
        with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
            if self.outputs is None:
                found = named_outputs(self.model(ids, given))
            else:
                found = taken_outputs(self.model, self.outputs, ids, given)
        if self.mask == "zeroed":
            keep = mask[..., None].bool()
            found = {k: v.where(keep, 0) if v.ndim == 3 else v for k, v in found.items()}
        return {k: v if self.dtype is None else v.to(self.dtype) for k, v in found.items()}

    def _probe(self) -> str:
        ids = self.tokens.tokens(self.tokens.texts(PROBES)).ids.numpy().astype("<i8")
        return hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest()


def _tokenize(tokenizer: Any, max_length: int | None) -> Tokenize:
    if isinstance(tokenizer, Tokenize):
        if max_length not in (None, tokenizer.tokens.max_length):
            raise ValueError(
                f"max_length is {max_length}, and the {type(tokenizer).__name__} has "
                f"{tokenizer.tokens.max_length}"
            )
        return tokenizer
    if max_length is None:
        raise ValueError("give max_length, the ids per caption")
    return Tokenize(tokenizer, max_length=max_length, name="text")


def _about_model(model: Any, fingerprint: str | None) -> dict[str, Any]:
    if isinstance(model, torch.nn.Module):
        given = fingerprint or fingerprint_of(model)
        compute = next(model.parameters()).dtype
        return {"class": type(model).__name__, "weights": given, "compute": dtype_name(compute)}
    if not callable(model):
        raise TypeError(f"the text encoder must be a model or a function, got {model!r:.200}")
    if not fingerprint:
        raise ValueError(
            "nobody can see what a function's outputs depend on: give fingerprint=, a text that "
            "changes whenever they do"
        )
    return {"class": "function", "weights": fingerprint, "compute": None}


def _stamp(model: Any) -> dict[int, int]:
    """Return by parameter how often it was written to."""
    if not isinstance(model, torch.nn.Module):
        return {}
    return {id(p): p._version for p in model.parameters()}

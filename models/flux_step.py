"""Bytes of FLUX.1's weights and of one training step, on models without data."""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from .flux import BLOCKS
from .lora import Targets, add_lora
from .peak_bytes import fake_parameters, peak_bytes

QUANTIZED = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Bytes a weight: int8 (with `SCALES` on top); 4-bit codes with an 8-bit scale for
each 64 of them, and a float32 one for each 256 of those (double quantization, QLoRA)."""


SCALES = 5
"""Bytes a row of int8 weights: a float32 scale and an int8 zero point, in torchao 0.18."""


def meta_transformer(
    config: Mapping[str, Any],
    rank: int | None,
    targets: Targets,
    trained: torch.dtype = torch.float32,
) -> Any:
    """Return a FluxTransformer2DModel on the meta device, in bfloat16, with what is trained.

    Args:
        config: Its arguments.
        rank: Of a LoRA, float32; None: all of it is trained.
        targets: The LoRA's layers.
        trained: Type of what is trained.
    """
    diffusers: Any = import_module("diffusers")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = diffusers.FluxTransformer2DModel(**config)
            if rank is not None:
                add_lora(model, rank=rank, targets=targets)
    finally:
        torch.set_default_dtype(before)
    for parameter in model.parameters():
        if parameter.requires_grad and rank is not None:
            parameter.data = parameter.data.to(trained)
    return model.train()


def weight_bytes(model: Any, quantize: str) -> tuple[int, int, int]:
    """Return bytes of the frozen weights, how many weights are trained, bytes of the largest block.

    Args:
        model: From `meta_transformer`.
        quantize: How the frozen weights of its blocks are kept; the largest block's bytes are those
            in bfloat16.
    """
    frozen = 0.0
    trained = 0
    linear = _quantized(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained += parameter.numel()
        elif quantize != "none" and name in linear:
            scales = SCALES * parameter.shape[0] if quantize == "int8" else 0
            frozen += parameter.numel() * QUANTIZED[quantize] + scales
        else:
            frozen += parameter.numel() * parameter.element_size()
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    return (
        int(frozen),
        trained,
        max((2 * sum(p.numel() for p in block.parameters()) for block in blocks), default=0),
    )


def step_bytes(
    model: Any,
    batch_size: int,
    tokens: int,
    text_tokens: int,
    quantize: str,
    checkpointing: bool,
) -> int:
    """Return the most bytes that a forward and a backward pass hold beyond weights and gradients.

    Args:
        model: From `meta_transformer`; used up.
        batch_size: Samples.
        tokens: Of an image.
        text_tokens: Of a text.
        quantize: As `load_transformer` has it. int8 keeps its weights in bfloat16 for the backward
            pass; nf4 makes them anew there.
        checkpointing: Whether each block is computed again in the backward pass.
    """
    if checkpointing:
        model.enable_gradient_checkpointing()
    linear = _quantized(model) if quantize != "none" else {}

    def build() -> Any:
        fake_parameters(model)
        for layer in linear.values():
            _imitate(layer, quantize)
        inputs = _inputs(model.config, batch_size, tokens, text_tokens)

        def step() -> None:
            predicted = model(**inputs, return_dict=False)[0]
            predicted.float().square().mean().backward()

        return step

    def known() -> list[torch.Tensor]:
        weights = list(model.parameters())
        return [*weights, *(p.grad for p in weights if p.grad is not None), *model.buffers()]

    return peak_bytes(build, known)


def decode_bytes(config: Mapping[str, Any], height: int, width: int) -> int:
    """Return the most bytes that decoding one picture in bfloat16 holds beyond the weights."""
    diffusers: Any = import_module("diffusers")
    with torch.device("meta"):
        vae = diffusers.AutoencoderKL(**config)
    channels = vae.config.latent_channels
    for parameter in vae.parameters():
        parameter.data = parameter.data.bfloat16()
    vae.requires_grad_(False).eval()

    def build() -> Any:
        fake_parameters(vae)
        latents = torch.empty(1, channels, height // 8, width // 8, dtype=torch.bfloat16)

        def decode() -> None:
            with torch.no_grad():
                vae.decode(latents, return_dict=False)

        return decode

    return peak_bytes(build, lambda: vae.parameters())


def _quantized(model: Any) -> dict[str, torch.nn.Linear]:
    """The linear layers of the blocks that are frozen, by their weights' names."""
    found = {}
    for name, module in model.named_modules():
        # peft puts the layer of this name into base_layer, and its own beside it.
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name:
            weight = f"{name}.weight"
            if re.fullmatch(BLOCKS, weight) and not hasattr(module, "base_layer"):
                found[weight] = module
    return found


def _imitate(layer: torch.nn.Linear, quantize: str) -> None:
    """Let a layer's forward keep of its weight what the quantized one's does."""
    codes = torch.empty(layer.weight.shape, dtype=torch.int8)
    layer._parameters["weight"] = torch.nn.Parameter(codes, requires_grad=False)

    def forward(x: torch.Tensor) -> Any:
        if quantize == "int8":
            return F.linear(x, codes.to(x.dtype), layer.bias)
        return _Fresh.apply(x, codes, layer.bias)

    vars(layer)["forward"] = forward  # before the class's own


class _Fresh(torch.autograd.Function):
    """A linear layer whose weight is made in each pass, as bitsandbytes' MatMul4Bit does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(codes)
        return F.linear(x, codes.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (codes,) = ctx.saved_tensors
        return grads[0] @ codes.to(grads[0].dtype), None, None


def _inputs(config: Any, batch_size: int, tokens: int, text_tokens: int) -> dict[str, Any]:
    half = torch.bfloat16
    made = {
        "hidden_states": torch.empty(batch_size, tokens, config.in_channels, dtype=half),
        "encoder_hidden_states": torch.empty(
            batch_size, text_tokens, config.joint_attention_dim, dtype=half
        ),
        "pooled_projections": torch.empty(batch_size, config.pooled_projection_dim, dtype=half),
        "timestep": torch.empty(batch_size, dtype=half),
        "img_ids": torch.empty(tokens, 3),
        "txt_ids": torch.empty(text_tokens, 3),
    }
    if config.guidance_embeds:
        made["guidance"] = torch.empty(batch_size)
    return made

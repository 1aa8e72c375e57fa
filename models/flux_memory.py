"""What fine-tuning FLUX.1 takes of a GPU's memory, told before the weights are loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from os import PathLike
from typing import Any, Literal

import torch

from .flux_step import decode_bytes, meta_transformer, step_bytes, weight_bytes
from .lora import Targets
from .weights import find_part

GIB = 2**30

OVERHEAD = GIB
"""Bytes that are taken for what is not counted: the CUDA context, libraries' workspaces, the
allocator's fragments. An assumption."""

STATE_BYTES = {"float32": 4.0, "bfloat16": 2.0}

OPTIMIZERS: dict[str, float] = {"adamw8bit": 1 + 4 / 256, "adamw4bit": 0.5 + 4 / 128}
"""Bytes of one of AdamW's two states for a weight: blocks of 256 (8 bit: bitsandbytes, torchao)
and of 128 (4 bit: torchao), with a float32 scale each. Plain AdamW's are of the weights' type."""


@dataclass(frozen=True, kw_only=True)
class FluxPlan:
    """What is to be trained, and how, as far as memory goes."""

    height: int = 1024
    """Of the largest image, in pixels."""
    width: int = 1024
    """Of that image, in pixels."""
    batch_size: int = 1
    """Samples of one forward pass."""
    text_tokens: int = 512
    """T5's, with padding: 512 for dev, 256 for schnell."""
    lora_rank: int | None = 16
    """None trains the whole transformer."""
    lora_targets: Targets = "attention"
    """Layers of the LoRA."""
    trained: Literal["float32", "bfloat16"] = "float32"
    """Type of what is trained, its gradients, the states of AdamW and the EMA."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """How the frozen weights are kept."""
    gradient_checkpointing: bool = True
    """Whether each block is computed again in the backward pass."""
    optimizer: Literal["adamw", "adamw8bit", "adamw4bit"] = "adamw"
    """How many bytes its states take."""
    ema: bool = False
    """Whether a moving average of what is trained is kept on the GPU."""
    cached: bool = True
    """Whether latents and text embeddings come from caches, so that no encoder is on the GPU."""
    pictures: bool = True
    """Whether pictures are drawn in between: the VAE is then on the GPU, and decodes one."""
    shards: int = 1
    """GPUs over which FSDP2 spreads weights, gradients and states."""

    def __post_init__(self) -> None:
        if self.height % 16 or self.width % 16 or min(self.height, self.width) < 16:
            raise ValueError(
                f"height and width must be multiples of 16, got {self.height} x {self.width}"
            )
        if min(self.batch_size, self.text_tokens, self.shards, self.lora_rank or 1) < 1:
            raise ValueError("batch_size, text_tokens, lora_rank and shards must be at least 1")
        if self.quantize != "none" and self.lora_rank is None:
            raise ValueError(f"quantize={self.quantize!r} is of a frozen base: it needs a LoRA")


@dataclass(frozen=True)
class FluxSizes:
    """Sizes of a checkpoint; by default FLUX.1-dev's.

    Attributes:
        transformer: Arguments of FluxTransformer2DModel; {} are its defaults, FLUX.1's.
        vae: Arguments of AutoencoderKL.
        vae_parameters: Its weights.
        text_parameters: Weights of CLIP-L's and T5-XXL's encoders together.
    """

    transformer: Mapping[str, Any] = field(default_factory=lambda: {"guidance_embeds": True})
    vae: Mapping[str, Any] = field(
        default_factory=lambda: {
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "latent_channels": 16,
            "layers_per_block": 2,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }
    )
    vae_parameters: int = 83_819_683
    text_parameters: int = 4_885_371_136

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | PathLike[str], *, local_files_only: bool = False
    ) -> "FluxSizes":
        """Return a checkpoint's, by its configs and the headers of its files.

        From the hub the weights are downloaded, as for loading them. Raises as `load_transformer`.
        """
        names = {
            "transformer": ("FluxTransformer2DModel",),
            "vae": ("AutoencoderKL",),
            "text_encoder": ("clip_text_model", "clip"),
            "text_encoder_2": ("t5",),
        }
        parts = {
            name: find_part(path_or_id, name, kinds, local_files_only=local_files_only)
            for name, kinds in names.items()
        }
        return cls(
            transformer=_arguments(parts["transformer"].config),
            vae=_arguments(parts["vae"].config),
            vae_parameters=parts["vae"].parameters,
            text_parameters=parts["text_encoder"].parameters + parts["text_encoder_2"].parameters,
        )


@dataclass(frozen=True)
class FluxMemory:
    """An estimate of the most that one GPU holds at once.

    Attributes:
        parts: Bytes by what they are for.
    """

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        rows = [*self.parts.items(), ("in all", self.total)]
        return "\n".join(f"{name:<28}{size / GIB:>8.2f} GiB" for name, size in rows if size)


def flux_memory(plan: FluxPlan, sizes: FluxSizes | None = None) -> FluxMemory:
    """Return what a training step of the plan takes of each GPU.

    Weights, gradients and states are counted from the model's own shapes. The computation's part is
    the most that a forward and a backward pass hold at once, counted by running the real model on
    tensors without data (`peak_bytes`), or what decoding a picture holds, if that is more. It
    assumes: bfloat16 computation; a LoRA in float32 without autocast; attention that keeps no
    matrix of queries by keys; gradients that stay between the batches of a step; with FSDP2, two
    whole blocks at a time in bfloat16; `OVERHEAD`. Filling the caches beforehand holds the encoders
    and not the transformer.

    Args:
        plan: What is to be trained.
        sizes: Of the checkpoint; None: FLUX.1-dev's.
    """
    sizes = FluxSizes() if sizes is None else sizes
    shapes = json.dumps(dict(sizes.transformer), sort_keys=True)
    frozen, trained, block = _weights(shapes, plan.lora_rank, plan.lora_targets, plan.quantize)
    one = STATE_BYTES[plan.trained]
    tokens = (plan.height // 16) * (plan.width // 16)
    step = _step(
        shapes, plan.batch_size, tokens, plan.text_tokens, plan.lora_rank, plan.lora_targets,
        plan.quantize, plan.gradient_checkpointing, plan.trained,
    )  # fmt: skip
    vae = json.dumps(dict(sizes.vae), sort_keys=True)
    picture = _decode(vae, plan.height, plan.width) if plan.pictures else 0
    state = OPTIMIZERS.get(plan.optimizer, one)
    resident = 0 if plan.cached else 2 * sizes.text_parameters
    whole = plan.lora_rank is None and plan.trained == "float32"
    has_vae = plan.pictures or not plan.cached
    parts = {
        "frozen weights": frozen / plan.shards,
        # Autocast keeps what it cast until the pass is over; FSDP2 gathers in bfloat16.
        "bfloat16 copies by autocast": 2 * trained if whole and plan.shards == 1 else 0,
        "trained weights": trained * one / plan.shards,
        "gradients": trained * one / plan.shards,
        "states of the optimizer": 2 * trained * state / plan.shards,
        "moving average": trained * one / plan.shards if plan.ema else 0,
        "text encoders": resident,
        "VAE": 2 * sizes.vae_parameters if has_vae else 0,
        "blocks gathered by FSDP2": 2 * block if plan.shards > 1 else 0,
        "computation": max(step, picture),
        "context and fragments": OVERHEAD,
    }
    return FluxMemory({name: int(size) for name, size in parts.items()})


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if not k.startswith("_") and k != "quantization_config"}


@lru_cache(maxsize=64)
def _weights(
    shapes: str, rank: int | None, targets: Targets, quantize: str
) -> tuple[int, int, int]:
    return weight_bytes(meta_transformer(json.loads(shapes), rank, targets), quantize)


@lru_cache(maxsize=64)
def _step(
    shapes: str,
    batch_size: int,
    tokens: int,
    text_tokens: int,
    rank: int | None,
    targets: Targets,
    quantize: str,
    checkpointing: bool,
    trained: str,
) -> int:
    model = meta_transformer(json.loads(shapes), rank, targets, getattr(torch, trained))
    return step_bytes(model, batch_size, tokens, text_tokens, quantize, checkpointing)


@lru_cache(maxsize=16)
def _decode(vae: str, height: int, width: int) -> int:
    return decode_bytes(json.loads(vae), height, width)

"""Pictures of FLUX.1 from embeddings: no text encoder is needed."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from .flux_velocity import attention_options, transformer_dtype

FACTOR = 8
"""Pixels along each side of one of the VAE's latents."""


@torch.no_grad()
def sample_flux(
    transformer: Any,
    vae: Any,
    scheduler: Any,
    *,
    prompt_embeds: torch.Tensor,
    pooled_embeds: torch.Tensor,
    seeds: Sequence[int],
    height: int,
    width: int,
    steps: int = 28,
    guidance: float = 3.5,
    text_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return pictures, uint8 [B, 3, H, W], on the CPU.

    By diffusers' FluxPipeline: what it gives for the prompts, with ``generator=[torch.Generator()
    .manual_seed(seed), …]`` on the CPU, is this, so that anyone can draw them again. They are
    decoded one by one, in the VAE's own type.

    Args:
        transformer: diffusers' FluxTransformer2DModel, not DDP's wrapper of it; put back into the
            mode it was in. Under FSDP2 all ranks must draw, each the same number of steps.
        vae: diffusers' AutoencoderKL, on the same device.
        scheduler: Of the checkpoint, from `load_scheduler`; left as it is.
        prompt_embeds: T5's last hidden state, [B, L, 4096].
        pooled_embeds: CLIP's pooled output, [B, 768].
        seeds: One a picture.
        height: In pixels, a multiple of 16.
        width: In pixels, a multiple of 16.
        steps: Euler steps.
        guidance: For dev; schnell is not given it.
        text_mask: [B, L], as `flux_velocity` takes it: as the model was trained.

    Raises:
        ValueError: If a size is no multiple of 16, or there is not one seed for each prompt.
    """
    if height % (2 * FACTOR) or width % (2 * FACTOR) or min(height, width) < 1:
        raise ValueError(f"height and width must be multiples of 16, got {height} x {width}")
    if len(seeds) != len(prompt_embeds) or len(seeds) != len(pooled_embeds):
        raise ValueError(
            f"there must be one seed for each prompt, got {len(seeds)} seeds, {len(prompt_embeds)} "
            f"and {len(pooled_embeds)} embeddings"
        )
    diffusers: Any = import_module("diffusers")
    pipe = diffusers.FluxPipeline(
        scheduler=type(scheduler).from_config(scheduler.config),  # its state is the pipe's own
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    device = transformer.x_embedder.bias.device
    dtype = transformer_dtype(transformer)
    tokens = (height // FACTOR // 2) * (width // FACTOR // 2)
    mask = None if text_mask is None else text_mask.to(device)
    training = transformer.training
    transformer.eval()
    try:
        latents = pipe(
            prompt_embeds=prompt_embeds.to(device, dtype),
            pooled_prompt_embeds=pooled_embeds.to(device, dtype),
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            joint_attention_kwargs=attention_options(mask, tokens),
            output_type="latent",
        ).images
    finally:
        transformer.train(training)
    unpacked = pipe._unpack_latents(latents, height, width, FACTOR)
    return torch.cat([_decoded(vae, one[None]) for one in unpacked])


def _decoded(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    scaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
    pixels: torch.Tensor = vae.decode(scaled, return_dict=False)[0].float()
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)

"""Make a tiny FLUX.1 checkpoint with random weights, to try things on.

    python -m penstock.recipes.tiny_flux --out tiny
    python -m penstock.recipes.tiny_flux --out tiny --variant schnell --seed 1

The folder is laid out as the real ones are, by diffusers' and transformers' own classes, and weighs
under a megabyte: what loads a FLUX.1 checkpoint loads it. It has the real one's VAE factor of 8, 16
latent channels and 64 numbers a token; all else is small, nothing is trained, and its images are
noise. Nothing is downloaded.
"""

import os
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from ..transforms.flux_latents import FLUX_SCALE, FLUX_SHIFT
from ._cli import cli
from .tiny_tokenizers import tiny_clip_tokenizer, tiny_t5_tokenizer

WIDTH = 32
"""Numbers per token in all of its encoders, and in its transformer unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Make a tiny FLUX.1 checkpoint with random weights."""

    out: Path
    """Folder for the checkpoint; made."""
    variant: Literal["dev", "schnell"] = "dev"
    """dev takes a guidance scale, schnell does not."""
    width: int = WIDTH
    """Numbers per token in the transformer, a multiple of 16. A token has 64 of them: a transformer
    of fewer cannot learn to give all of them back."""
    seed: int = 0
    """The same seed gives the same weights."""
    overwrite: bool = False
    """Whether to replace the folder if it is there."""


def write_tiny_flux(
    out: str | Path,
    *,
    variant: Literal["dev", "schnell"] = "dev",
    width: int = WIDTH,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Return ``out``, a folder that holds a checkpoint of diffusers' FluxPipeline.

    Args:
        out: The folder; made, whole or not at all.
        variant: dev takes a guidance scale, schnell does not.
        width: Numbers per token in the transformer, a multiple of 16.
        seed: The same seed gives the same weights, with the same versions of the libraries.
        overwrite: Whether to replace the folder if it is there.

    Raises:
        FileExistsError: If the folder is there and ``overwrite`` is false.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} is there: give another folder, or overwrite=True")
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        tiny_flux_pipeline(variant, seed, width).save_pretrained(part)
        if out.exists():
            shutil.rmtree(out)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def tiny_flux_pipeline(
    variant: Literal["dev", "schnell"] = "dev", seed: int = 0, width: int = WIDTH
) -> Any:
    """Return diffusers' FluxPipeline with tiny models of random weights, on the CPU."""
    if width < 16 or width % 16:
        raise ValueError(f"width must be a multiple of 16, got {width}")
    import torch

    diffusers: Any = import_module("diffusers")  # untyped
    dev = variant == "dev"
    tokenizer, tokenizer_2 = tiny_clip_tokenizer(), tiny_t5_tokenizer()
    with torch.random.fork_rng(devices=[]):  # models draw from the default generator
        torch.random.default_generator.manual_seed(seed)  # type: ignore[attr-defined]
        return diffusers.FluxPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
                shift=3.0 if dev else 1.0, use_dynamic_shifting=dev
            ),
            vae=_vae(diffusers),
            text_encoder=_clip(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=_t5(tokenizer_2),
            tokenizer_2=tokenizer_2,
            transformer=diffusers.FluxTransformer2DModel(
                in_channels=64,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=width // 16,
                joint_attention_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                guidance_embeds=dev,
                axes_dims_rope=(4, 6, 6),
            ),
        )


def tiny_flux_vae(seed: int = 0) -> Any:
    """Return the tiny pipeline's VAE alone: diffusers' AutoencoderKL, on the CPU, in ``eval()``."""
    import torch

    diffusers: Any = import_module("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # type: ignore[attr-defined]
        return _vae(diffusers).eval()


def _vae(diffusers: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=FLUX_SCALE,
        shift_factor=FLUX_SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _clip(tokenizer: Any) -> Any:
    transformers: Any = import_module("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.CLIPTextModel(config).eval()


def _t5(tokenizer: Any) -> Any:
    transformers: Any = import_module("transformers")
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=16,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config).eval()


def main(cfg: Config) -> None:
    """Write the checkpoint and say where it is."""
    print(cfg)
    out = write_tiny_flux(
        cfg.out,
        variant=cfg.variant,
        width=cfg.width,
        seed=cfg.seed,
        overwrite=cfg.overwrite,
    )
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: FLUX.1 {cfg.variant} with random weights, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(cli(Config))

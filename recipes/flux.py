"""Fine-tune FLUX.1 on your own images.

    python -m penstock.recipes.flux --config recipes/configs/flux_lora.yaml \
        --data.url photographs --data.trigger "a photo of sks dog" --model path/or/hub-id --out run
    torchrun --nproc-per-node 8 -m penstock.recipes.flux --config recipes/configs/flux_full.yaml \
        --data.url 's3://bucket/{00000..00999}.tar' --model path/or/hub-id --out run

``model`` is a checkpoint of FLUX.1 (dev or schnell) as diffusers lays it out; ``data`` a folder of
images with or without texts, a manifest, or tar shards. First latents and text embeddings are
computed, once for all runs on the same data (``cache_dir``); then a LoRA is trained, or the whole
transformer. It takes a GPU; tiny checkpoints (``penstock.recipes.tiny_flux``) run on the CPU.

Started again with the same ``out``, it goes on where it was, on any number of GPUs, with the very
same batches. SIGTERM and SIGUSR1 save and leave. ``out`` gets checkpoints, ``log.jsonl``, pictures,
``report.html``, and at the end ``lora/pytorch_lora_weights.safetensors``, which
``FluxPipeline.load_lora_weights`` takes (or ``transformer/``, the whole).
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..models.lora import TARGETS
from ..pipes.errors import DataError
from ..transforms.flow_matching import TimestepSampling
from ._cli import cli
from .cache_models import Dtype
from .image_data import ImageData
from .training.open_trackers import Extra
from .training.optimizer import Kind
from .training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What is looked at every so often."""

    every: int = 100
    """Steps between two looks; the last step is looked at too. 0: never."""
    levels: int = 8
    """Noise levels that the loss of held-out images (data.validation) is measured at."""
    batches: int = 16
    """At most so many batches of them."""
    prompts: list[str] = field(default_factory=list)
    """Each is drawn, with seeds that stay the same."""
    height: int = 512
    """Of the pictures, in pixels."""
    width: int = 512
    """Of the pictures, in pixels."""
    steps: int = 20
    """Steps of drawing one."""
    guidance: float = 3.5
    """For dev: how closely the pictures keep to the prompts."""

    def __post_init__(self) -> None:
        if self.height % 16 or self.width % 16:
            raise ValueError(
                f"validation: sides are multiples of 16, got {self.height} x {self.width}"
            )
        for name in ("levels", "batches", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"validation.{name} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Fine-tune FLUX.1 on your own images."""

    data: ImageData
    """Images and captions."""
    model: str
    """Folder or hub id of a FLUX.1 checkpoint."""
    out: Path
    """Folder of the run; made if missing. Where a run is in it already, it goes on."""
    variant: Literal["dev", "schnell"] | None = None
    """Of FLUX.1; else the checkpoint's own config says it."""
    cache: Literal["posterior", "mean", "none"] = "posterior"
    """What is computed beforehand of images: the posterior, its mean, or nothing: then VAE and text
    encoders stay in memory and run at each step."""
    texts: Literal["full", "float8"] = "full"
    """What is kept of captions: T5's outputs, or these in float8, half the bytes."""
    cache_dir: Path | None = None
    """Folder of what is computed beforehand; else cache/ in the run's folder."""
    rank: int | None = 16
    """Of the LoRA; null trains the whole transformer."""
    alpha: float | None = None
    """The LoRA's alpha; null: its rank."""
    targets: str | list[str] = "attention"
    """Layers that get a LoRA: attention, attention+text, all-linear, or names of layers."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """How the frozen weights under a LoRA are kept."""
    precision: Dtype = "bfloat16"
    """Type in which models compute."""
    trained: Dtype = "float32"
    """Type of the weights that are trained, where that is the whole transformer; a LoRA's are
    float32."""
    gradient_checkpointing: bool = True
    """Whether to compute each block again in the backward pass: less memory, a third more work."""
    compile: bool = False
    """Whether torch.compile is used on the blocks."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several GPUs: whether each holds the whole model, or a part."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 1
    """Images of one forward pass, all of one size."""
    batches_per_step: int = 4
    """Batches of one optimizer step, over all GPUs."""
    learning_rate: float = 1e-4
    """Of the optimizer."""
    schedule: Schedule = field(default_factory=Schedule)
    """How the learning rate goes."""
    optimizer: Kind = "adamw"
    """adamw, or one with states of 8 bits: adamw8bit (bitsandbytes), adamw8bit_ao (torchao)."""
    weight_decay: float = 0.01
    """Of matrices."""
    max_norm: float | None = 1.0
    """Largest norm of the gradient; null: any."""
    ema: float | None = None
    """Decay of a moving average of the weights, such as 0.999; null: none is kept."""
    timesteps: TimestepSampling = field(default_factory=lambda: TimestepSampling(kind="resolution"))
    """How noise levels are drawn."""
    guidance: float = 1.0
    """The guidance that dev is told in training."""
    mask_padding: bool = False
    """Whether the transformer does not attend to T5's padding; FLUX.1 was trained with it."""
    loss_weight: str | None = None
    """Column or field (json.weight) of each image's weight in the loss."""
    alpha_mask: bool = False
    """Whether an image's opacity says which region counts; needs cache none."""
    validation: Validation = field(default_factory=Validation)
    """What is looked at every so often."""
    save_every: int = 250
    """Steps between two checkpoints; the last step is saved too."""
    keep: int = 3
    """Checkpoints that are kept, the last ones."""
    log_every: int = 10
    """Steps between two lines of the log."""
    trackers: list[Extra] = field(default_factory=list)
    """tensorboard, wandb, or both; log.jsonl and the console are always there."""
    wandb_mode: Literal["online", "offline"] | None = None
    """offline sends nothing."""
    lanes: int = 1
    """Lanes of the order; with remote shards, the largest number of GPUs."""
    num_workers: int = 2
    """Worker processes that read; 0: none."""
    device: str = "auto"
    """cuda, cpu; auto: CUDA where it is."""
    seed: int = 0
    """Of the LoRA's first weights, the noise, and the noise levels; data.seed is the order's."""
    check_memory: bool = True
    """Whether to end before the first step where the GPU's memory will not do."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "batches_per_step", "save_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rank is None and self.quantize != "none":
            raise ValueError("quantize is for the frozen weights under a LoRA: give rank")
        if self.rank is None and self.alpha is not None:
            raise ValueError("alpha is of a LoRA: give rank")
        if self.quantize == "int8" and not self.gradient_checkpointing:
            raise ValueError(
                "quantize int8 without gradient_checkpointing takes more memory than none: its "
                "weights are kept a second time for the backward pass"
            )
        if self.quantize != "none" and self.parallel == "fsdp":
            raise ValueError("quantized weights are not split by fsdp: take ddp, or quantize none")
        if isinstance(self.targets, str) and self.targets not in TARGETS:
            raise ValueError(f"targets must be one of {sorted(TARGETS)} or a list of names")
        if self.alpha_mask and self.cache != "none":
            raise ValueError("alpha_mask needs pixels at each step: set cache none")
        if self.data.step % 16:
            raise ValueError(
                f"FLUX.1 takes sides of multiples of 16: data.step is {self.data.step}"
            )


def main(cfg: Config) -> None:
    """Train, and say where everything is."""
    from .flux_run import train

    try:
        train(cfg)
    except (DataError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(cli(Config))

"""What is looked at before and during a training of FLUX.1: memory, data, loss, pictures."""

import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..models.flux import load_scheduler, load_vae
from ..models.flux_fit import fit_text
from ..models.flux_memory import FluxPlan, FluxSizes
from ..models.flux_sample import sample_flux
from ..pipes.bucket import AspectRatioBucketer
from ..pipes.bucket_report import BucketReport, bucket_report
from ..pipes.graph import Graph
from ..transforms.flow_matching import fixed_sigmas, validation_losses
from .cache_models import DTYPES
from .contact_sheet import write_contact_sheet
from .flux_inputs import Batch, FluxInputs
from .training.ema import Ema
from .training.noise import SampleNoise
from .training.tracker import VAL_LOSS, Trackers
from .training.world import World

if TYPE_CHECKING:
    from .flux import Config

Predict = Callable[..., torch.Tensor]
SHOWN = 40
"""Images on the contact sheet."""

MEASURED = 100_000
"""Images whose sizes are looked at, at most."""


class Look:
    """Measures the loss of held-out images, and draws the prompts.

    Noise, noise levels and seeds are the same each time, so that what changes is the model.

    Args:
        cfg: The run's.
        world: The ranks.
        inputs: Makes batches.
        predict: The model's answer for noised tokens.
        model: The transformer itself, not DDP's wrapper.
    """

    def __init__(
        self, cfg: "Config", world: World, inputs: FluxInputs, predict: Predict, model: nn.Module
    ) -> None:
        self.cfg, self.world, self.inputs = cfg, world, inputs
        self.predict, self.model = predict, model
        self.noise = SampleNoise(cfg.seed)
        # With FSDP2 all ranks go through a forward pass together, so each takes all batches.
        self.together = cfg.parallel == "fsdp" and world.size > 1
        self.held_out = inputs.held_out(whole=self.together)
        self.prompts = cfg.validation.prompts
        if self.prompts:
            self.embeds = inputs.prompts(self.prompts)
            if self.together or world.main:
                self.vae = load_vae(cfg.model, dtype=DTYPES[cfg.precision], device=world.device)
                self.scheduler = load_scheduler(cfg.model)

    def is_due(self, step: int) -> bool:
        """Return whether there is to be a look after ``step`` steps."""
        every = self.cfg.validation.every
        return every > 0 and (step == self.cfg.steps or step % every == 0)

    @torch.no_grad()
    def __call__(self, step: int, trackers: Trackers, ema: Ema | None) -> None:
        """Look, and tell the trackers. A collective."""
        if not self.cfg.validation.every:
            return
        self.model.eval()
        try:
            with ema.applied() if ema is not None else nullcontext():
                if self.held_out is not None:
                    trackers.log(step, self._losses(self.held_out))
                if self.prompts and (self.together or self.world.main):
                    trackers.images(step, "samples", self._pictures(), captions=self.prompts)
        finally:
            self.model.train()
        self.world.barrier()

    def _losses(self, batches: Any) -> dict[str, float]:
        validation = self.cfg.validation
        sigmas = fixed_sigmas(validation.levels)
        sums, count = torch.zeros(len(sigmas), dtype=torch.float64), 0
        most = -(-validation.batches // (1 if self.together else self.world.size))
        for batch in islice(iter(batches), most):
            tokens, refs = self.inputs.tokens(batch), batch["__ref__"]
            shape = tokens.shape[1:]
            noise = self.noise.normal(refs, shape, device=tokens.device, purpose="validation")
            model = partial(self.predict, self.model, batch=batch)
            found = validation_losses(model, tokens, noise, count=len(sigmas))
            sums += found.double().sum(0).cpu()
            count += len(refs)
        *totals, samples = self.world.sum(*sums.tolist(), count)
        each = [total / samples for total in totals] if samples else []
        if not each:
            return {}
        by_level = {f"{VAL_LOSS}_at/{s:.3g}": v for s, v in zip(sigmas.tolist(), each, strict=True)}
        return {VAL_LOSS: sum(each) / len(each), **by_level}

    def _pictures(self) -> list[torch.Tensor]:
        validation = self.cfg.validation
        found = sample_flux(
            self.model,
            self.vae,
            self.scheduler,
            prompt_embeds=self.embeds["t5_embeds"],
            pooled_embeds=self.embeds["clip_pooled"],
            seeds=range(len(self.prompts)),
            height=validation.height,
            width=validation.width,
            steps=validation.steps,
            guidance=validation.guidance,
            text_mask=self.embeds["t5_attention_mask"] if self.cfg.mask_padding else None,
        )
        return list(found)


def check_memory(cfg: "Config", world: World) -> None:
    """Say what training will take of the GPU, and end here where it will not fit.

    Raises:
        ValueError: It does not fit; the message says what to change, in which order.
    """
    if world.device.type != "cuda":
        return
    sides = (
        cfg.data.resolution if isinstance(cfg.data.resolution, int) else max(cfg.data.resolution)
    )
    side = -(-sides // 16) * 16
    plan = FluxPlan(
        height=side,
        width=side,
        batch_size=cfg.batch_size,
        lora_rank=cfg.rank,
        lora_targets=cfg.targets,  # type: ignore[arg-type]
        trained="bfloat16" if cfg.rank is None and cfg.trained == "bfloat16" else "float32",
        quantize=cfg.quantize,
        gradient_checkpointing=cfg.gradient_checkpointing,
        optimizer=_states(cfg.optimizer),
        ema=cfg.ema is not None,
        cached=cfg.cache != "none",
        pictures=bool(cfg.validation.prompts),
        shards=world.size if cfg.parallel == "fsdp" else 1,
    )
    free, _ = torch.cuda.mem_get_info(world.device)
    said = fit_text(plan, free, FluxSizes.from_pretrained(cfg.model))
    if world.main:
        print(said, file=sys.stderr)
    if cfg.check_memory and "does not fit" in said:
        raise ValueError(f"{said}\n(check_memory false trains all the same)")


def _states(kind: str) -> Any:
    return {"adamw": "adamw", "adamw4bit_ao": "adamw4bit"}.get(kind, "adamw8bit")


def show_data(cfg: "Config", world: World) -> None:
    """Write a contact sheet of what is trained on, with the crops and captions that it gets.

    It says how many images each bucket has, and where a batch would be filled with one image.
    """
    if not world.main or (cfg.out / "contact_sheet.png").exists():
        return
    order = cfg.data.batches(cfg.batch_size, "train")
    loader = cfg.data.decoded(order).loader(rank=0, world_size=1, epoch_batches=SHOWN)
    shown: list[Batch] = []
    for batch in loader:
        shown.append(batch)
        if sum(len(one["image"]) for one in shown) >= SHOWN:
            break
    loader.close()
    report = _buckets(loader.graph)
    few = _few(report, cfg.batch_size)
    if few:
        print(few, file=sys.stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the page says what is left out
        write_contact_sheet(
            shown,
            cfg.out,
            title="What is trained on",
            notes=few,
            report_html="" if report is None else report.to_html(),
        )


def _buckets(graph: Graph) -> BucketReport | None:
    """Return how the images fall into the buckets; None where there are too many to look at."""
    (source,) = graph.sources
    counts = graph.sample_counts()
    (bucketer,) = (step for step in graph.steps if isinstance(step, AspectRatioBucketer))
    if counts is None or counts["total"] > MEASURED:
        return None
    return bucket_report(bucketer.buckets, np.concatenate([*source.image_sizes()]))


def _few(report: BucketReport | None, batch_size: int) -> str:
    """Return the words for buckets that have fewer images than a batch; "" where none has."""
    if report is None:
        return ""
    few = [row for row in report.rows if 0 < row.images < batch_size and row.size is not None]
    if not few:
        return ""
    least = min(few, key=lambda row: row.images)
    assert least.size is not None
    height, width = least.size
    return (
        f"{len(few)} of the buckets have fewer images than a batch of {batch_size}, for one "
        f"{height} x {width} (height x width) has {least.images}: their batches hold the same "
        "image more than once. batch_size 1 and more batches_per_step mix them instead"
    )

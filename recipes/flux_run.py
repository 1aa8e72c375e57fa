"""The training loop of FLUX.1."""

import dataclasses
import json
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..models.flux import load_transformer
from ..models.flux_save import save_transformer
from ..models.flux_velocity import flux_velocity
from ..models.lora import add_lora, save_lora
from ..transforms import flux_image_ids, flux_text_ids
from ..transforms.flow_matching import flow_loss, noised, token_masks, velocity
from .cache_models import DTYPES
from .flux_inputs import Batch, FluxInputs
from .flux_look import Look, check_memory, show_data
from .training.checkpoint import Checkpoint, Checkpoints
from .training.ema import Ema
from .training.noise import SampleNoise, seed_step
from .training.open_trackers import open_trackers
from .training.optimizer import make_optimizer
from .training.optimizer_state import pack_optimizer, unpack_optimizer
from .training.pace import Pace
from .training.parallel import (
    accumulating,
    bare,
    clip_gradients,
    parallelize,
    scale_gradients,
    trainable,
)
from .training.report import write_report
from .training.schedule import set_rate
from .training.stop import Stop
from .training.tracker import IMAGES_PER_SECOND, TRAIN_LOSS
from .training.world import World, join_world
from .write_file import write_file

if TYPE_CHECKING:
    from .flux import Config

MOVES = frozenset(
    ("out", "cache_dir", "steps", "validation", "save_every", "keep", "log_every", "trackers")
) | frozenset(("wandb_mode", "num_workers", "device", "check_memory", "compile", "parallel"))
"""Options that may be others when a run goes on: they change nothing of what is learnt."""


def train(cfg: "Config") -> None:
    """Run a training to its end, or until it is told to stop.

    Raises:
        OSError: Data or models are missing, or the folder cannot be written.
        ValueError: They are others than the config says, or the run was begun with another config.
    """
    with join_world(None if cfg.device == "auto" else cfg.device) as world:
        if world.main:
            print(cfg)
            cfg.out.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(cfg.out / "checkpoints", keep=cfg.keep, world=world)
        last = world.from_main(checkpoints.latest())
        found = checkpoints.load(last) if last is not None else None
        if found is not None:
            _check_same(cfg, found)
        world.share(cfg.batches_per_step)
        check_memory(cfg, world)
        inputs = FluxInputs(cfg, world)
        show_data(cfg, world)
        run = FluxRun(cfg, world, inputs, found)
        run.go(checkpoints)


class FluxRun:
    """One training: the model, what is trained of it, and where it is.

    Args:
        cfg: The run's.
        world: The ranks.
        inputs: Makes batches.
        found: The checkpoint that it goes on from; None begins.
    """

    def __init__(
        self, cfg: "Config", world: World, inputs: FluxInputs, found: Checkpoint | None
    ) -> None:
        self.cfg, self.world, self.inputs = cfg, world, inputs
        self.noise = SampleNoise(cfg.seed)
        self.model = self._model()
        self.trained = trainable(self.model)
        self.optimizer = make_optimizer(
            cfg.optimizer, self.trained.items(), rate=cfg.learning_rate, decay=cfg.weight_decay
        )
        self.ema = None if cfg.ema is None else Ema(self.trained.items(), cfg.ema)
        self.batches = inputs.training()
        self.step = 0
        if found is not None:
            self._go_on(found)
        self.look = Look(cfg, world, inputs, self.predict, bare(self.model))

    def _model(self) -> nn.Module:
        from diffusers.models.transformers import transformer_flux as blocks  # seconds to import

        cfg = self.cfg
        kind = cfg.precision if cfg.rank is not None else cfg.trained
        model = load_transformer(
            cfg.model,
            dtype=DTYPES[kind],
            quantize=cfg.quantize,
            device=self.world.device,
            gradient_checkpointing=cfg.gradient_checkpointing,
        )
        if cfg.rank is None:
            model.requires_grad_(True)
        else:
            add_lora(model, rank=cfg.rank, alpha=cfg.alpha, targets=cfg.targets, seed=cfg.seed)
        model.train()
        return parallelize(
            model,
            self.world,
            mode=cfg.parallel,
            blocks=(blocks.FluxTransformerBlock, blocks.FluxSingleTransformerBlock),
            dtype=DTYPES[cfg.precision] if cfg.parallel == "fsdp" and cfg.rank is None else None,
            compile=cfg.compile,
        )

    # -- one step -------------------------------------------------------------------------------

    def predict(
        self, model: nn.Module, tokens: torch.Tensor, sigmas: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        """Return the velocities that the model tells for noised tokens of a batch."""
        cfg, device = self.cfg, tokens.device
        height, width = batch["latents"].shape[-2:]
        precision = DTYPES[cfg.precision]
        mixed = cfg.rank is None and precision != DTYPES[cfg.trained]
        with torch.autocast(device.type, precision, enabled=mixed):
            return flux_velocity(
                model,
                tokens,
                sigmas,
                prompt_embeds=batch["t5_embeds"],
                pooled_embeds=batch["clip_pooled"],
                image_ids=flux_image_ids(height // 2, width // 2).to(device),
                text_ids=flux_text_ids(batch["t5_embeds"].shape[1]).to(device),
                guidance=cfg.guidance,
                text_mask=batch["t5_attention_mask"] if cfg.mask_padding else None,
            )

    def losses(self, batch: Batch) -> torch.Tensor:
        """Return the loss of each sample of a batch, float32 [B]."""
        tokens, refs = self.inputs.tokens(batch), batch["__ref__"]
        noise = self.noise.normal(refs, tokens.shape[1:], device=tokens.device)
        levels = self.cfg.timesteps(self.noise.uniform(refs, "timestep"), tokens.shape[1])
        sigmas = levels.to(tokens.device)
        found = self.predict(self.model, noised(tokens, noise, sigmas), sigmas, batch)
        return flow_loss(
            found,
            velocity(tokens, noise),
            masks=token_masks(batch["mask"]) if "mask" in batch else None,
            weights=self.inputs.weights(batch),
        )

    def make_step(self, batches: list[Batch]) -> dict[str, float]:
        """Learn from this rank's batches of a step; return what there is to tell of it."""
        seed_step(self.cfg.seed, self.step, self.world.rank)
        total, count = torch.zeros((), device=self.world.device), 0
        for i, batch in enumerate(batches):
            with accumulating(self.model, last=i == len(batches) - 1):
                loss = self.losses(batch).sum()
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            count += len(batch["__ref__"])
        loss_sum, samples = self.world.sum(float(total), count)
        parameters = list(self.trained.values())
        scale_gradients(parameters, self.world.size / samples)
        norm = clip_gradients(parameters, self.cfg.max_norm)
        rate = set_rate(self.optimizer, self.cfg.schedule.factor(self.step, self.cfg.steps))
        if torch.isfinite(torch.tensor(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        return {
            TRAIN_LOSS: loss_sum / samples,
            "grad_norm": norm,
            "lr": rate,
            "samples": samples,
        }

    # -- the whole ------------------------------------------------------------------------------

    def go(self, checkpoints: Checkpoints) -> None:
        """Train to the end, or until told to stop; write everything that there is to keep."""
        cfg, world = self.cfg, self.world
        checkpoints.forget_after(self.step)
        trackers = open_trackers(
            cfg.out,
            cfg.trackers,
            rank=world.rank,
            step=self.step,
            steps=cfg.steps,
            config=plain(cfg),
            wandb_mode=cfg.wandb_mode,
        )
        if world.main:
            write_file(cfg.out / "config.json", json.dumps(plain(cfg), indent=1))
        share, pace, saved = world.share(cfg.batches_per_step), Pace(), self.step
        with trackers, Stop(world) as stop:
            if self.step == 0:
                self.look(0, trackers, self.ema)
            batches = iter(self.batches)
            while self.step < cfg.steps and not stop.asked():
                values = self.make_step([next(batches) for _ in range(share)])
                last = self.step == cfg.steps
                pace.add(int(values.pop("samples")))
                trackers.progress(self.step)
                if last or self.step % cfg.log_every == 0:
                    trackers.log(self.step, values | {IMAGES_PER_SECOND: pace.rate()})
                with pace.pause():
                    if self.look.is_due(self.step):
                        self.look(self.step, trackers, self.ema)
                        self._report()
                    if last or self.step % cfg.save_every == 0:
                        self.save(checkpoints)
                        saved = self.step
            if saved != self.step:
                self.save(checkpoints)
        self.batches.close()
        self._report()
        done = self.step >= cfg.steps
        where = self.export() if done else None
        if world.main:
            told = f"{cfg.out}: stopped at step {self.step:,} of {cfg.steps:,}; the same command "
            print(f"{where}" if done else f"{told}goes on", file=sys.stdout)

    def _report(self) -> None:
        if self.world.main:
            write_report(self.cfg.out, config=plain(self.cfg), steps=self.cfg.steps)

    def save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint. A collective."""
        tensors, rest = pack_optimizer(self.optimizer, self.trained)
        groups: dict[str, dict[str, torch.Tensor]] = {
            "model": dict(self.trained),
            "optimizer": tensors,
        }
        if self.ema is not None:
            groups["ema"] = self.ema.tensors()
        state = {
            "config": plain(self.cfg),
            "optimizer": rest,
            "loader": self.batches.gather_state(),
        }
        checkpoints.save(self.step, groups, state)

    def _go_on(self, found: Checkpoint) -> None:
        rest = found.state["optimizer"]
        found.fill("optimizer", unpack_optimizer(self.optimizer, self.trained, rest))
        found.fill("model", dict(self.trained))
        if self.ema is not None:
            found.fill("ema", self.ema.tensors())
        self.batches.load_state_dict(found.state["loader"])
        self.step = found.step

    def export(self) -> str:
        """Write what was learnt as diffusers loads it; return where it is. A collective."""
        cfg, model = self.cfg, bare(self.model)
        with self.ema.applied() if self.ema is not None else nullcontext():
            if cfg.rank is None:
                where = save_transformer(
                    model, cfg.out / "transformer", overwrite=True, write=self.world.main
                )
                return f"{where}: the transformer, for FluxTransformer2DModel.from_pretrained"
            where = save_lora(model, cfg.out / "lora", write=self.world.main)
        return f"{where}: the LoRA, for FluxPipeline.load_lora_weights"


def plain(cfg: "Config") -> dict[str, Any]:
    """Return a config as JSON holds it."""
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(cfg), default=str))
    return found


def _check_same(cfg: "Config", found: Checkpoint) -> None:
    """Refuse to go on with a run that learnt something else."""
    before, now = found.state["config"], plain(cfg)
    differing = [
        f"{name} was {before.get(name)!r}, is {now[name]!r}"
        for name in now
        if name not in MOVES and before.get(name) != now[name]
    ]
    if differing:
        raise ValueError(
            f"{found.path} is of a run with another config: {'; '.join(differing)}. Give another "
            "out, or the same config"
        )

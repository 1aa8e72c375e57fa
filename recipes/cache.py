"""Compute latents and text embeddings once, before training.

    python -m penstock.recipes.cache --config cache.yaml
    python -m penstock.recipes.cache --data.url photographs --data.resolution 512 \
        --model path/or/hub-id --out cache
    torchrun --nproc_per_node 8 -m penstock.recipes.cache --config cache.yaml

``data`` is the part of a config that the training recipe has too: the same images, crops, flips and
captions. All variants of them are computed, so that training finds every one. What is there already
stays: the run can be killed at any moment and started again, on any number of processes, and after
adding images, or changing a caption, only what is new is computed.

``model`` is a checkpoint of FLUX.1 as diffusers lays it out; of any other with an AutoencoderKL the
latents alone (``--texts none``). The caches lie in ``out/latents``, ``out/clip`` and ``out/t5``.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..pipes import EntryStore
from ..pipes.errors import DataError
from ..pipes.rank import place_of
from ._cli import cli
from .all_ranks import all_ranks
from .cache_latents import fill_latents
from .cache_models import CacheModels, Dtype, this_device
from .cache_texts import fill_texts
from .cache_walk import Filled
from .image_data import ImageData


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compute latents and text embeddings once, before training."""

    data: ImageData
    """Images and captions, as the training recipe takes them."""
    model: str
    """Folder or hub id of a FLUX.1 checkpoint."""
    out: Path
    """Folder for the caches; made if missing."""
    latents: Literal["posterior", "mean", "none"] = "posterior"
    """What is kept of an image: the posterior, from which each visit draws afresh, its mean (half
    the bytes, and no draws), or nothing."""
    texts: Literal["full", "float8", "ids", "none"] = "full"
    """What is kept of a caption: the text encoders' outputs, these in float8 (half the bytes, with
    an error that is reported), token ids alone (a thousandth; encoded at each step), or nothing."""
    dtype: Dtype = "bfloat16"
    """Type of what is kept."""
    precision: Dtype = "bfloat16"
    """Type in which the models compute."""
    variant: Literal["dev", "schnell"] | None = None
    """Of FLUX.1, which says how many tokens T5 gets; else the checkpoint's own config does."""
    batch_size: int = 8
    """Images, or captions, that a model gets at once. Other batches may change last bits."""
    num_workers: int = 2
    """Worker processes that read and decode; 0: none."""
    device: str = "auto"
    """Where the models run; auto: this process's GPU, or the CPU where there is none."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an image that cannot be decoded does: end the run, or be left out, named and counted."""
    prune: bool = False
    """Whether to drop what this run did not ask for: of images, captions and models of before."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                "batch_size must be at least 1 and num_workers at least 0, got "
                f"{self.batch_size} and {self.num_workers}"
            )
        if self.latents == self.texts == "none":
            raise ValueError("latents and texts are both none: there is nothing to compute")


def main(cfg: Config) -> None:
    """Fill the caches; the first process sums up what all have done."""
    rank, world_size = place_of(None, None)
    if rank == 0:
        print(cfg)
    try:
        done = fill(cfg, rank, world_size)
        ranks = all_ranks(done, world_size)
        if rank == 0:
            print(_summary(cfg, ranks))
            if cfg.prune:
                print(_prune(cfg, ranks))
    except (DataError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def fill(cfg: Config, rank: int = 0, world_size: int = 1) -> dict[str, Filled]:
    """Compute this process's part of what is missing; return what was done, by cache.

    The VAE is gone before the text encoders are loaded.

    Raises:
        DataError: A sample is bad, and not to be passed over.
        ValueError: The data, or the checkpoint, is another than the config says.
        OSError: Something cannot be read or written.
    """
    device = this_device(cfg.device)
    cfg.data.source("train")  # what is wrong with the data is said before models are loaded
    how: dict[str, Any] = {
        "num_workers": cfg.num_workers,
        "device": device,
        "on_error": cfg.on_error,
        "quarantine": cfg.out / f"unread-{rank:05d}.jsonl",
        "rank": rank,
        "world_size": world_size,
    }
    models = CacheModels(cfg.model, cfg.out, cfg.variant, cfg.dtype, cfg.precision, cfg.batch_size)
    done: dict[str, Filled] = {}
    if cfg.latents != "none":
        cache = models.latents(cfg.latents, device)
        done["latents"] = fill_latents(cfg.data, cache, cfg.batch_size, **how)
        del cache
    if cfg.texts != "none":
        caches = models.texts(cfg.texts, device)
        done |= fill_texts(cfg.data, caches, cfg.batch_size, **how)
    return done


def _summary(cfg: Config, ranks: list[dict[str, Filled]]) -> str:
    lines = []
    for name in ranks[0]:
        each = [done[name] for done in ranks]
        made, there = sum(one.made for one in each), sum(one.there for one in each)
        seconds = max(one.seconds for one in each)
        entries, size = EntryStore(cfg.out / name).sizes()
        line = f"{cfg.out / name}: {entries:,} entries, {size / 1e9:.3g} GB; {made:,} computed"
        line += f" in {seconds:.0f} s ({made / seconds:.1f} a second)" if made else ""
        line += f", {there:,} were there"
        skipped = sum(one.skipped for one in each)
        lines.append(line + (f"; {skipped:,} samples could not be read" if skipped else ""))
        errors = [one.error for one in each if one.error is not None]
        if errors:
            lines.append(f"  what float8 loses: {max(errors):.2%} of the outputs' norm")
    return "\n".join(lines)


def _prune(cfg: Config, ranks: list[dict[str, Filled]]) -> str:
    """Drop the entries that no process asked for."""
    lines = []
    for name in ranks[0]:
        wanted = frozenset().union(*(done[name].names for done in ranks))
        dropped = EntryStore(cfg.out / name).prune(wanted)
        lines.append(
            f"{cfg.out / name}: {dropped.entries:,} entries dropped, {dropped.bytes / 1e9:.3g} GB"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(cli(Config))

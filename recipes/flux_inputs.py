"""What FLUX.1's transformer is trained on: latents and text embeddings, from caches or encoders."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from ..models.weights import find_part
from ..pipes import ElasticDataLoader, EntryStore, Pipe
from ..pipes.on_device import DeviceLoader
from ..transforms import LatentCache, TextCache, flux_pack_latents, flux_scale_latents
from ..transforms.cache import Cache
from ..transforms.posterior import draw_latents
from .cache_latents import fill_latents
from .cache_models import CacheModels
from .cache_texts import fill_texts
from .image_data import Split
from .training.world import World

if TYPE_CHECKING:
    from .flux import Config

Batch = dict[str, Any]
C = TypeVar("C", bound=Cache)
FOREVER = 1 << 40
"""Batches of an epoch: steps are what is counted here."""


class FluxInputs:
    """Makes batches of tokens, embeddings and weights, on the device.

    With caches, what is missing of them is computed first, and the encoders are gone afterwards.
    Without, they stay, and run at each step.

    Args:
        cfg: The run's.
        world: The ranks; each computes its part.

    Raises:
        OSError: Data or models are missing.
        ValueError: They are others than the config says.
    """

    def __init__(self, cfg: "Config", world: World) -> None:
        self.cfg = cfg
        self.world = world
        cfg.data.source("train")  # what is wrong with it is said before models are loaded
        self.vae = find_part(cfg.model, "vae", ("AutoencoderKL",)).config
        folder = cfg.cache_dir or cfg.out / "cache"
        self.models = CacheModels(
            cfg.model, folder, cfg.variant, cfg.precision, cfg.precision, cfg.batch_size
        )
        self.latents = self._latents() if cfg.cache != "none" else None
        self.encoder = None if self.latents else self.models.encoder("posterior", world.device)
        self.texts = self._texts()

    def _walk(self) -> dict[str, Any]:
        return {
            "num_workers": self.cfg.num_workers,
            "device": self.world.device,
            "on_error": "raise",
            "quarantine": self.cfg.out / "quarantine.jsonl",
            "rank": self.world.rank,
            "world_size": self.world.size,
        }

    def _latents(self) -> LatentCache:
        assert self.cfg.cache != "none"
        cache = self.models.latents(self.cfg.cache, self.world.device)
        fill_latents(self.cfg.data, cache, 8, **self._walk())
        self.world.barrier()
        return self._without_encoder(cache)

    def _texts(self) -> Mapping[str, TextCache]:
        caches = self.models.texts(self.cfg.texts, self.world.device)
        if self.cfg.cache == "none":
            return caches
        prompts = self.cfg.validation.prompts
        fill_texts(self.cfg.data, caches, 32, also=prompts, **self._walk())
        self.world.barrier()
        return {name: self._without_encoder(cache) for name, cache in caches.items()}

    def _without_encoder(self, cache: C) -> C:
        """Return a cache whose model is gone; what other ranks have written is seen."""
        cache.encoder = None
        assert isinstance(cache.store, EntryStore)
        cache.store.refresh()
        return cache

    # -- loaders --------------------------------------------------------------------------------

    def training(self) -> DeviceLoader:
        """Return the loader of what is trained on, without end."""
        cfg = self.cfg
        order = cfg.data.batches(cfg.batch_size, "train", lanes=cfg.lanes)
        place = (self.world.rank, self.world.size)
        return self._on_device(self._loader(order, "train", FOREVER, *place))

    def held_out(self, *, whole: bool) -> DeviceLoader | None:
        """Return the loader of what is held out, in one pass; None where nothing is.

        Args:
            whole: Whether this rank gets all of it, and not its part.
        """
        if not self.cfg.data.validation:
            return None
        order = self.cfg.data.batches(self.cfg.batch_size, "validation", repeat=False)
        place = (0, 1) if whole else (self.world.rank, self.world.size)
        return self._on_device(self._loader(order, "validation", None, *place))

    def _loader(
        self, order: Pipe, split: Split, epoch: int | None, rank: int, world_size: int
    ) -> ElasticDataLoader:
        pipe = self.cfg.data.decoded(
            order,
            latents=self.latents,
            augment=split == "train",
            alpha="mask" if self.cfg.alpha_mask else "matte",
        )
        for cache in self.texts.values():
            pipe = pipe.transform(cache.lookup)
        workers = self.cfg.num_workers if split == "train" else 0
        return pipe.loader(
            workers,
            epoch_batches=epoch,
            pin_memory=self.world.device.type == "cuda",
            rank=rank,
            world_size=world_size,
        )

    def _on_device(self, loader: ElasticDataLoader) -> DeviceLoader:
        fills = [cache.fill for cache in self.texts.values()]
        first = self.latents.fill if self.latents is not None else self._encoded
        return loader.on_device(self.world.device, first, *fills)

    def _encoded(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Return the batch with ``latents`` in the place of ``image``."""
        assert self.encoder is not None
        rows = self.encoder(batch["image"])
        found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        out = {name: value for name, value in batch.items() if name != "image"}
        return {**out, "latents": draw_latents(found, rng, True)}

    # -- what the model takes -------------------------------------------------------------------

    def tokens(self, batch: Batch) -> torch.Tensor:
        """Return a batch's latents scaled and packed, float32 [B, n, 64]."""
        latents = flux_scale_latents(
            batch["latents"].float(),
            scale=self.vae["scaling_factor"],
            shift=self.vae["shift_factor"],
        )
        return flux_pack_latents(latents)

    def prompts(self, captions: Sequence[str]) -> Batch:
        """Return the embeddings of captions, as a batch has them."""
        batch: Batch = {"caption": list(captions)}
        for cache in self.texts.values():
            batch = cache.fill(cache.lookup(batch))
        return {k: v.to(self.world.device) for k, v in batch.items() if torch.is_tensor(v)}

    def weights(self, batch: Batch) -> torch.Tensor | None:
        """Return each image's weight in the loss, float32 [B]; None where all are 1.

        Raises:
            ValueError: An image has none, or what it has is no number.
        """
        name = self.cfg.loss_weight
        if name is None:
            return None
        field, _, inner = name.partition(".")
        values = batch.get(field)
        if inner and isinstance(values, list):
            values = [value.get(inner) if isinstance(value, Mapping) else None for value in values]
        if isinstance(values, torch.Tensor):
            return values.float().to(self.world.device)
        try:
            found = [float(cast(Any, value)) for value in cast(Any, values)]
        except (TypeError, ValueError):
            raise ValueError(
                f"loss_weight is {name!r}: not every image of {batch['__key__']} has a number there"
            ) from None
        return torch.tensor(found, device=self.world.device)

"""The models whose outputs are cached, and the folders that these lie in."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..models.flux import load_clip, load_t5, load_vae
from ..pipes import EntryStore
from ..transforms import FluxTransform, LatentCache, LatentEncoder, TextCache, TextEncoder

Dtype = Literal["bfloat16", "float16", "float32"]
DTYPES: dict[Dtype, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class CacheModels:
    """A FLUX.1 checkpoint's encoders, each with the cache of what it gives.

    The same arguments open the same entries, so the recipe that fills caches and the one that
    trains from them both open them here.

    Attributes:
        model: The checkpoint's folder, or its id on the hub.
        out: Folder of the caches.
        variant: "dev" or "schnell"; None: as the checkpoint says.
        dtype: Type of what is kept.
        precision: Type in which the models compute.
        batch_size: Images or captions that a model gets at once.
    """

    model: str
    out: Path
    variant: Literal["dev", "schnell"] | None = None
    dtype: Dtype = "bfloat16"
    precision: Dtype = "bfloat16"
    batch_size: int = 8

    def latents(self, keep: Literal["posterior", "mean"], device: torch.device) -> LatentCache:
        """Return the cache of latents, with the VAE loaded.

        Raises:
            OSError: A file is missing.
            ValueError: It holds another model.
        """
        return LatentCache(EntryStore(self.out / "latents"), self.encoder(keep, device))

    def encoder(self, keep: Literal["posterior", "mean"], device: torch.device) -> LatentEncoder:
        """Return the VAE's encoder. Raises as `latents`."""
        vae = load_vae(self.model, dtype=DTYPES[self.precision], device=device)
        return LatentEncoder(vae, keep=keep, dtype=DTYPES[self.dtype], batch_size=self.batch_size)

    def texts(
        self, kept: Literal["full", "float8", "ids"], device: torch.device
    ) -> dict[str, TextCache]:
        """Return the caches of CLIP's pooled output and of T5's, with the models loaded.

        CLIP's 768 numbers are kept as they are, whatever becomes of T5's.

        Raises:
            OSError: A file is missing.
            ValueError: It holds another model or tokenizer.
        """
        tokens = FluxTransform.from_pretrained(self.model, variant=self.variant)
        clip, t5 = tokens.encoders
        how: dict[str, Any] = {"dtype": DTYPES[self.dtype], "max_batch": self.batch_size}
        loaded: dict[str, Any] = {"dtype": DTYPES[self.precision], "device": device}
        encoders = {
            "clip": TextEncoder.flux_clip(load_clip(self.model, **loaded), clip, **how),
            "t5": TextEncoder.flux_t5(
                load_t5(self.model, **loaded), t5, variant=tokens.variant, **how
            ),
        }
        return {
            name: TextCache(
                EntryStore(self.out / name),
                encoder,
                name=name,
                bytes="full" if name == "clip" and kept == "float8" else kept,
            )
            for name, encoder in encoders.items()
        }


def this_device(name: str = "auto") -> torch.device:
    """Return the device of that name; "auto" is this process's GPU, or the CPU without one."""
    if name != "auto":
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

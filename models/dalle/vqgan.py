"""VQGAN checkpoints of taming-transformers as image tokenizers."""

import math
from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pickled_module import load_husks
from .vq_network import VQDecoder, VQEncoder, VQSizes, nearest

FOLDER = Path("~/.cache/dalle")
"""Where dalle-pytorch kept the files."""
TARGETS = {"taming.models.vqgan.VQModel": False, "taming.models.vqgan.GumbelVQ": True}
"""The models that a configuration may name, and whether they choose by logits."""
LIGHTNING = tuple(
    f"{package}.callbacks.{name}"
    for package in ("pytorch_lightning", "lightning.pytorch")
    for name in (
        *("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping"),
        *("lr_monitor.LearningRateMonitor", "base.Callback"),
    )
)
"""Names in the checkpoints of trainings, beside the weights."""


class VQGanVAE(nn.Module):
    """A VQGAN (Esser et al. 2021, arXiv 2012.09841) trained by taming-transformers.

    Nothing is downloaded. Of the configuration the sizes are read and the name of the model is
    looked up in a list of two; no class that it names is made. Of the checkpoint the weights are
    read; a file with objects of unknown classes is refused.

    Args:
        vqgan_model_path: The ``.ckpt``; where dalle-pytorch kept it, in ~/.cache/dalle, if None.
        vqgan_config_path: The configuration, YAML, likewise.
        image_size: Side of the images in pixels.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file holds something else, or the weights do not fit.
    """

    def __init__(
        self,
        vqgan_model_path: str | PathLike[str] | None = None,
        vqgan_config_path: str | PathLike[str] | None = None,
        image_size: int = 256,
    ) -> None:
        super().__init__()
        weights_path = _path(vqgan_model_path, "vqgan.1024.model.ckpt")
        config_path = _path(vqgan_config_path, "vqgan.1024.config.yml")
        gumbel, params = _config(config_path)
        known = VQSizes.__dataclass_fields__
        sizes = VQSizes(**{k: v for k, v in params["ddconfig"].items() if k in known})
        codes, dim = int(params["n_embed"]), int(params["embed_dim"])
        self.is_gumbel = gumbel
        self.encoder, self.decoder = VQEncoder(sizes), VQDecoder(sizes)
        middle = sizes.z_channels * (2 if sizes.double_z else 1)
        self.quant_conv = nn.Conv2d(middle, dim, 1)
        self.post_quant_conv = nn.Conv2d(dim, sizes.z_channels, 1)
        self.codebook = nn.Embedding(codes, dim)
        self.proj = nn.Conv2d(dim, codes, 1) if gumbel else None
        self._take(weights_path)
        self.image_size, self.channels = image_size, sizes.in_channels
        self.num_layers, self.num_tokens = len(sizes.ch_mult) - 1, codes
        self.requires_grad_(False)

    @torch.no_grad()
    def get_codebook_indices(self, images: Tensor) -> Tensor:
        """Return the codes of images, float [B, C, S, S] in [0, 1], as int64 [B, n]."""
        latents: Tensor = self.quant_conv(self.encoder(images * 2 - 1))
        if self.proj is not None:
            logits: Tensor = self.proj(latents)
            return logits.argmax(dim=1).flatten(1)
        return nearest(latents, self.codebook.weight)

    def decode(self, img_seq: Tensor) -> Tensor:
        """Return the images of codes, integers [B, n], as float [B, C, S, S] in [0, 1]."""
        side = math.isqrt(img_seq.shape[1])
        latents = self.codebook(torch.unflatten(img_seq, 1, (side, side))).movedim(-1, 1)
        images: Tensor = self.decoder(self.post_quant_conv(latents))
        return images.clamp(-1, 1) / 2 + 0.5

    def _take(self, path: Path) -> None:
        found = load_husks(path, LIGHTNING)
        weights = found.get("state_dict", found) if isinstance(found, dict) else {}
        names = {
            "quantize.embedding.weight": "codebook.weight",
            "quantize.embed.weight": "codebook.weight",
            "quantize.proj.weight": "proj.weight",
            "quantize.proj.bias": "proj.bias",
        }
        weights = {names.get(k, k): v for k, v in weights.items()}
        # A checkpoint of a training also holds the loss's networks.
        ours = {k: v for k, v in weights.items() if k in self.state_dict()}
        try:
            self.load_state_dict(ours)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit its configuration: {error}") from error


class DiffusersVQ(nn.Module):
    """A VQModel of diffusers as an image tokenizer.

    Args:
        model: The ``diffusers.VQModel``.
        image_size: Side of the images in pixels; the model's ``sample_size`` if None.
    """

    def __init__(self, model: Any, image_size: int | None = None) -> None:
        super().__init__()
        config = model.config
        self.model = model
        self.image_size = int(config.sample_size if image_size is None else image_size)
        self.num_layers = len(config.block_out_channels) - 1
        self.num_tokens, self.channels = int(config.num_vq_embeddings), int(config.in_channels)
        self.requires_grad_(False)

    @torch.no_grad()
    def get_codebook_indices(self, images: Tensor) -> Tensor:
        """Return the codes of images, float [B, C, S, S] in [0, 1], as int64 [B, n]."""
        latents = self.model.encode(images * 2 - 1).latents
        return nearest(latents, self.model.quantize.embedding.weight)

    def decode(self, img_seq: Tensor) -> Tensor:
        """Return the images of codes, integers [B, n], as float [B, C, S, S] in [0, 1]."""
        side = math.isqrt(img_seq.shape[1])
        table = self.model.quantize.embedding.weight
        latents = F.embedding(torch.unflatten(img_seq, 1, (side, side)), table).movedim(-1, 1)
        images: Tensor = self.model.decode(latents, force_not_quantize=True).sample
        return images.clamp(-1, 1) / 2 + 0.5


def _path(path: str | PathLike[str] | None, name: str) -> Path:
    path = FOLDER.expanduser() / name if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: VQGANs are not downloaded; pass a path")
    return path


def _config(path: Path) -> tuple[bool, dict[str, Any]]:
    """Return whether the model chooses by logits, and its parameters."""
    yaml: Any = import_module("yaml")
    try:
        model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        target, params = model["target"], model["params"]
        for key in ("ddconfig", "n_embed", "embed_dim"):
            params[key]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{fspath(path)} is no configuration of a VQGAN: {error}") from error
    if target not in TARGETS:
        raise ValueError(f"{fspath(path)} names {target!r}; known are {', '.join(TARGETS)}")
    return TARGETS[target], params

"""From pixels to latents, as they are cached: the posterior's mean and log-variance, unscaled."""

from collections.abc import Callable
from typing import Any, Final, Literal

import torch

from .entry import Ingredients, Tensors
from .fingerprint import fingerprint
from .images import normalize_image
from .posterior import LOGVAR

Keep = Literal["posterior", "mean"]

WITHOUT: Final = ("decoder.", "post_quant_conv.")
"""Weights of a VAE that encoding does not use: one with another decoder gives the same latents."""

AFTERWARDS: Final = (
    *("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"),
    *("sample_size", "up_block_types", "decoder_block_out_channels", "use_post_quant_conv"),
    *("batch_norm_eps", "batch_norm_momentum"),
)
"""Entries of a VAE's config that say what is done with latents, not what they are."""


class LatentEncoder:
    """Encodes pixels by a VAE of diffusers, or by a function of one's own.

    What it gives is raw: as the VAE's encoder gives it, neither shifted nor scaled (nor, of
    FLUX.2, patched and normalised). `flux_scale_latents` and the like do that to what comes out of
    the cache, so another scale costs no new encoding.

    The fingerprint is of the weights that encode: another decoder is no difference. On most devices
    the last bits of what a model computes depend on how many rows it is given; with
    ``batch_size=1`` an entry depends on its own pixels alone.

    Args:
        vae: diffusers' AutoencoderKL, AutoencoderKLFlux2, VQModel, AutoencoderDC, …, in ``eval()``,
            on its device, in the type that it is to compute in. Or a function that takes pixels in
            [-1, 1], ``compute`` [B, 3, H, W], and returns latents [B, C, h, w], or a dict of
            ``mean`` and ``logvar``.
        keep: ``"posterior"``: mean and log-variance, for a fresh draw at each visit. ``"mean"``:
            half the bytes, and no draws.
        dtype: Of what is stored.
        batch_size: Most images that are encoded at once.
        fingerprint: Of a function: changed by the caller whenever what it computes changes.
        compute: The type of the pixels that it takes; None: that of its weights, or float32.

    Raises:
        ValueError: A function has no fingerprint, or ``keep`` is none.
    """

    def __init__(
        self,
        vae: Any,
        *,
        keep: Keep = "posterior",
        dtype: torch.dtype = torch.bfloat16,
        batch_size: int = 8,
        fingerprint: str | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        if keep not in ("posterior", "mean"):
            raise ValueError(f"keep must be 'posterior' or 'mean', got {keep!r}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype is that of stored latents, a float; got {dtype}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.keep: Keep = keep
        self.dtype = dtype
        self.batch_size = batch_size
        self.vae = vae
        self._encode: Callable[[torch.Tensor], Any]
        if isinstance(vae, torch.nn.Module):
            first = next(vae.parameters(), None)
            self.compute = compute or (torch.float32 if first is None else first.dtype)
            self._encode = getattr(vae, "encode", vae)
        else:
            if fingerprint is None:
                raise ValueError(
                    "give fingerprint= to a function: a text that changes whenever what it "
                    "computes does; nothing else would tell that its latents are stale"
                )
            self.compute = compute or torch.float32
            self._encode = vae
        self._mark = self._weights()
        self._tiles = _tiles(vae)
        self.about: Ingredients = self._about(fingerprint)

    def _about(self, given: str | None) -> dict[str, Any]:
        module = isinstance(self.vae, torch.nn.Module)
        own = getattr(self.vae, "_orig_mod", self.vae)
        name = type(own).__name__ if module else "function"
        weights = given or fingerprint(self.vae, without=WITHOUT, ignore=AFTERWARDS)
        return {
            "class": name,
            "weights": weights,
            "compute": _name(self.compute),
            "stored": _name(self.dtype),
            "keep": self.keep,
            "convention": "raw",
            **({"tiles": self._tiles} if self._tiles else {}),
        }

    def check(self) -> None:
        """Refuse a VAE that is no longer what its fingerprint says.

        Raises:
            ValueError: It was trained, loaded anew, cast, set to tiles, or is in ``train()``.
        """
        if getattr(self.vae, "training", False):
            raise ValueError("the VAE is in train(): call vae.eval() before it encodes")
        if self._mark != self._weights() or self._tiles != _tiles(self.vae):
            raise ValueError(
                "the VAE has changed since its fingerprint was taken (weights, dtype or tiling): "
                "make a new LatentEncoder of it, with a LatentCache of its own"
            )

    def _weights(self) -> list[tuple[torch.dtype, int]]:
        """Return what changes with each change of a weight in place; a move does not count."""
        if not isinstance(self.vae, torch.nn.Module):
            return []
        weights = self.vae.parameters()
        return [(p.dtype, -1 if p.is_inference() else p._version) for p in weights]

    @property
    def device(self) -> torch.device | None:
        """Where the VAE is; None for a function, which takes pixels where they are."""
        if not isinstance(self.vae, torch.nn.Module):
            return None
        first = next(self.vae.parameters(), None)
        return None if first is None else first.device

    def __call__(self, image: torch.Tensor) -> list[Tensors]:
        """Return one entry for each image: ``mean``, and ``logvar`` where it is kept.

        Args:
            image: uint8 [B, 3, H, W], or the same normalised to [-1, 1].

        Raises:
            ValueError: The pixels have lost precision, or the VAE gives no such thing.
        """
        self.check()
        pixels = self.normalized(image)
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            mean, logvar = self._parts(self._encode(pixels))
        mean = mean.to(self.dtype)
        if logvar is None:
            return [{"mean": row} for row in mean]
        logvar = logvar.clamp(*LOGVAR).to(self.dtype)
        return [{"mean": m, "logvar": v} for m, v in zip(mean, logvar, strict=True)]

    def normalized(self, image: torch.Tensor) -> torch.Tensor:
        """Return pixels as the VAE takes them, the same bits whichever form they come in."""
        if image.dtype != torch.uint8:
            exact = image.dtype in (torch.float32, torch.float64, self.compute)
            if not exact:
                raise ValueError(
                    f"the batch's image is {image.dtype}, and the VAE computes in {self.compute}: "
                    "what has been rounded cannot be encoded as the pixels would be. Give the "
                    "transform dtype=None, which leaves pixels uint8"
                )
        image = image if self.device is None else image.to(self.device)
        if image.dtype == torch.uint8:
            return normalize_image(image, self.compute)
        return image.to(self.compute)

    def _parts(self, out: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (mean, log-variance or None) of what encoding gave."""
        posterior = getattr(out, "latent_dist", None)
        if posterior is not None:
            mean, logvar = posterior.mean, posterior.logvar
        elif isinstance(out, dict) and "mean" in out:
            mean, logvar = out["mean"], out.get("logvar")
        else:
            found = (getattr(out, name, None) for name in ("latents", "latent"))
            mean = next((value for value in found if value is not None), out)
            logvar = None
        if not isinstance(mean, torch.Tensor):
            raise ValueError(
                f"{self.about['class']} gave {type(out).__name__}: expected a posterior, latents, "
                "or a dict of mean and logvar"
            )
        if self.keep == "mean":
            return mean, None
        if logvar is None:
            raise ValueError(
                f"{self.about['class']} gives latents and no posterior to draw from: "
                "LatentEncoder(…, keep='mean')"
            )
        return mean, logvar


def _tiles(vae: Any) -> dict[str, Any]:
    """Return a VAE's settings where it works by tiles, which shows in what it gives."""
    vae = getattr(vae, "_orig_mod", vae)
    if not getattr(vae, "use_tiling", False):
        return {}
    return {
        name: value
        for name, value in sorted(vars(vae).items())
        if name.startswith("tile_") and isinstance(value, int | float)
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

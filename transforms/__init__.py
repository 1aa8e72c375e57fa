"""What a model needs of a sample: pure functions of images and captions."""

from .cut_report import CutReport, cut_report
from .dalle import DalleTransform
from .entry import Store, entry_name
from .estimate import Estimate, Estimates, estimate, latent_bytes
from .fingerprint import fingerprint
from .flow_matching import (
    TimestepSampling,
    fixed_sigmas,
    flow_loss,
    noised,
    token_masks,
    validation_losses,
    velocity,
)
from .flow_shift import flux2_mu, flux_mu, shift_sigmas
from .flux import FluxTransform
from .flux2 import Flux2Transform
from .flux2_latents import (
    flux2_denormalize_latents,
    flux2_image_ids,
    flux2_normalize_latents,
    flux2_pack_latents,
    flux2_patchify_latents,
    flux2_text_ids,
    flux2_unpack_latents,
    flux2_unpatchify_latents,
)
from .flux_latents import (
    flux_image_ids,
    flux_pack_latents,
    flux_scale_latents,
    flux_text_ids,
    flux_unpack_latents,
    flux_unscale_latents,
)
from .images import normalize_image
from .latent_cache import LatentCache
from .latent_encoder import LatentEncoder
from .posterior import draw_latents
from .sd3 import SD3Transform, sd3_prompt_embeds, sd3_scale_latents, sd3_unscale_latents
from .sdxl import SDXLTransform, sdxl_time_ids
from .text_bytes import text_bytes
from .text_cache import TextCache
from .text_encoder import TextEncoder
from .tokenize import ClipTokenize, T5Tokenize

__all__ = [
    "ClipTokenize",
    "CutReport",
    "DalleTransform",
    "Estimate",
    "Estimates",
    "Flux2Transform",
    "FluxTransform",
    "LatentCache",
    "LatentEncoder",
    "SD3Transform",
    "SDXLTransform",
    "Store",
    "T5Tokenize",
    "TextCache",
    "TextEncoder",
    "TimestepSampling",
    "cut_report",
    "draw_latents",
    "entry_name",
    "estimate",
    "fingerprint",
    "fixed_sigmas",
    "flow_loss",
    "flux2_denormalize_latents",
    "flux2_image_ids",
    "flux2_mu",
    "flux2_normalize_latents",
    "flux2_pack_latents",
    "flux2_patchify_latents",
    "flux2_text_ids",
    "flux2_unpack_latents",
    "flux2_unpatchify_latents",
    "flux_image_ids",
    "flux_mu",
    "flux_pack_latents",
    "flux_scale_latents",
    "flux_text_ids",
    "flux_unpack_latents",
    "flux_unscale_latents",
    "latent_bytes",
    "noised",
    "normalize_image",
    "sd3_prompt_embeds",
    "sd3_scale_latents",
    "sd3_unscale_latents",
    "sdxl_time_ids",
    "shift_sigmas",
    "text_bytes",
    "token_masks",
    "validation_losses",
    "velocity",
]

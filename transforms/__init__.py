"""What a model needs of a sample: pure functions of images and captions."""

from .cut_report import CutReport, cut_report
from .dalle import DalleTransform
from .flow_shift import flux2_mu, flux_mu, shift_sigmas
from .flux import FluxTransform
from .flux_latents import (
    flux_image_ids,
    flux_pack_latents,
    flux_scale_latents,
    flux_text_ids,
    flux_unpack_latents,
    flux_unscale_latents,
)
from .images import normalize_image
from .sdxl import SDXLTransform, sdxl_time_ids
from .tokenize import ClipTokenize, T5Tokenize

__all__ = [
    "ClipTokenize",
    "CutReport",
    "DalleTransform",
    "FluxTransform",
    "SDXLTransform",
    "T5Tokenize",
    "cut_report",
    "flux2_mu",
    "flux_image_ids",
    "flux_mu",
    "flux_pack_latents",
    "flux_scale_latents",
    "flux_text_ids",
    "flux_unpack_latents",
    "flux_unscale_latents",
    "normalize_image",
    "sdxl_time_ids",
    "shift_sigmas",
]

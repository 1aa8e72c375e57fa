"""Networks, and loading them."""

from .flux import load_clip, load_scheduler, load_t5, load_transformer, load_vae
from .flux_fit import Change, fit_flux, fit_text
from .flux_memory import FluxMemory, FluxPlan, FluxSizes, flux_memory
from .flux_sample import sample_flux
from .flux_save import save_transformer
from .flux_velocity import attention_options, flux_velocity, transformer_dtype, zero_padding
from .lora import add_lora, load_lora, lora_parameters, save_lora
from .peak_bytes import peak_bytes
from .weights import Part, find_part, tensors

__all__ = [
    "Change",
    "FluxMemory",
    "FluxPlan",
    "FluxSizes",
    "Part",
    "add_lora",
    "attention_options",
    "find_part",
    "fit_flux",
    "fit_text",
    "flux_memory",
    "flux_velocity",
    "load_clip",
    "load_lora",
    "load_scheduler",
    "load_t5",
    "load_transformer",
    "load_vae",
    "lora_parameters",
    "peak_bytes",
    "sample_flux",
    "save_lora",
    "save_transformer",
    "tensors",
    "transformer_dtype",
    "zero_padding",
]

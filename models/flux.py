"""The models of a FLUX.1 checkpoint, by diffusers' and transformers' own classes."""

from collections.abc import Iterable
from importlib import import_module, util
from os import PathLike
from typing import Any, Literal

import torch

from .weights import Part, find_part, tensors

Quantize = Literal["none", "int8", "nf4"]

BLOCKS = r"(single_)?transformer_blocks\..*\.weight"
"""Names of what is quantized, where it is a linear layer's: the blocks, which hold 99.5 % of the
weights. What comes in and goes out, and the timestep's embedding, stay as they are."""

OUTSIDE = ("x_embedder", "context_embedder", "time_text_embed", "norm_out")
"""The linear layers outside of the blocks, but for the last, ``proj_out``: blocks have one of that
name too, and diffusers tells bitsandbytes' layers apart by that alone."""


def load_transformer(
    path_or_id: str | PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    quantize: Quantize = "none",
    device: str | torch.device = "cpu",
    gradient_checkpointing: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Any:
    """Return diffusers' FluxTransformer2DModel on the device, frozen, in eval mode.

    Args:
        path_or_id: A checkpoint's folder, the transformer's own, or an id on the hub.
        dtype: Of the weights, and of the computation with quantized ones.
        quantize: How the linear layers of the blocks are kept, for a LoRA on a frozen base:
            "int8": torchao's weight-only int8, a byte a weight, on any device; "nf4":
            bitsandbytes' 4-bit normal floats with double quantization (Dettmers et al. 2023), half
            a byte a weight, on CUDA. torchao's int8 keeps its weights in ``dtype`` for the backward
            pass, so that without gradient checkpointing training saves nothing by it.
        device: Where it is put; the weights go there straight from the files.
        gradient_checkpointing: Whether each block is computed again in the backward pass.
        revision: Branch, tag or commit on the hub.
        local_files_only: Whether to take what was downloaded before and ask nobody.

    Raises:
        OSError: If the folder or a file of it is missing or cut short.
        ValueError: If it holds another model, or ``quantize`` cannot be had with these arguments.
        ImportError: If a package for ``quantize`` is missing.
    """
    # The cheap checks first: the weights take minutes.
    config = _quantization(quantize, dtype, torch.device(device))
    part = find_part(
        path_or_id,
        "transformer",
        ("FluxTransformer2DModel",),
        revision=revision,
        local_files_only=local_files_only,
    )
    if quantize != "none" and "quantization_config" in part.config:
        raise ValueError(f"{part.folder} is quantized already: load it with quantize='none'")
    more = {} if config is None else {"quantization_config": config}
    model = _diffusers("FluxTransformer2DModel", part, dtype, device, **more)
    if quantize == "nf4":
        model.proj_out = _linear(part, "proj_out", dtype).to(device)
    if gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def load_vae(
    path_or_id: str | PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    local_files_only: bool = False,
) -> Any:
    """Return diffusers' AutoencoderKL, frozen, in eval mode. Raises as `load_transformer`."""
    part = find_part(
        path_or_id, "vae", ("AutoencoderKL",), revision=revision, local_files_only=local_files_only
    )
    return _diffusers("AutoencoderKL", part, dtype, device)


def load_clip(
    path_or_id: str | PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    local_files_only: bool = False,
) -> Any:
    """Return transformers' CLIPTextModel, frozen, in eval mode. Raises as `load_transformer`.

    FLUX.1 takes its ``pooler_output``, [B, 768].
    """
    kinds = ("clip_text_model", "clip")
    part = find_part(
        path_or_id, "text_encoder", kinds, revision=revision, local_files_only=local_files_only
    )
    return _transformers("CLIPTextModel", part, dtype, device)


def load_t5(
    path_or_id: str | PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    local_files_only: bool = False,
) -> Any:
    """Return transformers' T5EncoderModel, frozen, in eval mode. Raises as `load_transformer`.

    FLUX.1 takes its ``last_hidden_state``, [B, L, 4096], computed without an attention mask.
    """
    part = find_part(
        path_or_id, "text_encoder_2", ("t5",), revision=revision, local_files_only=local_files_only
    )
    return _transformers("T5EncoderModel", part, dtype, device)


def load_scheduler(path_or_id: str | PathLike[str], *, local_files_only: bool = False) -> Any:
    """Return diffusers' FlowMatchEulerDiscreteScheduler of a checkpoint, for `sample_flux`.

    Raises:
        OSError: If there is none.
    """
    diffusers: Any = import_module("diffusers")
    kind = diffusers.FlowMatchEulerDiscreteScheduler
    options = {"subfolder": "scheduler", "local_files_only": local_files_only}
    return kind.from_pretrained(path_or_id, **options)


def _quantization(quantize: Quantize, dtype: torch.dtype, device: torch.device) -> Any:
    if quantize not in ("none", "int8", "nf4"):
        raise ValueError(f"quantize must be 'none', 'int8' or 'nf4', got {quantize!r}")
    if quantize == "none":
        return None
    diffusers: Any = import_module("diffusers")
    if quantize == "int8":
        _need("torchao", "int8")
        if dtype != torch.bfloat16:
            raise ValueError(f"quantize='int8' computes in bfloat16, got {dtype}")
        ao: Any = import_module("torchao.quantization")
        weights = ao.FqnToConfig({f"re:{BLOCKS}": ao.Int8WeightOnlyConfig(version=2)})
        return diffusers.TorchAoConfig(weights)
    _need("bitsandbytes", "nf4")
    if not _on_cuda(device):
        raise ValueError(f"quantize='nf4' needs a CUDA GPU, got device {device}: take 'int8'")
    return diffusers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=[*OUTSIDE],  # diffusers adds to it
    )


def _on_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


def _need(package: str, quantize: str) -> None:
    if util.find_spec(package) is None:
        raise ImportError(f"quantize={quantize!r} needs {package}: pip install {package}")


def _diffusers(
    name: str, part: Part, dtype: torch.dtype, device: str | torch.device, **more: Any
) -> Any:
    diffusers: Any = import_module("diffusers")
    kind = getattr(diffusers, name)
    if "quantization_config" not in part.config:  # else the files have other names
        _check_shapes(kind, part)
    model = kind.from_pretrained(
        part.folder,
        torch_dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        device_map=str(device),
        **more,
    )
    return model.requires_grad_(False).eval()


def _linear(part: Part, name: str, dtype: torch.dtype) -> torch.nn.Linear:
    """Return one linear layer of the files, frozen."""
    safetensors: Any = import_module("safetensors")
    found = {}
    for path in part.files:
        with safetensors.safe_open(path, framework="pt") as file:
            for key in {f"{name}.weight", f"{name}.bias"} & set(file.keys()):
                found[key.rpartition(".")[2]] = file.get_tensor(key)
    wide = found["weight"].shape
    layer = torch.nn.Linear(wide[1], wide[0], bias="bias" in found, device="meta")
    layer.load_state_dict(found, assign=True)
    return layer.to(dtype).requires_grad_(False)


def _transformers(name: str, part: Part, dtype: torch.dtype, device: str | torch.device) -> Any:
    transformers: Any = import_module("transformers")
    model, info = getattr(transformers, name).from_pretrained(
        part.folder,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        device_map=str(device),
    )
    # More than is needed is no harm: an encoder is taken out of a whole T5 or CLIP.
    _check_names(part, info["missing_keys"], ())
    return model.requires_grad_(False).eval()


def _check_shapes(kind: Any, part: Part) -> None:
    with torch.device("meta"):
        state = kind.from_config(part.config).state_dict()
    found = {name: shape for file in part.files for name, (_, shape) in tensors(file).items()}
    _check_names(part, state.keys() - found.keys(), found.keys() - state.keys())
    for name, tensor in state.items():
        if tuple(tensor.shape) != found[name]:
            raise ValueError(
                f"{part.folder} has {name} of shape {list(found[name])}, and its config.json makes "
                f"it {list(tensor.shape)}: they are not of one checkpoint"
            )


def _check_names(part: Part, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    # transformers makes up what is missing, at random.
    for what, names in (("lacks", sorted(missing)), ("has no place for", sorted(unexpected))):
        if names:
            raise ValueError(
                f"the model in {part.folder} {what} {len(names)} tensors, such as {names[:3]}: its "
                "config.json and its weights are not of one checkpoint"
            )

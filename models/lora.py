"""A LoRA on FLUX.1's transformer: put in, seeded, saved as diffusers loads it, loaded to go on.

Low-rank adapters (Hu et al. 2021) by peft: to each chosen linear layer's output is added
``alpha / rank * B(A(x))``.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from hashlib import blake2b
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

WEIGHTS = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for."""

PREFIX = "transformer."
"""Before each name in the file: the pipeline's part."""

METADATA = "lora_adapter_metadata"
"""Of the file's header: where diffusers keeps the arguments of peft's LoraConfig."""

Targets = Literal["attention", "attention+text", "all-linear"]

TARGETS: dict[str, list[str] | str] = {
    "attention": ["to_k", "to_out.0", "to_q", "to_v"],
    "attention+text": [
        *("add_k_proj", "add_q_proj", "add_v_proj"),
        *("to_add_out", "to_k", "to_out.0", "to_q", "to_v"),
    ],
    "all-linear": (
        r"(single_)?transformer_blocks\.\d+\.(norm\w*\.linear|attn\.(to_[kqv]|to_out\.0|"
        r"add_[kqv]_proj|to_add_out)|ff\w*\.net\.(0\.proj|2)|proj_mlp|proj_out)"
    ),
}
"""Layers by name. "attention": the image's projections, and those of the blocks that image and text
share; "attention+text": the text's in the first blocks too; "all-linear": all of the blocks."""


def add_lora(
    transformer: Any,
    *,
    rank: int = 16,
    alpha: float | None = None,
    targets: Targets | Sequence[str] = "attention",
    dropout: float = 0.0,
    seed: int = 0,
) -> dict[str, torch.nn.Parameter]:
    """Return the new LoRA's parameters by name, float32; all others are frozen.

    A is drawn uniformly, as peft draws it, from ``seed`` and the layer's name alone, so it is the
    same on each device and rank; B is zero, so the model is at first as it was. No global generator
    is touched.

    Args:
        transformer: diffusers' FluxTransformer2DModel, quantized or not.
        rank: Of the adapters.
        alpha: None: the rank, so that the adapters are added as they are.
        targets: Which layers: one of `TARGETS`, or names as peft's ``target_modules`` takes them.
        dropout: Probability that an input of A is set to zero in training.
        seed: Of A.

    Raises:
        ValueError: If there is a LoRA already, an argument is out of range, or no layer has such a
            name.
    """
    if getattr(transformer, "peft_config", None):
        raise ValueError("the transformer has a LoRA already")
    if rank < 1 or not 0 <= dropout < 1 or (alpha is not None and alpha <= 0):
        raise ValueError(
            f"rank must be at least 1, alpha above 0, dropout in [0, 1), got {rank}, {alpha}, "
            f"{dropout}"
        )
    if isinstance(targets, str) and targets not in TARGETS:
        raise ValueError(f"targets must be one of {sorted(TARGETS)} or a list, got {targets!r}")
    names = TARGETS[targets] if isinstance(targets, str) else sorted(set(targets))
    scale = rank if alpha is None else alpha
    _inject(transformer, {"r": rank, "lora_alpha": scale, "target_modules": names}, dropout)
    found = lora_parameters(transformer)
    for name, parameter in found.items():
        if ".lora_A." in name and parameter.device.type != "meta":
            parameter.data.copy_(_uniform(parameter.shape, f"{seed} {name}"))
    return found


def lora_parameters(transformer: Any) -> dict[str, torch.nn.Parameter]:
    """Return the LoRA's parameters by name."""
    return {n: p for n, p in transformer.named_parameters() if ".lora_" in n}


def save_lora(
    transformer: Any,
    folder: str | PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    fold_alpha: bool = False,
    write: bool = True,
) -> Path:
    """Return ``folder``/pytorch_lora_weights.safetensors, for ``load_lora_weights`` of diffusers.

    Under FSDP2 all ranks must call it, and one writes. The file is whole or not there.

    Args:
        transformer: With a LoRA of `add_lora` or `load_lora`; not DDP's wrapper of it.
        folder: Made if it is not there.
        dtype: Of the file: float32 gives back the very same model, bfloat16 takes half the space.
        fold_alpha: Whether B is multiplied by alpha / rank, and alpha = rank is written. Else alpha
            is in the file's header, where diffusers reads it, and some other programs do not.
        write: Whether this process writes.

    Raises:
        ValueError: If there is no LoRA.
    """
    peft: Any = import_module("peft")
    config = _config(transformer)
    rank, alpha = int(config.r), float(config.lora_alpha)
    state = {}
    for name, value in sorted(peft.get_peft_model_state_dict(transformer).items()):
        # A part of a sharded tensor is gathered here, one by one.
        tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
        if fold_alpha and "lora_B" in name:
            tensor = tensor.float() * (alpha / rank)
        if write:
            state[name] = tensor.detach().to("cpu", dtype).contiguous().clone()
    folder = Path(folder)
    path = folder / WEIGHTS
    if not write:
        return path
    named = config.target_modules
    metadata = {
        "r": rank,
        "lora_alpha": float(rank) if fold_alpha else alpha,
        "target_modules": named if isinstance(named, str) else sorted(named),
    }
    diffusers: Any = import_module("diffusers")
    part = folder / f".{WEIGHTS}.{os.getpid()}.part"
    try:
        diffusers.FluxPipeline.save_lora_weights(
            part,
            transformer_lora_layers=state,
            weight_name=WEIGHTS,
            transformer_lora_adapter_metadata=metadata,
        )
        with (part / WEIGHTS).open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part / WEIGHTS, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def load_lora(transformer: Any, path: str | PathLike[str]) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of a LoRA put in from a file of `save_lora`, float32, to train on.

    Args:
        transformer: Without a LoRA; of the same shapes as the one it was trained on.
        path: The file, or its folder.

    Raises:
        OSError: If there is no such file, or it is damaged.
        ValueError: If its tensors are not those of a LoRA on this transformer, or the transformer
            has one already.
    """
    path = Path(path)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no LoRA {path}")
    if getattr(transformer, "peft_config", None):
        raise ValueError("the transformer has a LoRA already")
    safetensors: Any = import_module("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} is damaged, or no safetensors file: {error}") from error
    try:
        values = json.loads(header[METADATA])
        wanted = ("r", "lora_alpha", "target_modules")
        config = {name: values[PREFIX + name] for name in wanted}
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} tells no rank and alpha in its header ({METADATA})") from error
    _check_state(path, transformer, state, config["target_modules"])
    _inject(transformer, config, 0.0)
    peft: Any = import_module("peft")
    values = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    peft.set_peft_model_state_dict(transformer, values)
    return lora_parameters(transformer)


def _inject(transformer: Any, config: dict[str, Any], dropout: float) -> None:
    peft: Any = import_module("peft")
    settings = peft.LoraConfig(**config, lora_dropout=dropout)
    transformer.requires_grad_(False)
    cuda = [*range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    with torch.random.fork_rng(cuda):  # peft draws from the default generators
        transformer.add_adapter(settings)
    for parameter in lora_parameters(transformer).values():
        # In the type of the base, bfloat16, small steps of the optimizer would be lost.
        parameter.data = parameter.data.float()


def _config(transformer: Any) -> Any:
    config = getattr(transformer, "peft_config", None)
    if not config:
        raise ValueError("the transformer has no LoRA: add_lora puts one in")
    return config["default"]


def _check_state(
    path: Path, transformer: Any, state: dict[str, torch.Tensor], targets: list[str] | str
) -> None:
    layers = {n: m for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, tensor in state.items():
        layer, _, which = name.removeprefix(PREFIX).rpartition(".lora_")
        linear = layers.get(layer)
        if not name.startswith(PREFIX) or linear is None or which not in ("A.weight", "B.weight"):
            raise ValueError(f"{path} holds {name}: no LoRA of a layer of this transformer")
        wide, side = (linear.in_features, 1) if which[0] == "A" else (linear.out_features, 0)
        if tensor.ndim != 2 or tensor.shape[side] != wide:
            raise ValueError(
                f"{path}: {name} is {list(tensor.shape)}, and the layer it is for has "
                f"{linear.in_features} inputs and {linear.out_features} outputs: it was trained on "
                "another model"
            )
    wanted = {
        f"{PREFIX}{name}.lora_{which}.weight"
        for name in layers
        if _is_target(name, targets)
        for which in "AB"
    }
    if wanted != set(state):
        wrong = sorted(wanted ^ set(state))
        raise ValueError(
            f"{path} holds a LoRA of other layers than its header tells: {len(wrong)} names "
            f"differ, such as {wrong[:3]}"
        )


def _is_target(name: str, targets: list[str] | str) -> bool:
    # As peft has it.
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(f".{name}".endswith(f".{target}") for target in targets)


def _uniform(shape: torch.Size, name: str) -> torch.Tensor:
    # kaiming_uniform_ with a = sqrt(5), as torch's Linear and peft have it.
    bound = 1 / math.sqrt(shape[1])
    seed = int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little")
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)

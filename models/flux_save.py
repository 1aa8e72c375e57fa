"""FLUX.1's whole transformer, written as diffusers loads it."""

import json
import os
import shutil
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import torch


def save_transformer(
    transformer: Any,
    folder: str | PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    shard_size: str = "10GB",
    overwrite: bool = False,
    write: bool = True,
) -> Path:
    """Return ``folder``, which ``FluxTransformer2DModel.from_pretrained`` loads.

    Under FSDP2 all ranks must call it: each tensor is gathered by itself, and one rank keeps it, in
    its own memory. The folder is whole or not there.

    Args:
        transformer: Fully fine-tuned, without a LoRA; not DDP's wrapper of it.
        folder: Made; its parent too.
        dtype: Of the files.
        shard_size: Most bytes of one file.
        overwrite: Whether to replace the folder if it is there.
        write: Whether this process writes.

    Raises:
        FileExistsError: If the folder is there and ``overwrite`` is false.
        ValueError: If there is a LoRA: `save_lora` saves that.
    """
    folder = Path(folder)
    if getattr(transformer, "peft_config", None):
        raise ValueError("the transformer has a LoRA: save_lora saves it, by itself")
    if write and folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} is there: give another folder, or overwrite=True")
    state = {}
    for name, value in transformer.state_dict().items():
        tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
        if write:
            state[name] = tensor.detach().to("cpu", dtype).contiguous()
    if not write:
        return folder
    hub: Any = import_module("huggingface_hub")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        hub.save_torch_state_dict(
            state,
            part,
            filename_pattern="diffusion_pytorch_model{suffix}.safetensors",
            max_shard_size=shard_size,
        )
        _save_config(transformer, part)
        for path in part.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _save_config(transformer: Any, folder: Path) -> None:
    transformer.save_config(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["_class_name"] = "FluxTransformer2DModel"  # FSDP2 gives the class another name
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

"""Named tensors in a folder, whole or in parts, and back: safetensors alone, no pickle."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from ...pipes.errors import DataError

Tensors = Mapping[str, torch.Tensor]
Table = dict[str, Any]
"""What a group of tensors is: ``parts`` (whether it was saved in parts), ``tensors`` (each one's
dtype and whole shape), ``files`` (their sizes)."""


def table_of(tensors: Tensors) -> Table:
    """Return what is to be known of the tensors before they are read again."""
    return {
        "parts": any(isinstance(t, DTensor) for t in tensors.values()),
        "tensors": {name: _kind(t) for name, t in tensors.items()},
    }


def files_of(folder: Path, group: str, table: Table) -> dict[str, int]:
    """Return the files that a group was written to, with their sizes in bytes."""
    paths = (folder / group).iterdir() if table["parts"] else [folder / f"{group}.safetensors"]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(paths)}


def _kind(tensor: torch.Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def write_tensors(folder: Path, group: str, tensors: Tensors, main: bool) -> None:
    """Write a group of tensors: ``group.safetensors`` by the main rank, or parts by all of them.

    Parts (where any tensor is a DTensor) go through torch.distributed.checkpoint, a file of
    safetensors a rank in the folder ``group``: nothing is gathered. A collective then.
    """
    if table_of(tensors)["parts"]:
        writer = HuggingFaceStorageWriter(str(folder / group), save_distributed=True)
        try:
            save(dict(tensors), storage_writer=writer)
        except CheckpointException as error:  # of all ranks together, and no Exception
            raise OSError(f"{folder / group} cannot be written: {error}") from error
        if main:
            sync(folder / group)
    elif main:
        seen: set[int] = set()
        save_file({n: _own(t, seen) for n, t in tensors.items()}, folder / f"{group}.safetensors")
        sync(folder / f"{group}.safetensors")


def _own(tensor: torch.Tensor, seen: set[int]) -> torch.Tensor:
    """Return the tensor on the CPU in memory that no other one shares, as the format wants it."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.untyped_storage().data_ptr() in seen:
        tensor = tensor.clone()
    seen.add(tensor.untyped_storage().data_ptr())
    return tensor


def read_tensors(folder: Path, group: str, table: Table) -> dict[str, torch.Tensor]:
    """Return a group whole, on the CPU, as it was saved; no collective.

    Raises:
        DataError: Files are missing or damaged.
    """
    if table["parts"]:
        tensors = {
            name: torch.empty(shape, dtype=getattr(torch, dtype))
            for name, (dtype, shape) in table["tensors"].items()
        }
        _read_parts(folder, group, table, tensors, alone=True)
        return tensors
    _check_files(folder, table)
    path = folder / f"{group}.safetensors"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if {name: _kind(t) for name, t in tensors.items()} != table["tensors"]:
        raise DataError(f"{path} does not hold the tensors that state.json lists")
    return tensors


@torch.no_grad()
def fill_tensors(folder: Path, group: str, table: Table, targets: Tensors) -> None:
    """Fill tensors in place, bit for bit: whole ones or parts, however they were saved.

    A collective where they were saved in parts.

    Args:
        folder: The checkpoint's.
        group: Name of the group.
        table: What it holds.
        targets: Tensors of the same names, dtypes and shapes.

    Raises:
        ValueError: The targets are others than those that were saved.
        DataError: Files are missing or damaged.
    """
    _check(folder, group, table["tensors"], targets)
    if table["parts"]:
        alone = not torch.distributed.is_initialized()
        parts = {n: t.detach() for n, t in targets.items()}
        _read_parts(folder, group, table, parts, alone=alone)
        return
    for name, whole in read_tensors(folder, group, table).items():
        target = targets[name].detach()
        if isinstance(target, DTensor):
            target.copy_(
                distribute_tensor(
                    whole.to(target.device),
                    target.device_mesh,
                    target.placements,
                    src_data_rank=None,  # each rank has read it
                )
            )
        else:
            target.copy_(whole)


def _read_parts(
    folder: Path, group: str, table: Table, tensors: dict[str, torch.Tensor], *, alone: bool
) -> None:
    _check_files(folder, table)  # a part that is not there would leave a hole, unseen
    reader = HuggingFaceStorageReader(str(folder / group))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(tensors, storage_reader=reader, no_dist=alone)
    except (Exception, CheckpointException) as error:
        raise DataError(f"{folder / group} cannot be read: {error}") from error


def _check_files(folder: Path, table: Table) -> None:
    for name, size in table["files"].items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing: go on from an earlier checkpoint")
        if path.stat().st_size != size:
            raise DataError(
                f"{path} has {path.stat().st_size} bytes and had {size}: go on from an earlier "
                "checkpoint"
            )


def _check(folder: Path, group: str, saved: dict[str, Any], targets: Tensors) -> None:
    here = {name: _kind(t) for name, t in targets.items()}
    if here == saved:
        return
    what = f"{folder}, {group}: "
    missing, more = sorted(set(here) - set(saved)), sorted(set(saved) - set(here))
    if missing:
        what += f"{len(missing)} tensors were not saved, for one {missing[0]}; "
    if more:
        what += f"{len(more)} that were saved are not here, for one {more[0]}; "
    for name in [n for n in here if n in saved and here[n] != saved[n]][:1]:
        what += f"{name} was saved as {saved[name]} and is {here[name]} here; "
    raise ValueError(what + "resume with the arguments that the run began with")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""In how many bytes a text encoder's outputs are kept, and how they come back."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch.utils.data import get_worker_info

from .entry import Tensors

Bytes = Literal["full", "trimmed", "float8", "ids"]

FLOAT8 = torch.float8_e4m3fn
SCALE = ".scale"
TOKENS = ".tokens"
"""Endings of names in entries: of scales, and of outputs of tokens alone."""

MASK, CUT, IDS, ERROR = "mask", "cut", "ids", "error"


class Row(NamedTuple):
    """What is known of one caption, before it is kept.

    Attributes:
        ids: int64 [L].
        mask: int64 [L], 1 for tokens.
        cut: Tokens that did not fit.
        outputs: The encoder's, by name: [L, D] or [D]; empty where ids are kept.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    cut: int
    outputs: Tensors


def check_bytes(policy: str, mask: str | None) -> None:
    """Refuse a policy that there is not, or that would lose something under this mask.

    Args:
        policy: See `pack_text`.
        mask: The `TextEncoder`'s; None where there is none.

    Raises:
        ValueError: If so.
    """
    if policy not in get_args(Bytes):
        raise ValueError(f"bytes must be one of {get_args(Bytes)}, got {policy!r}")
    if policy == "trimmed" and mask in ("ignored", "encoder"):
        why = {
            "ignored": "the encoder attends to padding, and what takes its outputs attends to them",
            "encoder": "what takes the encoder's outputs attends to those for padding too",
        }[mask]
        raise ValueError(
            f"bytes='trimmed' would lose something: with mask={mask!r} {why}, so they are not the "
            "zeros that would come back. Trim where the model is trained with the mask as well "
            "(mask='both'), or on zeros (mask='zeroed'); or save bytes by 'float8' or 'ids'"
        )


def pack_text(policy: Bytes, row: Row) -> Tensors:
    """Return the tensors of a caption's entry, where they are.

    Args:
        policy: What is kept of the outputs:

            - "full": all, as they are;
            - "trimmed": of outputs [L, D] those of tokens alone;
            - "float8": e4m3fn (range ±448, three bits of mantissa; arXiv 2209.05433) with a
              float32 scale for every token, or vector;
            - "ids": none, but the ids, to be encoded each time.
        row: The caption's.
    """
    entry = {CUT: torch.tensor(row.cut, dtype=torch.int32)}
    if policy == "ids":
        return {**entry, IDS: row.ids.to(torch.int32), MASK: row.mask.to(torch.uint8)}
    if any(tensor.ndim == 2 for tensor in row.outputs.values()):
        entry[MASK] = row.mask.to(torch.uint8)
    for name, tensor in row.outputs.items():
        if policy == "trimmed" and tensor.ndim == 2:
            entry[name + TOKENS] = tensor[row.mask.bool().to(tensor.device)]
        elif policy == "float8":
            entry[name], entry[name + SCALE] = _to_float8(tensor)
        else:
            entry[name] = tensor
    if policy == "float8":
        entry[ERROR] = _error(row.outputs, entry)
    return entry


def stack_text(rows: Sequence[Tensors], device: torch.device | None = None) -> Tensors:
    """Return the entries of B captions as one: [B, ...], or end to end where lengths differ.

    What is trimmed is put end to end, [tokens of all B, D]. In a worker it is in shared memory, so
    that handing it to the trainer's process copies nothing.
    """
    out = {}
    for name, first in rows[0].items():
        parts = [row[name].to(device or first.device) for row in rows]
        if name.endswith(TOKENS):
            shape = torch.Size((sum(map(len, parts)), first.shape[1]))
        else:
            parts = [part[None] for part in parts]
            shape = torch.Size((len(rows), *first.shape))
        whole = _empty(shape, parts[0])
        # Concatenation knows no float8; bytes it does.
        flat = [part.view(torch.uint8) if part.dtype == FLOAT8 else part for part in parts]
        torch.cat(flat, out=whole)
        out[name] = whole.view(first.dtype)
    return out


def split_text(stacked: Tensors) -> list[Tensors]:
    """Return the entries that `stack_text` put together."""
    count = len(stacked[CUT])
    parts = {}
    for name, tensor in stacked.items():
        if name.endswith(TOKENS):
            lengths = stacked[MASK].sum(1, dtype=torch.int64).tolist()
            parts[name] = torch.split(tensor, lengths)
        else:
            parts[name] = tensor.unbind()
    return [{name: part[i] for name, part in parts.items()} for i in range(count)]


def unpack_text(stacked: Tensors, dtype: torch.dtype | None = None) -> Tensors:
    """Return B captions' outputs, on the device where they are, with "mask" and "cut".

    Where ids were kept, there are "ids" and "mask" and no outputs.

    Args:
        stacked: From `stack_text`.
        dtype: Of the outputs, where they were kept as float8; None for float32.
    """
    out: Tensors = {CUT: stacked[CUT].to(torch.int64)}
    for name in (MASK, IDS):
        if name in stacked:
            out[name] = stacked[name].to(torch.int64)
    for name, tensor in stacked.items():
        if name in (MASK, CUT, IDS, ERROR) or name.endswith(SCALE):
            continue
        if name + SCALE in stacked:
            tensor = _from_float8(tensor, stacked[name + SCALE], dtype)
        elif name.endswith(TOKENS):
            name = name.removesuffix(TOKENS)
            zeros = tensor.new_zeros(*out[MASK].shape, tensor.shape[1])
            tensor = zeros.masked_scatter_(out[MASK][..., None].bool(), tensor)
        out[name] = tensor
    return out


def text_bytes(
    policy: Bytes,
    shapes: Mapping[str, Sequence[int]],
    *,
    dtype: torch.dtype = torch.bfloat16,
    max_length: int | None = None,
    tokens: float | None = None,
) -> int:
    """Return the bytes of an entry's tensors; headers and what is said of it are 2,600 more.

    Args:
        policy: See `pack_text`.
        shapes: The outputs', (L, D) or (D,), by name: ``{"embeds": (512, 4096)}`` for FLUX.1's T5.
        dtype: In which they are kept, where that is not float8.
        max_length: L, where only vectors are kept and the policy is "ids".
        tokens: Of a caption in the mean, for "trimmed".

    Raises:
        ValueError: If one that is needed is missing.
    """
    lengths = [shape[0] for shape in shapes.values() if len(shape) == 2]
    length = lengths[0] if lengths else max_length
    size = 4.0  # cut
    if policy == "ids":
        if length is None:
            raise ValueError("give max_length, the ids per caption")
        return int(size) + 5 * length  # int32 and uint8
    if lengths:
        size += lengths[0]  # the mask, uint8
    for shape in shapes.values():
        count = float(math.prod(shape))
        if policy == "trimmed" and len(shape) == 2:
            if tokens is None:
                raise ValueError("give tokens, how many a caption has in the mean")
            count = tokens * shape[1]
        if policy == "float8":
            size += count + 4 * math.prod(shape[:-1])
        else:
            size += count * dtype.itemsize
    return round(size) + (4 if policy == "float8" else 0)


def _to_float8(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a tensor in float8, and its scale: float32 [L, 1] or [1]."""
    wide = tensor.to(torch.float32)
    most = wide.abs().amax(-1, keepdim=True)
    # Below the least normal number a scale would lose bits, or be no divisor at all.
    scale = (most / torch.finfo(FLOAT8).max).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / scale).to(FLOAT8), scale


def _from_float8(
    tensor: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype | None
) -> torch.Tensor:
    return (tensor.to(torch.float32) * scale).to(dtype or torch.float32)


def _error(outputs: Tensors, entry: Tensors) -> torch.Tensor:
    """Return how far float8 is from the outputs: the norm of the difference by theirs."""
    lost = kept = 0.0
    for name, tensor in outputs.items():
        wide = tensor.to(torch.float32)
        back = _from_float8(entry[name], entry[name + SCALE], tensor.dtype).to(torch.float32)
        lost += float((wide - back).square().sum())
        kept += float(wide.square().sum())
    return torch.tensor(math.sqrt(lost / kept) if kept else 0.0, dtype=torch.float32)


def _empty(shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
    """Return memory for a tensor; that of float8 as bytes."""
    dtype = torch.uint8 if like.dtype == FLOAT8 else like.dtype
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype, device=like.device)
    size = shape.numel() * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]

"""Entries of a batch's rows, as one: stacked, and taken apart."""

from collections.abc import Sequence
from typing import Any

import torch

from .entry import Tensors

Fields = dict[str, torch.Tensor | list[torch.Tensor]]
"""Entries of a batch: each field [B, ...], or a list of B tensors where their shapes differ."""

Rows = Tensors | list[Tensors | None]
"""What workers found: all rows' entries stacked, or one or None for each row."""


def pack_rows(found: Sequence[Tensors | None]) -> Rows:
    """Return entries stacked where every row has one and they fit each other, else as a list."""
    first = found[0] if found else None
    if first is None:
        return list(found)
    form = _form(first)
    whole = [entry for entry in found if entry is not None and _form(entry) == form]
    if len(whole) < len(found):
        return list(found)
    return {name: torch.stack([entry[name] for entry in whole]) for name in first}


def unpack_rows(found: Any, count: int) -> list[Tensors | None]:
    """Return one entry, or None, for each of ``count`` rows: what `pack_rows` took.

    Raises:
        ValueError: It is nothing of the kind, or of another number of rows.
    """
    if isinstance(found, dict) and found:
        lengths = {len(value) for value in found.values()}
        if lengths == {count}:
            return [{name: value[i] for name, value in found.items()} for i in range(count)]
    elif isinstance(found, list | tuple) and len(found) == count:
        return list(found)
    kind = type(found).__name__
    raise ValueError(f"expected the entries of {count} rows, a dict or a list; got {kind}")


def stack_rows(entries: Sequence[Tensors], device: torch.device | None = None) -> Fields:
    """Return the entries' fields, stacked where their shapes agree, on a device.

    Raises:
        ValueError: The entries have different fields.
    """
    names = list(entries[0])
    if any(entry.keys() != entries[0].keys() for entry in entries):
        several = sorted({", ".join(sorted(entry)) for entry in entries})
        raise ValueError(f"entries of one batch have different fields: {' / '.join(several)}")
    return {name: _column([entry[name] for entry in entries], device) for name in names}


def _column(
    values: list[torch.Tensor], device: torch.device | None
) -> torch.Tensor | list[torch.Tensor]:
    here = {value.device for value in values}
    if len(here) > 1:  # some came from the store and some from the encoder
        values = [value.to(device or values[0].device) for value in values]
    first = values[0]
    if all(v.shape == first.shape and v.dtype == first.dtype for v in values):
        whole = torch.stack(values)
        return whole if device is None else whole.to(device, non_blocking=True)
    return values if device is None else [v.to(device, non_blocking=True) for v in values]


def _form(entry: Tensors) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, value.shape, value.dtype) for name, value in sorted(entry.items())]

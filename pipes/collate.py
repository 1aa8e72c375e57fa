"""Samples to one batch."""

from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch

from .errors import DataError, name_sample
from .sample import KEY, REF, URL, Sample


def collate(samples: Sequence[Sample], ready: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a dict of fields: tensors stacked, ragged ones in lists, everything else in lists.

    Numbers and booleans become a tensor [B] (int64, float32, bool), numpy arrays become tensors,
    ``__ref__`` an int64 tensor [B, 3]. Dicts of tensors become one dict of stacked tensors where
    names, shapes and types are the same, else a list.

    Args:
        samples: Samples with the same fields.
        ready: Fields that are in a batch's tensor already.

    Raises:
        DataError: A sample lacks a field that another has.
    """
    ready = ready or {}
    fields = samples[0].keys()
    for sample in samples:
        if sample.keys() != fields:
            _refuse(samples[0], sample)
    return {
        name: ready[name] if name in ready else _column(name, [s[name] for s in samples])
        for name in fields
    }


def _column(name: str, values: list[Any]) -> Any:
    if name == REF:
        return torch.tensor(values, dtype=torch.int64)
    values = [_tensor(v) if isinstance(v, np.ndarray) else v for v in values]
    first = values[0]
    if isinstance(first, dict) and first and all(_alike(v, first) for v in values):
        return {key: torch.stack([v[key] for v in values]) for key in first}
    if all(isinstance(v, torch.Tensor) for v in values):
        same = all(v.shape == first.shape and v.dtype == first.dtype for v in values)
        return torch.stack(values) if same else values
    if all(isinstance(v, bool | np.bool_) for v in values):
        return torch.tensor([bool(v) for v in values])
    if all(isinstance(v, Number) and not isinstance(v, complex) for v in values):
        whole = all(isinstance(v, int | np.integer) for v in values)
        return torch.tensor(values, dtype=torch.int64 if whole else torch.float32)
    return values


def _alike(value: Any, first: dict[str, Any]) -> bool:
    """Return whether a value is a dict of tensors of the same names, shapes and types."""
    return (
        isinstance(value, dict)
        and value.keys() == first.keys()
        and all(
            isinstance(v, torch.Tensor)
            and isinstance(w := first[key], torch.Tensor)
            and v.shape == w.shape
            and v.dtype == w.dtype
            for key, v in value.items()
        )
    )


def _tensor(array: np.ndarray) -> Any:
    """Return the array as a tensor, or as it is where torch has no such type (text, objects)."""
    if array.dtype.kind not in "biufc":
        return array
    # Of the machine's byte order, in memory that torch may write to.
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


def _refuse(first: Sample, other: Sample) -> None:
    missing = [f for f in first if f not in other]
    more = [f for f in other if f not in first]
    lacking, having, names = (other, first, missing) if missing else (first, other, more)
    raise DataError(
        f"{name_sample(lacking[URL], lacking[KEY])} has no field "
        f"{', '.join(map(repr, names))}, and {name_sample(having[URL], having[KEY])} of the same "
        "batch has: .select() the fields that all samples have, or .filter() for them"
    )

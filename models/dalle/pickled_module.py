"""Weights out of files that hold whole pickled modules, or more than weights."""

from collections.abc import Iterable
from os import PathLike, fspath
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor


class Husk:
    """Stands in for a pickled object: keeps its attributes and can do nothing."""


def load_husks(path: str | PathLike[str], names: Iterable[str]) -> Any:
    """Return what torch.save wrote, with a `Husk` for each object of the classes named.

    torch's weights-only unpickler reads the file: it calls nothing that the file names, makes
    tensors and plain containers, and refuses every class that is not listed.

    Args:
        path: The file.
        names: Classes as ``module.Class``.

    Raises:
        ValueError: If the file holds anything else, or is none of torch.save.
    """
    stand_ins: list[Any] = [(type("Husk", (Husk,), {}), name) for name in names]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{fspath(path)} cannot be read safely: {error}") from error


def module_weights(module: Any, path: str | PathLike[str]) -> dict[str, Tensor]:
    """Return the weights of a module read as husks, under the names of its state_dict.

    Args:
        module: From `load_husks`.
        path: Named in errors.

    Raises:
        ValueError: If it is no module.
    """
    if not isinstance(module, Husk):
        raise ValueError(f"{fspath(path)} holds no module, but {type(module).__name__}")
    out: dict[str, Tensor] = {}
    parts = [("", module)]
    while parts:
        prefix, part = parts.pop()
        state = vars(part)
        for kind in ("_parameters", "_buffers"):
            for name, value in dict(state.get(kind, {})).items():
                if value is not None:
                    out[prefix + name] = value.detach()
        for name, child in dict(state.get("_modules", {})).items():
            if not isinstance(child, Husk):
                raise ValueError(f"{fspath(path)}: {prefix}{name} is no module")
            parts.append((f"{prefix}{name}.", child))
    return out

"""A cache's entries: what they are called, how they are kept, and who keeps them."""

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Protocol

import torch

Tensors = dict[str, torch.Tensor]
"""What an entry holds: tensors by name, on the CPU, each with memory of its own."""

Ingredients = Mapping[str, Any]
"""All that an entry depends on, in plain JSON values; floats count by their exact value."""


def entry_name(ingredients: Ingredients) -> str:
    """Return an entry's name: 32 hex digits of a BLAKE2b hash of all that it was made from.

    Raises:
        TypeError: If an ingredient is no JSON value.
        ValueError: If a number is not finite.
    """
    text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return blake2b(text.encode(), digest_size=16).hexdigest()


class Store(Protocol):
    """Keeps entries by name: what a cache asks of `penstock.pipes.EntryStore`.

    Several processes may use one at once. What `write` was given is found by `read` in the same
    process at once, and in others soon; a kill loses nothing that `write` returned from.
    """

    def __contains__(self, name: str) -> bool:
        """Return whether there is such an entry."""
        ...

    def read(self, name: str) -> Tensors | None:
        """Return an entry's tensors, or None where there is none of this name."""
        ...

    def write(self, name: str, tensors: Tensors, about: Mapping[str, Any], source: str) -> None:
        """Keep an entry, unless there is one of this name.

        Args:
            name: From `entry_name`.
            tensors: What it holds.
            about: What people, `explain` and training without the originals want to know of it, in
                JSON values: its ingredients, where it comes from, its captions.
            source: Names what it was made for, whatever the settings: a sample, a caption.
        """
        ...

    def about(self, source: str) -> list[dict[str, Any]]:
        """Return what was said of all entries of a source, the newest last."""
        ...

    def manifest(self) -> dict[str, Any]:
        """Return what was last said of the whole cache by `describe`; {} where nothing was."""
        ...

    def describe(self, manifest: Mapping[str, Any]) -> None:
        """Write ``manifest.json``, for people and for `manifest`; one that is the same is left."""
        ...

    def sizes(self) -> tuple[int, int]:
        """Return the number of entries and their bytes."""
        ...

    def names(self) -> Iterable[str]:
        """Return the names of all entries."""
        ...
